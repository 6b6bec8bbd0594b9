"""Pooling and SPP.

Follows `pooling_layer.cpp` and `spp_layer.cpp` of BVLC/caffe at 9b891540. Where a window lies in PyTorch's
terms, PyTorch's kernel runs; it differs in three places. It refuses padding above half a kernel and drops
windows that begin beyond the input, so there the padding is made first. It lets NaN win and starts at minus
infinity where Caffe's `x > -FLT_MAX` lets neither in: a pass over the (smaller) result finds these, and only
then is the input cleaned. While a graph is being exported this last check is left out. A mask, the second top
of MAX, stays exact in half precision: it is float32 then.
Departure: windows without a value have gradient zero (Caffe writes beyond its memory).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as nnf

from caffe_weights import caffe_pb2
from reproduce.layers.base import FLT_MAX, Definition, Layer
from surgery.geometry import Shape, Window, pool_size, pool_window

AVE, MAX, STOCHASTIC = (
    caffe_pb2.PoolingParameter.PoolMethod.Value(name) for name in ("AVE", "MAX", "STOCHASTIC")
)


class Pooling(Layer):
    """MAX, AVE or STOCHASTIC pooling of (N, C, H, W); a second top of MAX holds the winners' indices."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.pooling_param
        self.method = param.pool
        self.floor = param.round_mode == param.FLOOR
        self.window = None if param.global_pooling else pool_window(definition, None)
        self.mask = len(definition.top) > 1

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        size = (x.shape[2], x.shape[3])
        window = self.window or Window(size, (1, 1), (0, 0), (1, 1))
        if self.method == STOCHASTIC:
            return [stochastic_pool(x, window, self.phase, self.floor)]
        if self.method == AVE:
            return [average_pool(x, window, self.floor)]
        if not self.mask:
            return [max_pool(x, window, self.floor)]
        y, indices = max_pool_indices(x, window, self.floor)
        return [y, indices.to(mask_dtype(x))]


class SPP(Layer):
    """Pools of 1, 2, 4, ... bins a side, flattened and put side by side: (N, sum of C * bins^2)."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.spp_param
        self.height = param.pyramid_height
        self.method = param.pool

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        levels = [
            self.pool(x, spp_window((x.shape[2], x.shape[3]), 2**level)) for level in range(self.height)
        ]
        if self.height == 1:
            return levels  # Caffe shares the pool's own blob here: (N, C, 1, 1)
        return [torch.cat([level.flatten(1) for level in levels], 1)]

    def pool(self, x: Tensor, window: Window) -> Tensor:
        """One level of the pyramid."""
        if self.method == STOCHASTIC:
            return stochastic_pool(x, window, self.phase)
        return average_pool(x, window) if self.method == AVE else max_pool(x, window)


def spp_window(size: Shape, bins: int) -> Window:
    """Caffe's window that cuts an input of `size` into `bins` by `bins`."""
    kernel = tuple(-(-n // bins) for n in size)
    pad = tuple((k * bins - n + 1) // 2 for k, n in zip(kernel, size, strict=True))
    return Window(kernel, kernel, pad, (1, 1))


def max_pool(x: Tensor, window: Window, floor: bool = False) -> Tensor:
    """The largest value of each window, (N, C, out h, out w); the first of equal ones takes the gradient."""
    y = _max_pool(x, window, floor)
    return y if _ordinary(y) else _max_pool(_cleaned(x), window, floor)


def max_pool_indices(x: Tensor, window: Window, floor: bool = False) -> tuple[Tensor, Tensor]:
    """`max_pool` and the places h * W + w of the winners in each plane; -1 where a window has no value.

    Of equal values the first in raster order wins.
    """
    out = pool_size((x.shape[2], x.shape[3]), window, floor)
    if torch_agrees((x.shape[2], x.shape[3]), out, window, floor):
        y, flat = nnf.max_pool2d(
            x, window.kernel, window.stride, window.pad, 1, not floor, return_indices=True
        )
        if _ordinary(y):
            return y, flat
    (top, bottom), (left, right) = _margins((x.shape[2], x.shape[3]), out, window)
    clean = nnf.pad(_cleaned(x), (left, right, top, bottom), value=-FLT_MAX)
    y, flat = nnf.max_pool2d(clean, window.kernel, window.stride, return_indices=True)
    row, column = flat // clean.shape[3] - top, flat % clean.shape[3] - left
    return y, torch.where(y > -FLT_MAX, row * x.shape[3] + column, -1)


def mask_dtype(x: Tensor) -> torch.dtype:
    """The floating dtype of a mask of x: x's own where that is exact for every place of a plane."""
    places = x.shape[2] * x.shape[3]
    wide = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    return wide if places <= 1 << 24 else torch.float64


def average_pool(x: Tensor, window: Window, floor: bool = False) -> Tensor:
    """The mean of each window, padding counted, what overhangs the padding not counted."""
    size = (x.shape[2], x.shape[3])
    out = pool_size(size, window, floor)
    if torch_agrees(size, out, window, floor):
        return nnf.avg_pool2d(x, window.kernel, window.stride, window.pad, not floor, True)
    (top, bottom), (left, right) = _margins(size, out, window)
    total = nnf.avg_pool2d(
        nnf.pad(x, (left, right, top, bottom)), window.kernel, window.stride, divisor_override=1
    )
    rows, columns = (_counts(axis, size, out, window) for axis in (0, 1))
    divisors = torch.tensor([[r * c for c in columns] for r in rows], dtype=x.dtype, device=x.device)
    return total / divisors


def stochastic_pool(x: Tensor, window: Window, phase: str, floor: bool = False) -> Tensor:
    """TRAIN: one value of each window, drawn with its value as weight; TEST: their weighted mean.

    Caffe has this on the GPU only. Values are taken to be at least 0; a window of zeros gives 0.
    """
    size = (x.shape[2], x.shape[3])
    out = pool_size(size, window, floor)
    (top, bottom), (left, right) = _margins(size, out, window)
    padded = nnf.pad(x, (left, right, top, bottom))
    values = nnf.unfold(padded, window.kernel, stride=window.stride)
    values = values.reshape(x.shape[0], x.shape[1], -1, *out)  # (N, C, kh * kw, out h, out w)
    total = values.sum(2)
    if phase == "TEST":
        return (values * values).sum(2) / total.clamp(min=torch.finfo(x.dtype).tiny)
    threshold = torch.rand_like(total) * total
    reached = values.detach().cumsum(2) >= threshold.detach().unsqueeze(2)
    return values.gather(2, reached.int().argmax(2, keepdim=True)).squeeze(2)


def torch_agrees(size: Shape, out: Shape, window: Window, floor: bool) -> bool:
    """Whether PyTorch takes this window and makes a top of the size `out`."""
    if any(2 * p > k for p, k in zip(window.pad, window.kernel, strict=True)):
        return False
    return out == tuple(
        _torch_size(n, k, s, p, floor)
        for n, k, s, p in zip(size, window.kernel, window.stride, window.pad, strict=True)
    )


def _max_pool(x: Tensor, window: Window, floor: bool) -> Tensor:
    size = (x.shape[2], x.shape[3])
    out = pool_size(size, window, floor)
    if torch_agrees(size, out, window, floor):
        return nnf.max_pool2d(x, window.kernel, window.stride, window.pad, 1, not floor)
    (top, bottom), (left, right) = _margins(size, out, window)
    return nnf.max_pool2d(
        nnf.pad(x, (left, right, top, bottom), value=-FLT_MAX), window.kernel, window.stride
    )


def _ordinary(y: Tensor) -> bool:
    # one pass: aminmax hands on NaN, and minus infinity is below -FLT_MAX
    if torch.compiler.is_compiling() or not y.numel():
        return True
    low, high = torch.aminmax(y.detach())
    if y.is_cpu:
        return low.item() >= -FLT_MAX and not math.isnan(high.item())
    return bool((low >= -FLT_MAX) & (high == high))  # one wait for the device


def _cleaned(x: Tensor) -> Tensor:
    return torch.where(x > -FLT_MAX, x, -FLT_MAX)


def _torch_size(n: int, k: int, s: int, p: int, floor: bool) -> int:
    span = n + 2 * p - k
    if floor:
        return span // s + 1
    count = -(-span // s) + 1
    return count - 1 if (count - 1) * s >= n + p else count


def _margins(size: Shape, out: Shape, window: Window) -> list[tuple[int, int]]:
    # what to add before and after each axis so that every window lies inside; after may be negative
    values = zip(size, out, window.kernel, window.stride, window.pad, strict=True)
    return [(p, (o - 1) * s + k - n - p) for n, o, k, s, p in values]


def _counts(axis: int, size: Shape, out: Shape, window: Window) -> list[int]:
    n, k, s, p = size[axis], window.kernel[axis], window.stride[axis], window.pad[axis]
    return [min(i * s - p + k, n + p) - (i * s - p) for i in range(out[axis])]
