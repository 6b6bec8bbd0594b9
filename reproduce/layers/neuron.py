"""Layers that treat every value alone.

Follows `relu_layer.cpp`, `prelu_layer.cpp`, `elu_layer.cpp`, `sigmoid_layer.cpp`, `tanh_layer.cpp`,
`absval_layer.cpp`, `bnll_layer.cpp`, `clip_layer.cpp`, `swish_layer.cpp`, `power_layer.cpp`,
`exp_layer.cpp`, `log_layer.cpp`, `threshold_layer.cpp` and `dropout_layer.cpp` of BVLC/caffe at 9b891540.
Departures: Power has the true derivative where Caffe's quotient y / x is 0 / 0; Dropout draws from PyTorch's
generator, so `torch.manual_seed` fixes the mask, which is not Caffe's mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as nnf

from reproduce.layers.base import Definition, Filler, Layer, constant
from surgery.layer_shapes import log_of_base


class ReLU(Layer):
    """max(x, 0) + negative_slope * min(x, 0)."""

    in_place = True

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.slope = definition.relu_param.negative_slope

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [nnf.leaky_relu(bottoms[0], self.slope) if self.slope else nnf.relu(bottoms[0])]

    def overwrite(self, bottom: Tensor, blobs: list[Tensor]) -> Tensor:
        return nnf.leaky_relu_(bottom, self.slope) if self.slope else nnf.relu_(bottom)


class PReLU(Layer):
    """ReLU whose slope is a parameter, one a channel or one in all."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.param = definition.prelu_param

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [nnf.prelu(bottoms[0], blobs[0].reshape(-1))]

    def fillers(self) -> list[Filler]:
        return [self.param.filler if self.param.HasField("filler") else constant(0.25)]


class ELU(Layer):
    """x above 0, alpha * (exp(x) - 1) below."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.alpha = definition.elu_param.alpha

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [nnf.elu(bottoms[0], self.alpha)]


class Sigmoid(Layer):
    """1 / (1 + exp(-x))."""

    in_place = True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [torch.sigmoid(bottoms[0])]

    def overwrite(self, bottom: Tensor, blobs: list[Tensor]) -> Tensor:
        return bottom.sigmoid_()


class TanH(Layer):
    """The hyperbolic tangent."""

    in_place = True

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [torch.tanh(bottoms[0])]

    def overwrite(self, bottom: Tensor, blobs: list[Tensor]) -> Tensor:
        return bottom.tanh_()


class AbsVal(Layer):
    """|x|."""

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [torch.abs(bottoms[0])]


class BNLL(Layer):
    """log(1 + exp(x)), without overflow."""

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [nnf.softplus(bottoms[0], threshold=50)]  # Caffe bounds its gradient there


class Clip(Layer):
    """x brought into [min, max]; the gradient passes on the bounds themselves."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.low, self.high = definition.clip_param.min, definition.clip_param.max

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [torch.clamp(bottoms[0], self.low, self.high)]


class Swish(Layer):
    """x * sigmoid(beta * x)."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.beta = definition.swish_param.beta

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        return [nnf.silu(x) if self.beta == 1 else x * torch.sigmoid(self.beta * x)]


class Power(Layer):
    """(shift + scale * x) ^ power; with scale * power = 0 the input is not looked at."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.power_param
        self.power, self.scale, self.shift = param.power, param.scale, param.shift

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        if self.scale * self.power == 0:
            return [torch.full_like(x, 1.0 if self.power == 0 else _pow(self.shift, self.power))]
        base = x * self.scale if self.scale != 1 else x
        base = base + self.shift if self.shift != 0 else base
        return [base**self.power if self.power != 1 else base.clone() if base is x else base]


class Exp(Layer):
    """base ^ (shift + scale * x); base -1 stands for e."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.exp_param
        log = log_of_base(definition)
        self.inner = log * param.scale
        self.outer = 1.0 if param.shift == 0 else _pow(math.e, log * param.shift)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        y = torch.exp(self.inner * bottoms[0] if self.inner != 1 else bottoms[0])
        return [y * self.outer if self.outer != 1 else y]


class Log(Layer):
    """log(shift + scale * x) to the base; base -1 stands for e."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.log_param
        self.scale, self.shift = param.scale, param.shift
        self.factor = 1 / log_of_base(definition)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0] * self.scale if self.scale != 1 else bottoms[0]
        y = torch.log(x + self.shift if self.shift != 0 else x)
        return [y * self.factor if self.factor != 1 else y]


class Threshold(Layer):
    """1 above the threshold, else 0; no gradient."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.threshold = definition.threshold_param.threshold

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [(bottoms[0] > self.threshold).to(bottoms[0].dtype)]


class Dropout(Layer):
    """TRAIN: each value kept with probability 1 - ratio and scaled by its inverse; TEST: the bottom."""

    fresh = False

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.ratio = definition.dropout_param.dropout_ratio

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [nnf.dropout(bottoms[0], self.ratio, True) if self.phase == "TRAIN" else bottoms[0]]


def _pow(base: float, exponent: float) -> float:
    # C's pow, which knows no errors
    return float(torch.tensor(base, dtype=torch.float64) ** exponent)
