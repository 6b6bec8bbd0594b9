"""DropPath, a Python layer of ours: the whole item kept or left out, ever more often as training goes on.

From core/nas_cell.py of tensorflow/models (research/deeplab, 00b613a4). In TRAIN each item of a batch is kept
with probability 1 - min(1, t / passes) (1 - keep), and then divided by it; t counts the forward passes so
far. It is the layer's only parameter, which no solver moves, so that a snapshot has it. In TEST the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reproduce.layers.base import Filler, Layer, constant


class DropPath(Layer):
    """Settings: `keep`, the probability after `passes` forward passes."""

    statistics = True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        if self.phase != "TRAIN":
            return [x + 0]
        keep, passes = self.settings["keep"], self.settings["passes"]
        chance = 1 - (blobs[0] / passes).clamp(max=1) * (1 - keep)
        with torch.no_grad():
            blobs[0].add_(1)
        items = (len(x), *(1,) * (x.dim() - 1))
        kept = (torch.rand(items, dtype=x.dtype, device=x.device) + chance).floor()
        return [x * (kept / chance)]

    def fillers(self) -> list[Filler]:
        return [constant(0)]
