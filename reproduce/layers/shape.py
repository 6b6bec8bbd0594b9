"""Layers that move, choose, join or reduce values.

Follows `concat_layer.cpp`, `slice_layer.cpp`, `split_layer.cpp`, `flatten_layer.cpp`, `reshape_layer.cpp`,
`crop_layer.cpp`, `tile_layer.cpp`, `eltwise_layer.cpp`, `reduction_layer.cpp`, `argmax_layer.cpp`,
`filter_layer.cpp`, `batch_reindex_layer.cpp` and `silence_layer.cpp` of BVLC/caffe at 9b891540. Ties: Eltwise
MAX takes the second of the first two bottoms, ArgMax the larger index. Departures: an Eltwise PROD with
stable_prod_grad false has the stable gradient (Caffe's is NaN at zeros, else equal); an index of
BatchReindex out of range is an error.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from caffe_weights import caffe_pb2
from reproduce.layers.base import Definition, Layer, checked_indices, per_axis, positive_axis

PROD, SUM, MAX = (caffe_pb2.EltwiseParameter.EltwiseOp.Value(name) for name in ("PROD", "SUM", "MAX"))
ASUM, SUMSQ, MEAN = (
    caffe_pb2.ReductionParameter.ReductionOp.Value(name) for name in ("ASUM", "SUMSQ", "MEAN")
)


class Concat(Layer):
    """The bottoms one after another along an axis."""

    fresh = False  # a single bottom is handed on

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.concat_param
        self.axis = param.concat_dim if param.HasField("concat_dim") else param.axis

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [torch.cat(bottoms, self.axis) if len(bottoms) > 1 else bottoms[0]]


class Slice(Layer):
    """The bottom cut along an axis, at slice_points or evenly."""

    fresh = False

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.slice_param
        self.axis = param.slice_dim if param.HasField("slice_dim") else param.axis
        self.points, self.count = list(param.slice_point), len(definition.top)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        if self.points:
            return list(torch.tensor_split(bottoms[0], self.points, self.axis))
        return list(torch.chunk(bottoms[0], self.count, self.axis))


class Split(Layer):
    """The bottom, once a top."""

    fresh = False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [bottoms[0] for _ in self.definition.top]


class Flatten(Layer):
    """Axes `axis` to `end_axis` as one; a new axis of 1 if the second lies just before the first."""

    fresh = False

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.axis, self.end_axis = definition.flatten_param.axis, definition.flatten_param.end_axis

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        start, end = positive_axis(self.axis, x.dim()), positive_axis(self.end_axis, x.dim())
        return [x.unsqueeze(start) if end < start else x.flatten(start, end)]


class Reshape(Layer):
    """Another shape for axes `axis` to `axis` + `num_axes`; 0 keeps a size, -1 is worked out."""

    fresh = False

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.reshape_param
        self.axis, self.num_axes, self.dims = param.axis, param.num_axes, list(param.shape.dim)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        start = self.axis if self.axis >= 0 else x.dim() + self.axis + 1
        end = x.dim() if self.num_axes == -1 else start + self.num_axes
        dims = [x.shape[start + i] if d == 0 else d for i, d in enumerate(self.dims)]
        return [x.reshape((*x.shape[:start], *dims, *x.shape[end:]))]


class Crop(Layer):
    """The part of bottom 0 from the offsets on that has bottom 1's size, for axes `axis` and up."""

    fresh = False

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.axis, self.offset = definition.crop_param.axis, list(definition.crop_param.offset)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x, reference = bottoms
        first = positive_axis(self.axis, x.dim())
        offsets = self.offset if len(self.offset) > 1 else (self.offset or [0]) * (x.dim() - first)
        for axis, offset in enumerate(offsets, first):
            x = x.narrow(axis, offset, reference.shape[axis])
        return [x]


class Tile(Layer):
    """The bottom repeated along an axis."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.axis, self.tiles = definition.tile_param.axis, definition.tile_param.tiles

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [torch.cat([bottoms[0]] * self.tiles, self.axis)]


class Eltwise(Layer):
    """The bottoms' sum (with coefficients), product or maximum, value by value."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.eltwise_param
        self.operation, self.coeff = param.operation, list(param.coeff)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        if self.operation == SUM:
            return [self.add(bottoms)]
        y = bottoms[0]
        for i, x in enumerate(bottoms[1:]):
            y = y * x if self.operation == PROD else larger(y, x, first=i == 0)
        return [y]

    def add(self, bottoms: list[Tensor]) -> Tensor:
        """The weighted sum; PyTorch multiplies and adds in one pass."""
        coeff = self.coeff or [1.0] * len(bottoms)
        y = bottoms[0] if coeff[0] == 1 else bottoms[0] * coeff[0]
        for x, c in zip(bottoms[1:], coeff[1:], strict=True):
            y = torch.add(y, x, alpha=c)
        return y


def larger(y: Tensor, x: Tensor, first: bool) -> Tensor:
    """The larger of two, x where neither is; of equal ones x takes the gradient at the first pair, else y."""
    learns = torch.is_grad_enabled() and (y.requires_grad or x.requires_grad)
    if not (learns or torch.compiler.is_compiling() or torch.jit.is_tracing()):
        top = torch.maximum(y, x)  # twenty times as fast, but lets NaN win
        if not top.sum().isnan():
            return top
    return torch.where(y > x if first else y >= x, y, x)


class Reduction(Layer):
    """coeff times the sum, sum of magnitudes, sum of squares or mean over axes `axis` and up."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.reduction_param
        self.operation, self.axis, self.coeff = param.operation, param.axis, param.coeff

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        axis = positive_axis(self.axis, x.dim())
        x = x.reshape(*x.shape[:axis], prod(x.shape[axis:]))
        if self.operation == ASUM:
            x = x.abs()
        elif self.operation == SUMSQ:
            x = x * x
        y = x.mean(-1) if self.operation == MEAN else x.sum(-1)
        return [y * self.coeff if self.coeff != 1 else y]


class ArgMax(Layer):
    """The top_k largest values or their indices, along an axis or over all but the first; no gradient."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.argmax_param
        self.axis = param.axis if param.HasField("axis") else None
        self.top_k, self.values = param.top_k, param.out_max_val

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0].detach()
        if self.axis is not None:
            values, indices = self.largest(x, self.axis)
            return [values if self.values else indices]
        values, indices = self.largest(x.reshape(x.shape[0], 1, -1), 2)
        y = torch.cat([indices, values], 1) if self.values else indices  # (N, 1 or 2, top_k)
        return [y.reshape(*y.shape, *(1,) * (x.dim() - 3))]

    def largest(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Values in falling order and their indices, the larger index first among equals."""
        if self.top_k == 1:  # no need to sort
            values = x.amax(axis, keepdim=True)
            count = torch.arange(x.shape[axis], device=x.device)
            count = per_axis(count, x.dim(), positive_axis(axis, x.dim()))
            best = torch.where((x == values) | (x != x), count, -1).amax(axis, keepdim=True)
            return values, best.to(x.dtype)
        order = x.flip(axis).sort(dim=axis, descending=True, stable=True)
        values, flipped = (t.narrow(axis, 0, self.top_k) for t in order)
        return values, (x.shape[axis] - 1 - flipped).to(x.dtype)


class Filter(Layer):
    """Those items of every bottom but the last for which the last is not 0.

    How many there are is known only when it runs, so graph export cannot follow it.
    """

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        chosen = bottoms[-1].detach().reshape(-1).nonzero()[:, 0]
        return [x.index_select(0, chosen) for x in bottoms[:-1]]


class BatchReindex(Layer):
    """Item i of the top is item index[i] of the bottom."""

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x, index = bottoms
        return [x.index_select(0, checked_indices(self.where(), index, x.shape[0]).reshape(-1))]


class Silence(Layer):
    """Nothing: its bottoms are only kept from being outputs."""

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return []
