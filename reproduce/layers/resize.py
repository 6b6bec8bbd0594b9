"""Interp: bilinear resizing with corners aligned.

Follows the layer of that name in DeepLab's fork of Caffe (BVLC/caffe has none): pixels are cut off first
(`pad_beg`, `pad_end`), then pixel i of m lies at i (n - 1) / (m - 1) of the n pixels, so that the corner
pixels stay where they are; m = 1 takes the first pixel. As in a later fork a second bottom may give the size.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as nnf

from reproduce.layers.base import Layer
from surgery.layer_shapes import interp_size


class Interp(Layer):
    """(N, C, H, W) resized. The second bottom only gives the size: it gets no gradient."""

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x, param = bottoms[0], self.definition.interp_param
        size = interp_size(self.definition, *(tuple(bottom.shape[2:]) for bottom in bottoms))
        height, width = x.shape[2] + param.pad_end, x.shape[3] + param.pad_end
        x = x[:, :, -param.pad_beg : height, -param.pad_beg : width]
        return [nnf.interpolate(x, size, mode="bilinear", align_corners=True)]
