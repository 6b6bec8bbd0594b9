"""Unpooling of the DeconvNet fork and Upsample of the SegNet fork: pooled values put back in their places.

Follows `unpooling_layer.cpp` of HyeonwooNoh/caffe at d9e8494a and `upsample_layer.cpp` of
alexgkendall/caffe-segnet. The mask is the second top of a Pooling layer: the flat index h * W + w of each
maximum in its plane. Departures: an index outside the top is refused (the first fork writes beyond its
memory); AVE and TILE start from zeros, and TILE hands back the gradient of what it does. `faithful` brings
the fork's own ways back: on a CPU it adds AVE and TILE to what the top held before, and it divides TILE's
gradient by the window's size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from reproduce.layers.base import Definition, Layer
from surgery.fork_shapes import unpool_size, unpool_window, upsample_size
from surgery.geometry import Shape, Window, dims

AVE, MAX = (caffe_pb2.UnpoolingParameter.UnpoolMethod.Value(name) for name in ("AVE", "MAX"))


class Unpooling(Layer):
    """Each value goes to one place of a map of zeros (MAX) or to its whole window (AVE a share, TILE all)."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.method = definition.unpooling_param.unpool
        self.window, self.size = unpool_window(definition), unpool_size(definition)
        self.faithful = False
        self._before: Tensor | None = None

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        if self.method != MAX:
            return [self.spread(x)]
        overlaps = any(k > s for k, s in zip(self.window.kernel, self.window.stride, strict=True))
        if len(bottoms) > 1:
            return [assign(x, mask_indices(self.where(), bottoms[1], self.size), self.size, overlaps)]
        return [assign(x, _corners(x, self.window, self.size), self.size, True)]

    def spread(self, x: Tensor) -> Tensor:
        """AVE and TILE."""
        area = _areas(x, self.window, self.size)
        if self.method == AVE:
            x = x / area
        elif self.faithful:
            x = _Divided.apply(x, area)
        y = _tile(x, self.window, self.size)
        if self.faithful and x.is_cpu:
            if self._before is not None and self._before.shape == y.shape:
                y = y + self._before
            self._before = y.detach()
        return y


class Upsample(Layer):
    """Each value goes to the place that the mask says, on a map of zeros."""

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        size = upsample_size(self.definition, tuple(bottoms[0].shape[2:]))
        return [assign(bottoms[0], mask_indices(self.where(), bottoms[1], size), size, True)]


def mask_indices(where: str, mask: Tensor, size: Shape) -> Tensor:
    """A mask as int64, cut towards zero. NetError for a place outside a plane of `size`.

    While a graph is being exported nothing is checked.
    """
    indices = mask.detach().long()
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not indices.numel():
        return indices
    low, high = torch.aminmax(indices)
    if bool((low >= 0) & (high < size[0] * size[1])):
        return indices
    at = int(((indices < 0) | (indices >= size[0] * size[1])).reshape(-1).nonzero()[0, 0])
    value = mask.detach().reshape(-1)[at].item()
    raise NetError(
        where,
        f"mask value {value:g} at index {at}",
        f"0 to {size[0] * size[1] - 1}, a place of the {dims(size)} top",
        "the pooled map held only NaN"
        if value == -1
        else "take the mask of a pooling over a map of that size",
    )


def assign(x: Tensor, indices: Tensor, size: Shape, repeats: bool) -> Tensor:
    """Zeros of (N, C, *size) with x, (N, C, h, w), written to its flat indices; of equal ones the last stays.

    Every value gets the gradient of its place, as in the forks, also one that was overwritten. `repeats`:
    indices of a plane may be equal, which a CPU takes in their order and other devices in any.
    """
    flat, places = x.flatten(2), indices.flatten(2)
    if repeats and not x.is_cpu and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        y: Tensor = Last.apply(flat, places, size[0] * size[1])
    else:
        y = x.new_zeros(*x.shape[:2], size[0] * size[1]).scatter(2, places, flat)
    return y.reshape(*x.shape[:2], *size)


class Last(torch.autograd.Function):
    """Scatter in which the last of equal indices stays, on every device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(places)
        order = torch.arange(x.shape[2], device=x.device).expand_as(places)
        last = places.new_full((*x.shape[:2], count), -1).scatter_reduce(2, places, order, "amax")
        return torch.where(last >= 0, x.gather(2, last.clamp(min=0)), 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grads[0].gather(2, places), None, None


class _Divided(torch.autograd.Function):
    """The identity, whose gradient is divided."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, divisor: Tensor) -> Tensor:
        ctx.save_for_backward(divisor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (divisor,) = ctx.saved_tensors
        return grads[0] / divisor, None


def _corners(x: Tensor, window: Window, size: Shape) -> Tensor:
    # the first place of each window, or the last row and column
    rows, columns = (
        torch.arange(n, device=x.device).mul(s).clamp(max=limit - 1)
        for n, s, limit in zip(x.shape[2:], window.stride, size, strict=True)
    )
    return (rows[:, None] * size[1] + columns).expand(*x.shape)


def _areas(x: Tensor, window: Window, size: Shape) -> Tensor:
    # places of each window that lie on the top, (h, w); 1 where none does
    rows, columns = (
        (limit - torch.arange(n, device=x.device) * s).clamp(1, k)
        for n, k, s, limit in zip(x.shape[2:], window.kernel, window.stride, size, strict=True)
    )
    return (rows[:, None] * columns).to(x.dtype)


def _tile(x: Tensor, window: Window, size: Shape) -> Tensor:
    # each value added to its whole window, cut or filled up with zeros to the top's size
    (n, c, h, w), (high, wide) = x.shape, window.kernel
    columns = x.reshape(n, c, 1, h * w).expand(n, c, high * wide, h * w).reshape(n, c * high * wide, h * w)
    reach = tuple(s * (m - 1) + k for m, k, s in zip((h, w), window.kernel, window.stride, strict=True))
    y = nnf.fold(columns, reach, window.kernel, stride=window.stride)
    return nnf.pad(y, (0, size[1] - reach[1], 0, size[0] - reach[0]))
