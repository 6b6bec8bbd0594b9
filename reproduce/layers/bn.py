"""BN of the DeconvNet and SegNet forks, which is not Caffe's BatchNorm.

Follows `bn_layer.cpp` of HyeonwooNoh/caffe at d9e8494a. It has two parameters, a scale and a shift a
channel, and keeps no statistics: LEARN takes the batch's in either phase, INFERENCE takes none, because
they have been folded into the parameters (`reproduce.folding`). Departures: the variance is the mean square
of differences from the mean, where the fork subtracts the squared mean from the mean square and may get
below zero; a batch may change its size; the tops of statistics hand no gradient back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_weights import caffe_pb2
from reproduce.layers.base import Definition, Filler, Layer

EPS = 1e-9  # added to the variance; no field of the schema
INFERENCE = caffe_pb2.BNParameter.BNMode.Value("INFERENCE")


class BN(Layer):
    """scale * x + shift a channel, of x brought to mean 0 and variance 1 over the batch unless INFERENCE.

    A second and third top of LEARN are that mean and (biased) variance, (1, C, 1, 1).
    """

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.param = definition.bn_param
        self.learns = self.param.bn_mode != INFERENCE

    @property
    def in_place(self) -> bool:  # type: ignore[override]
        """INFERENCE needs no second map."""
        return not self.learns

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x, (scale, shift) = bottoms[0], blobs
        if not self.learns:
            return [torch.addcmul(shift, x, scale)]
        if x.numel() == x.shape[1]:  # one value a channel, which is its own mean
            y = (x - x) * scale + shift
        else:
            y = torch.batch_norm(x, scale.flatten(), shift.flatten(), None, None, True, 0.0, EPS, False)
        if len(self.definition.top) == 1:
            return [y]
        variance, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0, keepdim=True)
        return [y, mean, variance][: len(self.definition.top)]

    def overwrite(self, bottom: Tensor, blobs: list[Tensor]) -> Tensor:
        return torch.addcmul(blobs[1], bottom, blobs[0], out=bottom)

    def fillers(self) -> list[Filler]:
        return [self.param.scale_filler, self.param.shift_filler]
