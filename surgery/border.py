"""One axis of a map whose padding is larger than a kernel: what depends on the image, what is alike.

Integer arithmetic for `reproduce.frame`, which says what it is for. Positions count from 0 to `size`; a span
is (first, behind the last). The windows are those of `geometry`, whose sizes follow Caffe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """Three facts about one axis of a map.

    Outside of `core` nothing depends on the image. And were there no image, `fold` + 1 positions from `low`
    on would all be alike: with one of them kept for all, `kept` positions tell the whole.
    """

    size: int
    core: Span
    low: int
    fold: int

    @property
    def kept(self) -> int:
        """Length without the `fold` positions that are left out."""
        return self.size - self.fold

    def folded(self, by: int) -> Axis:
        """The same axis, shorter by `by` of its alike positions."""
        return Axis(self.size - by, self.core, self.low, self.fold - by)


def image_axis(size: int) -> Axis:
    """An axis that the image fills; outside of the map and of the image alike there are zeros."""
    return Axis(size, (0, size), 0, size - 1)


def first_axis(bottom: Axis, extent: int, stride: int, pad: int, size: int) -> Axis:
    """The axis of `size` after a convolution on an image: where no window meets it, all is alike."""
    return Axis(size, _core(bottom.core, extent, stride, pad, size), 0, size - 1)


def next_axis(bottom: Axis, extent: int, stride: int, pad: int, size: int) -> Axis:
    """The axis of `size` after windows of `extent`, `stride` and `pad` on `bottom`.

    Windows that lie within the alike positions make alike ones; all others make the rim.
    """
    core = _core(bottom.core, extent, stride, pad, size)
    first = -(-(bottom.low + pad) // stride)
    last = (bottom.low + bottom.fold + 1 - extent + pad) // stride
    return Axis(size, core, first, last - first) if last > first else Axis(size, core, 0, 0)


def common_axis(axes: Sequence[Axis]) -> Axis:
    """The axis of what is made of several maps of one size, position by position."""
    low, end = max(axis.low for axis in axes), min(axis.low + axis.fold + 1 for axis in axes)
    core = (min(axis.core[0] for axis in axes), max(axis.core[1] for axis in axes))
    return Axis(axes[0].size, core, low, end - low - 1) if end > low else Axis(axes[0].size, core, 0, 0)


def read_span(span: Span, extent: int, stride: int, pad: int) -> Span:
    """What the windows at the positions `span` read; it may reach beyond the map."""
    return span[0] * stride - pad, (span[1] - 1) * stride - pad + extent


def hull(one: Span, other: Span) -> Span:
    """The least span that holds both."""
    return min(one[0], other[0]), max(one[1], other[1])


def _core(core: Span, extent: int, stride: int, pad: int, size: int) -> Span:
    first = (core[0] + pad - extent) // stride + 1
    behind = -(-(core[1] + pad) // stride)
    first = min(max(first, 0), size - 1)
    return first, max(min(behind, size), first + 1)
