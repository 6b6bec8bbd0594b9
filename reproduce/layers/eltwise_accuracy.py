"""EltwiseAccuracy of the DeconvNet fork: the share of pixels whose label is among the best scores.

Follows `eltwise_accuracy_layer.cpp` of HyeonwooNoh/caffe at d9e8494a, which ranks pairs of score and class
from the greatest down: of equal scores the higher class is the better. Departures: a label out of range is
an error; the accuracy is 0 where every pixel is ignored (0 / 0 there).
"""

from __future__ import annotations

import torch
from torch import Tensor

from reproduce.layers.base import Definition, Layer, checked_indices


class EltwiseAccuracy(Layer):
    """Share of the labels (N, 1, H, W) among the top_k of the scores (N, C, H, W), as (1, 1, 1, 1)."""

    label_bottoms = (1,)

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.eltwise_accuracy_param
        self.top_k = param.top_k
        self.ignore = param.ignore_label if param.HasField("ignore_label") else None

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0].detach()
        label = checked_indices(self.where(), bottoms[1], x.shape[1], self.ignore)
        valid = torch.ones_like(label) if self.ignore is None else (label != self.ignore).long()
        label = label * valid
        own = x.gather(1, label)
        higher = torch.arange(x.shape[1], device=x.device).reshape(1, -1, 1, 1) > label
        better = ((x > own) | ((x == own) & higher)).sum(1, keepdim=True)
        right = ((better < self.top_k) * valid).sum()
        return [(right.to(x.dtype) / valid.sum().clamp(min=1)).reshape(1, 1, 1, 1)]
