"""A blob in two parts: the region that is computed, and the rim, which is the same for every image.

What the parts are and why they make the whole stands in `reproduce.frame`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

from surgery.border import Axis, Span

Spans = tuple[Span, Span]  # of rows and of columns

ROWS, COLUMNS = 2, 3  # axes of (N, C, H, W)


@dataclass(frozen=True)
class Layout:
    """Where the parts lie: rows and columns, and the region, which holds both cores."""

    axes: tuple[Axis, Axis]
    region: Spans

    @property
    def all(self) -> Spans:
        """The whole map."""
        rows, columns = self.axes
        return (0, rows.size), (0, columns.size)


class Framed:
    """One blob, (N, C, H, W), as its region (N, C, h, w) and its rim (1, C, kept rows, kept columns)."""

    def __init__(self, region: Tensor, rim: Tensor, layout: Layout) -> None:
        self.region, self.rim, self.layout = region, rim, layout
        self._whole: Tensor | None = None

    def whole(self) -> Tensor:
        """The blob as a plain tensor, assembled once."""
        if self._whole is None:
            self._whole = self.part(self.layout.all)
        return self._whole

    def part(self, spans: Spans, outside: float = 0.0) -> Tensor:
        """The blob at `spans`; positions beyond the map are `outside`. A view where the region holds all; in
        blocks (`reproduce.blocks`) where the region is and is all that is asked for.
        """
        (top, bottom), (left, right) = spans
        (y0, y1), (x0, x1) = inner = _inside(self.layout.region, spans)
        if spans == self.layout.region:
            return self.region
        core = self._cut(inner)
        if inner == spans:
            return core
        strips = [
            self._strip(((top, y0), (left, right)), outside),
            self._strip(((y1, bottom), (left, right)), outside),
            self._strip(((y0, y1), (left, x0)), outside),
            self._strip(((y0, y1), (x1, right)), outside),
        ]
        result: Tensor = _Paste.apply(core, *strips)
        return result

    def detach(self) -> Framed:
        """The same blob, to which no gradient is handed back."""
        return Framed(self.region.detach(), self.rim.detach(), self.layout)

    def _ordered(self) -> Tensor:
        # cut and pasted only in the order N, C, H, W; brought there once
        if self.region.is_mkldnn:
            self.region = self.region.to_dense()
        return self.region

    def _cut(self, spans: Spans) -> Tensor:
        region = self._ordered()
        for dim, span, held in zip((ROWS, COLUMNS), spans, self.layout.region, strict=True):
            if span != held:
                length = span[1] - span[0]
                region = region.narrow(dim, span[0] - held[0] if length else 0, length)
        return region

    def _strip(self, spans: Spans, outside: float) -> Tensor:
        return unfold(self.rim, self.layout.axes, spans, outside)


def unfold(rim: Tensor, axes: Sequence[Axis], spans: Spans, outside: float = 0.0) -> Tensor:
    """The rim (1, C, kept rows, kept columns) at full length, cut to `spans`; `outside` beyond the map."""
    margins = []
    for dim, axis, (start, end) in zip((ROWS, COLUMNS), axes, spans, strict=True):
        rim = _unfold_axis(rim, dim, axis, start, end)
        start, end = min(max(-start, 0), end - start), min(max(end - axis.size, 0), end - start)
        margins.append((start, end))
    (top, bottom), (left, right) = margins
    if not (top or bottom or left or right):
        return rim
    return nnf.pad(rim, (left, right, top, bottom), value=max(outside, torch.finfo(rim.dtype).min))


def _unfold_axis(rim: Tensor, dim: int, axis: Axis, start: int, end: int) -> Tensor:
    start, end = max(start, 0), min(end, axis.size)
    again = axis.low + axis.fold + 1  # where the alike positions are over
    alike = min(end, again) - max(start, axis.low)
    pieces = []
    if start < min(end, axis.low):
        pieces.append(rim.narrow(dim, start, min(end, axis.low) - start))
    if alike > 0:
        one = rim.narrow(dim, axis.low, 1)
        pieces.append(one.expand(*(alike if i == dim else -1 for i in range(4))))
    if max(start, again) < end:
        first = max(start, again)
        pieces.append(rim.narrow(dim, first - axis.fold, end - first))
    if not pieces:
        return rim.narrow(dim, 0, 0)
    return torch.cat(pieces, dim) if len(pieces) > 1 else pieces[0]


class _Paste(torch.autograd.Function):
    """A map from its middle (N, C, h, w) and the strips above, below, left and right of it, (1, C, ...)."""

    @staticmethod
    def forward(*parts: Tensor) -> Tensor:
        core, above, below, left, right = parts
        n, channels, h, w = core.shape
        width = left.shape[COLUMNS] + w + right.shape[COLUMNS]
        dense = core.stride(1) == 1 and channels > 1
        whole = torch.empty(
            (n, channels, above.shape[ROWS] + h + below.shape[ROWS], width),
            dtype=core.dtype,
            device=core.device,
            memory_format=torch.channels_last if dense else torch.contiguous_format,
        )
        for part, place in zip(parts, _places(parts, whole), strict=True):
            place.copy_(part)
        return whole

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.shapes = [part.shape for part in inputs]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        places = _places([torch.empty(shape, device="meta") for shape in ctx.shapes], grads[0])
        return tuple(
            place.sum_to_size(shape) if needed else None
            for place, shape, needed in zip(places, ctx.shapes, ctx.needs_input_grad, strict=True)
        )


def _places(parts: Sequence[Tensor], whole: Tensor) -> list[Tensor]:
    core, above, below, left, _ = parts
    h, w = core.shape[ROWS:]
    top, x = above.shape[ROWS], left.shape[COLUMNS]
    middle = whole.narrow(ROWS, top, h)
    return [
        middle.narrow(COLUMNS, x, w),
        whole.narrow(ROWS, 0, top),
        whole.narrow(ROWS, top + h, below.shape[ROWS]),
        middle.narrow(COLUMNS, 0, x),
        middle.narrow(COLUMNS, x + w, whole.shape[COLUMNS] - x - w),
    ]


def _inside(region: Spans, spans: Spans) -> Spans:
    rows, columns = (
        (min(max(held[0], span[0]), span[1]), max(min(held[1], span[1]), span[0]))
        for held, span in zip(region, spans, strict=True)
    )
    return rows, columns
