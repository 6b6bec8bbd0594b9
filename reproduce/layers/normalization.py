"""LRN, BatchNorm, MVN, Scale and Bias.

Follows `lrn_layer.cpp`, `batch_norm_layer.cpp`, `mvn_layer.cpp`, `scale_layer.cpp` and `bias_layer.cpp` of
BVLC/caffe at 9b891540. MVN has a backward of its own, because Caffe's takes deviation + eps for the
deviation. In BatchNorm the three parameters are sums that grow with every forward pass on batch statistics,
as in Caffe, in either phase, and with or without gradients. Departure: the gradient of a Scale's factors adds
up over passes and sharers also where the batch is one item; Caffe keeps the last one there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

from caffe_weights import caffe_pb2
from reproduce.layers.base import Definition, Filler, Layer, constant, per_axis, positive_axis

WITHIN_CHANNEL = caffe_pb2.LRNParameter.WITHIN_CHANNEL


class LRN(Layer):
    """Local response normalisation, across channels or within one."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.lrn_param
        self.size, self.alpha, self.beta, self.k = param.local_size, param.alpha, param.beta, param.k
        self.within = param.norm_region == WITHIN_CHANNEL

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        if not self.within:
            return [nnf.local_response_norm(x, self.size, self.alpha, self.beta, self.k)]
        mean = nnf.avg_pool2d(x * x, self.size, 1, (self.size - 1) // 2)
        return [x * (1 + self.alpha * mean) ** -self.beta]  # k is ignored within a channel


class BatchNorm(Layer):
    """(x - mean) / sqrt(variance + eps) a channel; no scale or shift of its own."""

    statistics = True

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.batch_norm_param
        self.eps, self.fraction = param.eps, param.moving_average_fraction
        self.stored = param.use_global_stats if param.HasField("use_global_stats") else phase == "TEST"

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        columns = x if x.dim() > 1 else x.unsqueeze(1)
        y = self.with_stored(columns, blobs) if self.stored else self.with_batch(columns, blobs)
        return [y.reshape(x.shape)]

    def with_stored(self, x: Tensor, blobs: list[Tensor]) -> Tensor:
        """By the stored sums over their factor; a factor of 0 makes mean and variance 0."""
        factor = torch.where(blobs[2] == 0, torch.zeros_like(blobs[2]), 1 / blobs[2])
        mean, variance = blobs[0] * factor, blobs[1] * factor
        return torch.batch_norm(x, None, None, mean, variance, False, 0.0, self.eps, False)

    def with_batch(self, x: Tensor, blobs: list[Tensor]) -> Tensor:
        """By the batch's own statistics, which are added to the stored sums."""
        mean, variance = torch.zeros_like(blobs[0]), torch.zeros_like(blobs[1])
        # momentum 1 leaves the batch's mean and unbiased variance in the two buffers
        y = torch.batch_norm(x, None, None, mean, variance, True, 1.0, self.eps, False)
        if x.numel() == x.shape[1]:  # one value a channel: Caffe corrects the variance by 1, PyTorch by 1 / 0
            y, variance = x - x, torch.zeros_like(variance)
        with torch.no_grad():
            for blob, more in zip(blobs, (mean, variance, torch.ones_like(blobs[2])), strict=True):
                blob.mul_(self.fraction).add_(more)
        return y

    def fillers(self) -> list[Filler]:
        return [constant(0)] * 3


class MVN(Layer):
    """Mean subtracted, and divided by deviation + eps unless normalize_variance is false; four axes out."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.mvn_param
        self.eps, self.variance = param.eps, param.normalize_variance
        self.first = 1 if param.across_channels else 2

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        x = x.reshape(*x.shape, *(1,) * (4 - x.dim()))
        rows = x.reshape(*x.shape[: self.first], -1)
        y = _Normalize.apply(rows, self.eps) if self.variance else rows - rows.mean(-1, keepdim=True)
        return [y.reshape(x.shape)]


class Scale(Layer):
    """x times a parameter, or times the second bottom, spread over the axes it lacks; plus a bias."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.param = definition.scale_param
        self.two = len(definition.bottom) > 1

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        factors = [bottoms[1], *blobs] if self.two else blobs
        axis = _first_axis(self.param.axis, x, factors[0])
        y = x * per_axis(factors[0], x.dim(), axis)
        return [y + per_axis(factors[1], x.dim(), axis) if len(factors) > 1 else y]

    def fillers(self) -> list[Filler]:
        scale = self.param.filler if self.param.HasField("filler") else constant(1)
        bias = [self.param.bias_filler] if self.param.bias_term else []
        return bias if self.two else [scale, *bias]


class Bias(Layer):
    """x plus a parameter, or plus the second bottom, spread over the axes it lacks."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.param = definition.bias_param
        self.two = len(definition.bottom) > 1

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x, bias = bottoms[0], bottoms[1] if self.two else blobs[0]
        return [x + per_axis(bias, x.dim(), _first_axis(self.param.axis, x, bias))]

    def fillers(self) -> list[Filler]:
        return [] if self.two else [self.param.filler]


class _Normalize(torch.autograd.Function):
    """Rows to mean 0 and deviation about 1, with Caffe's gradient (exact for eps 0)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        divisor = (centred * centred).mean(-1, keepdim=True).sqrt() + eps
        y = centred / divisor
        ctx.save_for_backward(y, divisor)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        y, divisor = ctx.saved_tensors
        along = (grad * y).mean(-1, keepdim=True)
        return (grad - grad.mean(-1, keepdim=True) - y * along) / divisor, None


def _first_axis(axis: int, x: Tensor, factor: Tensor) -> int:
    return 0 if factor.dim() == 0 else positive_axis(axis, x.dim())
