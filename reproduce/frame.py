"""The exact shortcut over the constant border that a large padding makes.

FCNs pad the image by 100, so that 500x500 become 698x698. Most of that border is not worth computing: no
position of it depends on the image. This module finds out which, for any net, and computes the rest. Nothing
is approximated: the same sums are formed, some of them once instead of many times.

The algebra, along rows and columns alike. A map has positions 0 to n - 1; outside of it there are zeros (for
a maximum, nothing). Take a layer whose position o reads the window [o s - p, o s - p + e) of its bottom: e is
the extent of the dilated kernel, s the stride, p the padding.

* The *core* is a rectangle outside of which nothing depends on the image. If [b, c) is the bottom's core, a
  window meets it if o s - p < c and o s - p + e > b: the top's core is [floor((b + p - e) / s) + 1,
  ceil((c + p) / s)), cut to the map. In the image itself the core is all, [0, n). A convolution with p >= e
  thus has a core smaller than its top, and there the shortcut begins.
* Outside of the core the map is that of any other image, so let there be none: all windows of the first
  convolution see zeros only, and its top is its bias everywhere. From then on the *alike* positions [l, h),
  of one value a channel, shrink as windows reach over the map's own zero-padded edge: those of the top are
  [ceil((l + p) / s), floor((h - e + p) / s) + 1). What lies before and behind them is the *rim*, a few
  positions wide and the same for every image.
* A map of n positions of which h - l are alike is told by n - (h - l) + 1 of them. To get it for a top, run
  the very layer on the bottom's map with all alike positions left out but as many as leave the top one: it is
  shorter by a multiple of the stride, so the edges fall as in the whole, ceil pooling and clipped windows
  included. Hence the rims depend on the size of an image only through its remainder by the strides (its
  *class*), as soon as some positions are alike; if none are, the rim is the whole map without an image.
* So a blob is a *region*, a rectangle that holds the core, and a rim. The region of a top is computed from a
  patch, just what its windows read: of the bottom's region where there is one, else of its rim. A layer that
  cannot be followed (`reproduce.frame_rules`) takes the blob assembled, a patch of the size of the map.
* Where a patch is larger than the region, a copy is made. Instead the region may be computed that much larger
  than the core; whichever costs less, by `FLOPS_PER_BYTE`.

Gradients: the parts are functions of the same parameters and the chain rule runs through the copies, so what
the plain way adds up over all alike positions arrives here as one sum. Rims are kept while the parameters are
what they were; with gradients they are made anew in each pass.

Source: the observation is the project's own; sizes follow Caffe through `surgery.geometry`. What differs from
the plain way is the order of additions within a sum (kernels treat maps of other sizes in other blocks). Left
alone: nets without a convolution padded by its whole kernel, blobs whose core is more than `PAYS` of the map,
calls in which less than `LEAST_GAIN` of the arithmetic is saved, and graphs being exported or traced.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from reproduce import blocks
from reproduce.dataflow import Plan, Run, Step
from reproduce.frame_rules import POINT, RULES, Place, find_window
from reproduce.framed import Framed, Layout, Spans, unfold
from reproduce.layers.base import Layer
from reproduce.layers.convolution import Convolution
from surgery.border import Axis, common_axis, first_axis, hull, image_axis, next_axis, read_span
from surgery.geometry import Shape, Window, conv_window
from surgery.shapes import LayerShapes, NetShapes
from surgery.summary import MULTIPLY_ADDS

PAYS = 0.9  # the largest part of a map that its core may be
LEAST_GAIN = 0.03  # the least part of the arithmetic to be saved
FLOPS_PER_BYTE = 20  # arithmetic done in the time of copying a byte, on CPUs and GPUs of about 2020
MOST_SIZES, MOST_RIMS = 256, 16  # layouts and sets of rims that are kept

Axes = tuple[Axis, Axis]
Blobs = Callable[[str], list[Tensor]]
Value = Tensor | Framed


@dataclass(frozen=True)
class Piece:
    """How one layer makes its region: what it reads of each bottom, and where its top's parts lie.

    `first`: its bottom is an image, not framed.
    """

    window: Window
    reads: Spans
    layout: Layout
    first: bool


@dataclass(frozen=True)
class Flops:
    """Floating-point operations (two a multiply-add) of convolutions, deconvolutions and inner products.

    `plain` is what the whole maps need, `regions` what each call does, `rims` what is done once a size class.
    """

    plain: int
    regions: int
    rims: int


@dataclass(frozen=True)
class Framing:
    """The shortcut through one plan for inputs of one size: its layers by name, its class, what it saves."""

    pieces: dict[str, Piece]
    size_class: tuple[object, ...]
    flops: Flops


@dataclass(frozen=True)
class Shortcut:
    """The shortcut in one call: how layers run, and the rims by version, which grow as they do."""

    pieces: dict[str, Piece]
    rims: dict[int, Tensor]

    def takes(self, step: Step) -> bool:
        """Whether this layer makes a framed top."""
        return step.layer.name in self.pieces

    def run(
        self, run: Run, bottoms: Sequence[Value], blobs: list[Tensor], in_place: bool, blocked: bool
    ) -> Framed:
        """The top of a layer, from framed bottoms or from an image.

        `in_place` allows to overwrite them, `blocked` to keep the region in blocks.
        """
        (version,), layer = run.step.tops, run.step.layer
        piece, rule = self.pieces[layer.name], RULES[type(layer)]
        framed = [x if isinstance(x, Framed) else _image(x) for x in bottoms]
        framed = [x.detach() if i in run.step.stops else x for i, x in enumerate(framed)]
        rim = self.rims[version] if version in self.rims else _make_rim(layer, piece, framed, blobs)
        if not torch.is_grad_enabled():  # with gradients a layer may run again, and must do the same
            self.rims[version] = rim
        patches = [x.part(piece.reads, rule.outside(layer)) for x in framed]
        overwrites = in_place and run.overwrites and piece.window == POINT
        region = blocks.run(layer, patches[0], blobs, True, overwrites) if blocked else None
        if region is None:
            patches = [blocks.in_order(patch) for patch in patches]
            if overwrites:
                region = layer.overwrite(patches[0], blobs)
            else:
                region = rule.run(layer, patches, blobs, _place_of(piece, framed[0]))
        return Framed(region, rim, piece.layout)


class Frame:
    """The shortcut of one net: framings by input sizes, rims by size class.

    `wanted` None takes it where it pays, True wherever there is one.
    """

    def __init__(self, wanted: bool | None) -> None:
        self.eager = bool(wanted)
        self._framings: OrderedDict[object, Framing | None] = OrderedDict()
        self._rims: OrderedDict[object, dict[int, Tensor]] = OrderedDict()

    def clear(self) -> None:
        """Forget all rims."""
        self._rims.clear()

    def shortcut(
        self, key: object, plan: Plan, infer: Callable[[], NetShapes], blobs: Blobs, like: Tensor
    ) -> Shortcut | None:
        """The shortcut for one call of `plan` with the sizes that `key` names; None where there is none."""
        if key not in self._framings:
            _bound(self._framings, MOST_SIZES)
            self._framings[key] = make_framing(plan, infer().layers, self.eager)
        framing = self._framings[key]
        return Shortcut(framing.pieces, self.rims(framing, blobs, like)) if framing else None

    def rims(self, framing: Framing, blobs: Blobs, like: Tensor) -> dict[int, Tensor]:
        """Rims by version, as far as they are known for the parameters as they are; to be added to.

        An edit through `tensor.data`, which PyTorch does not count, is noticed by the values, on the CPU.
        """
        used = [blob for name in framing.pieces for blob in blobs(name)]
        if torch.is_grad_enabled() or any(blob.is_inference() for blob in used):
            return {}
        key = (framing.size_class, _state(used), _numbers(like))
        if key not in self._rims:
            _bound(self._rims, MOST_RIMS)
            self._rims[key] = {}
        self._rims.move_to_end(key)
        return self._rims[key]


def may_help(layers: Sequence[Layer]) -> bool:
    """Whether some convolution is padded by at least its kernel, along some axis."""
    windows = [conv_window(layer.definition) for layer in layers if isinstance(layer, Convolution)]
    return any(p >= e for window in windows for p, e in zip(window.pad, window.extent, strict=True))


def count_flops(plan: Plan, found: Mapping[str, LayerShapes], frame: Frame | None) -> Flops:
    """The arithmetic of a plan whose layers have the shapes `found`, as `frame` would run it."""
    framing = make_framing(plan, found, frame.eager) if frame else None
    return framing.flops if framing else _count(plan, found, {})


def whole(value: Value) -> Tensor:
    """A blob as one tensor, which may be in blocks."""
    return value.whole() if isinstance(value, Framed) else value


def plain(value: Value) -> Tensor:
    """A blob as one ordinary tensor."""
    return blocks.in_order(whole(value))


def make_framing(plan: Plan, found: Mapping[str, LayerShapes], eager: bool = False) -> Framing | None:
    """The framing of a plan whose layers have the shapes `found`; None where it would not pay."""
    windows: dict[str, Window] = {}
    axes: dict[int, Axes] = {}
    for run in plan.runs:
        _follow(run.step, found[run.step.layer.name], windows, axes)
    steps = [run.step for run in plan.runs if run.step.layer.name in windows]
    pieces = _place(steps, found, windows, axes)
    flops = _count(plan, found, pieces)
    gain = flops.plain - flops.regions - flops.rims
    if not pieces or not (eager or gain >= LEAST_GAIN * flops.plain):
        return None
    classes = tuple(_class(name, piece, found[name].bottoms[0]) for name, piece in pieces.items())
    return Framing(pieces, classes, flops)


def _class(name: str, piece: Piece, bottom: Shape) -> tuple[object, ...]:
    # what a rim depends on besides the parameters: how it is folded, and the size of the map it is made from
    axes = piece.layout.axes
    made_from = (n - axis.fold * s for n, axis, s in zip(bottom[2:], axes, piece.window.stride, strict=True))
    return name, *((axis.low, axis.kept) for axis in axes), *(() if piece.first else made_from)


def _follow(step: Step, found: LayerShapes, windows: dict[str, Window], axes: dict[int, Axes]) -> None:
    # the first pass, forward: which blobs have a core worth the name
    window = find_window(step.layer, found)
    framed = [axes[version] for version in step.bottoms if version in axes]
    if window is None or len(framed) not in (0, len(step.bottoms)):
        return
    if framed:
        bottoms, after = [common_axis(pair) for pair in zip(*framed, strict=True)], next_axis
    elif isinstance(step.layer, Convolution):
        bottoms, after = [image_axis(n) for n in found.bottoms[0][2:]], first_axis
    else:
        return
    values = zip(bottoms, window.extent, window.stride, window.pad, found.tops[0][2:], strict=True)
    rows, columns = (after(*value) for value in values)
    core = prod(axis.core[1] - axis.core[0] for axis in (rows, columns))
    if core <= PAYS * rows.size * columns.size:
        axes[step.tops[0]] = rows, columns
        windows[step.layer.name] = window


def _place(
    steps: Sequence[Step],
    found: Mapping[str, LayerShapes],
    windows: Mapping[str, Window],
    axes: Mapping[int, Axes],
) -> dict[str, Piece]:
    # the second pass, backward: how much of each blob its readers would like to find in its region
    work = _work(steps, found, windows)
    wanted: dict[int, Spans] = {}
    pieces = {}
    for step in reversed(steps):
        (version,), name = step.tops, step.layer.name
        region = _region(axes[version], wanted.get(version), work[version], found[name].tops[0][1])
        reads = _reads(windows[name], region)
        first = step.bottoms[0] not in axes
        pieces[name] = Piece(windows[name], reads, Layout(axes[version], region), first)
        for bottom in [] if first else step.bottoms:
            inside = _inside(reads, axes[bottom])
            wanted[bottom] = _hulls(wanted.get(bottom, inside), inside)
    return dict(reversed(pieces.items()))


def _region(axes: Axes, wanted: Spans | None, work: float, channels: int) -> Spans:
    core = axes[0].core, axes[1].core
    if wanted is None:
        return core
    larger = _hulls(core, wanted)
    more = _area(larger) - _area(core)
    copied_bytes = 2 * 4 * channels * _area(larger)  # read and written, in float32
    return larger if more * work < FLOPS_PER_BYTE * copied_bytes else core


def _work(
    steps: Sequence[Step], found: Mapping[str, LayerShapes], windows: Mapping[str, Window]
) -> dict[int, float]:
    # floating-point operations that one more position costs, back to the last convolution
    work: dict[int, float] = {}
    for step in steps:
        shapes, window = found[step.layer.name], windows[step.layer.name]
        if isinstance(step.layer, Convolution):
            cost = 2.0 * prod(shapes.params[0])
        else:
            cost = prod(window.stride) * sum(work[version] for version in step.bottoms)
        work[step.tops[0]] = cost
    return work


def _reads(window: Window, region: Spans) -> Spans:
    values = zip(region, window.extent, window.stride, window.pad, strict=True)
    rows, columns = (read_span(*value) for value in values)
    return rows, columns


def _inside(spans: Spans, axes: Axes) -> Spans:
    rows, columns = ((max(s, 0), min(e, axis.size)) for (s, e), axis in zip(spans, axes, strict=True))
    return rows, columns


def _hulls(one: Spans, other: Spans) -> Spans:
    return hull(one[0], other[0]), hull(one[1], other[1])


def _area(spans: Spans) -> int:
    return prod(end - start for start, end in spans)


def _count(plan: Plan, found: Mapping[str, LayerShapes], pieces: Mapping[str, Piece]) -> Flops:
    plain = regions = rims = 0
    for run in plan.runs:
        layer = run.step.layer
        shapes = found[layer.name]
        count = MULTIPLY_ADDS.get(shapes.type)
        whole = 2 * count(shapes) if count else 0
        plain += whole
        if layer.name not in pieces:
            regions += whole
            continue
        layout = pieces[layer.name].layout
        each = whole // prod(axis.size for axis in layout.axes)
        regions += each * _area(layout.region)
        rims += each * prod(axis.kept for axis in layout.axes) // shapes.tops[0][0]
    return Flops(plain, regions, rims)


def _place_of(piece: Piece, bottom: Framed) -> Place:
    (rows, columns), (first_row, first_column) = bottom.layout.axes, (start for start, _ in piece.reads)
    return Place((first_row, first_column), (rows.size, columns.size))


def _image(x: Tensor) -> Framed:
    axes = image_axis(x.shape[2]), image_axis(x.shape[3])
    return Framed(x, x.new_zeros(1, x.shape[1], 1, 1), Layout(axes, (axes[0].core, axes[1].core)))


def _make_rim(layer: Layer, piece: Piece, bottoms: Sequence[Framed], blobs: list[Tensor]) -> Tensor:
    tops = piece.layout.axes
    if piece.first:
        nothing = bottoms[0].rim.expand(-1, -1, *piece.window.extent)
        return layer.forward([nothing], blobs)[0][:, :, :1, :1]
    small = []
    for bottom in bottoms:
        fold = [top.fold * stride for top, stride in zip(tops, piece.window.stride, strict=True)]
        axes = [axis.folded(by) for axis, by in zip(bottom.layout.axes, fold, strict=True)]
        small.append(unfold(bottom.rim, axes, ((0, axes[0].size), (0, axes[1].size))))
    return layer.forward(small, blobs)[0]


def _bound(cache: OrderedDict[object, Any], most: int) -> None:
    while len(cache) >= most:
        cache.popitem(last=False)


def _state(blobs: Sequence[Tensor]) -> tuple[object, ...]:
    counts = tuple((blob.data_ptr(), blob._version) for blob in blobs)
    if any(blob.device.type != "cpu" for blob in blobs):
        return counts  # reading a mark would wait for the device
    return *counts, *torch.stack([_mark(blob) for blob in blobs]).tolist()


def _mark(blob: Tensor) -> Tensor:
    # a product with fixed random numbers: another for other values, and for the same in another order
    rows = blob.reshape(blob.shape[0] if blob.dim() else 1, -1)
    return _random(rows.shape[0], rows.dtype) @ (rows @ _random(rows.shape[1], rows.dtype))


@lru_cache(maxsize=256)
def _random(count: int, dtype: torch.dtype) -> Tensor:
    return (0.5 + torch.rand(count, generator=torch.Generator().manual_seed(count))).to(dtype)


def _numbers(like: Tensor) -> tuple[object, ...]:
    kind = like.device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return like.dtype, like.device, cast
