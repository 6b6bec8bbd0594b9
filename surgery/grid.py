"""How layers move the pixel grid: affine maps in exact fractions, and the data flow they run along.

Every layer that keeps a grid moves it by `x -> scale * x + shift`. Follows the layer table and the walk of
`python/caffe/coord_map.py` of BVLC/caffe at 9b891540 and gives its numbers. Departures: fractions instead of
floats; Concat, Slice, Tile, Softmax, ArgMax, Clip and Swish have maps; `_h` and `_w` fields are followed,
each axis by its own numbers; paths that meet must agree, where Caffe takes whichever it meets first; a layer
without a map is named, with the reason.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from surgery.geometry import Layer, conv_window, fail, pool_window

Net = caffe_pb2.NetParameter
Node = tuple[int, int]  # index of a layer, index of one of its tops: one version of a blob
Values = tuple[Fraction, ...]


@dataclass(frozen=True)
class CoordMap:
    """`x -> scale * x + shift` along the spatial axes, which lie behind `axis`.

    One value when it holds for every axis, else one an axis. `axis` is None for a map that does not care.
    """

    axis: int | None = None
    scale: Values = (Fraction(1),)
    shift: Values = (Fraction(0),)

    def __str__(self) -> str:
        parts = []
        for a, b in zip(*same_length(self.scale, self.shift), strict=True):
            factor = "x" if a == 1 else f"{show(a)} x"
            parts.append(factor if b == 0 else f"{factor} {'+' if b > 0 else '-'} {show(abs(b))}")
        return "x -> " + ", ".join(dict.fromkeys(parts))


class NoMapError(NetError):
    """A layer that keeps no grid: the walk along coordinate maps ends there."""


def make_map(axis: int | None, scale: Sequence[Fraction | int], shift: Sequence[Fraction | int]) -> CoordMap:
    """A CoordMap in its shortest form: equal maps compare equal."""
    a, b = same_length(tuple(map(Fraction, scale)), tuple(map(Fraction, shift)))
    if len(set(a)) == 1 and len(set(b)) == 1:
        a, b = a[:1], b[:1]
    return CoordMap(axis, a, b)


def compose(outer: CoordMap, inner: CoordMap) -> CoordMap:
    """`outer` after `inner`. NetError if their spatial axes do not begin at the same place."""
    if None not in (outer.axis, inner.axis) and outer.axis != inner.axis:
        raise NetError(
            "coordinate map",
            f"axis {outer.axis} after axis {inner.axis}",
            "the same axis",
            "give convolutions and crops the same spatial axes",
        )
    axis = inner.axis if outer.axis is None else outer.axis
    a1, b1, a2, b2 = same_length(outer.scale, outer.shift, inner.scale, inner.shift)
    scale = [p * q for p, q in zip(a1, a2, strict=True)]
    return make_map(axis, scale, [p * r + s for p, r, s in zip(a1, b2, b1, strict=True)])


def inverse(m: CoordMap) -> CoordMap:
    """The map that undoes `m`."""
    a, b = same_length(m.scale, m.shift)
    return make_map(m.axis, [1 / p for p in a], [-q / p for p, q in zip(a, b, strict=True)])


def layer_map(layer: Layer) -> CoordMap:
    """Coordinates of a layer's bottom to those of its top. NoMapError, with the reason, if it has none."""
    if layer.type in PASS_THROUGH:
        return CoordMap()
    if layer.type in GRID_LAYERS:
        return GRID_LAYERS[layer.type](layer)
    raise no_map(layer, "it keeps no grid of pixels", "remove it from the path, or make it a convolution")


class Graph:
    """The data flow of a net: which version of each blob every layer reads."""

    def __init__(self, net: Net) -> None:
        self.layers = list(net.layer)
        self.bottoms: list[list[Node]] = []
        self.final: dict[str, Node] = {}
        for index, layer in enumerate(self.layers):
            for name in layer.bottom:
                if name not in self.final:
                    raise fail(
                        layer,
                        f"bottom {name} is no top of a layer before it",
                        "a blob made earlier",
                        "correct bottom",
                    )
            self.bottoms.append([self.final[name] for name in layer.bottom])
            self.final.update({name: (index, i) for i, name in enumerate(layer.top)})

    def node(self, blob: str) -> Node:
        """The final version of a blob; NetError if there is none."""
        if blob not in self.final:
            raise NetError(
                f"blob {blob}", "not in the net", "one of " + ", ".join(self.final), "correct the name"
            )
        return self.final[blob]

    def name(self, node: Node) -> str:
        """The blob's name."""
        return self.layers[node[0]].top[node[1]]

    def followed(self, node: Node) -> list[Node]:
        """Bottoms on whose grid a top lies: the first one, but all of an Eltwise or Concat."""
        index, top = node
        bottoms, kind = self.bottoms[index], self.layers[index].type
        if kind in ("Eltwise", "Concat"):
            return bottoms
        return bottoms[top : top + 1] if kind in ("Convolution", "Deconvolution") else bottoms[:1]

    def step(self, node: Node) -> CoordMap | None:
        """The map of the layer that makes a blob; None for a source, or a layer without a map."""
        try:
            return layer_map(self.layers[node[0]]) if self.bottoms[node[0]] else None
        except NoMapError:
            return None

    def ancestors(self, start: Node) -> dict[Node, tuple[CoordMap, str]]:
        """Maps from all blobs that `start` descends from to `start`, each with a quarrel of paths, or ''."""
        found = {start: (CoordMap(), "")}
        for node in self.backwards(found):
            m, quarrel = found[node]
            step = self.step(node)
            if step is None:
                continue
            new = compose(m, step)
            for bottom in self.followed(node):
                old, before = found.setdefault(bottom, (new, quarrel))
                clash = (
                    ""
                    if _agree(old, new)
                    else (
                        f"{self.name(bottom)} to {self.name(start)} is {old}, "
                        f"by way of {self.layers[node[0]].name} {new}"
                    )
                )
                found[bottom] = (old, before or quarrel or clash)
        return found

    def agreed(self, maps: dict[Node, tuple[CoordMap, str]], node: Node) -> CoordMap:
        """The map of one ancestor; NetError if paths from it disagree."""
        m, quarrel = maps[node]
        if quarrel:
            raise NetError(
                "coordinate map",
                f"two paths disagree: {quarrel}",
                "the same map on every path",
                "crop or pad the branches so that they line up",
            )
        return m

    def stops(self, start: Node) -> list[NoMapError]:
        """Why the walk from a blob ends where it does, before an input."""
        errors = []
        for node in self.ancestors(start):
            try:
                if self.bottoms[node[0]]:
                    layer_map(self.layers[node[0]])
            except NoMapError as error:
                errors.append(error)
        return errors

    def backwards(self, found: Mapping[Node, object]) -> Iterator[Node]:
        """Nodes of `found`, last in the net first; bottoms that the caller adds on the way come too."""
        waiting = [(-index, -top) for index, top in found]
        queued = set(found)
        while waiting:
            index, top = heapq.heappop(waiting)
            yield -index, -top
            for node in self.followed((-index, -top)):
                if node in found and node not in queued:
                    queued.add(node)
                    heapq.heappush(waiting, (-node[0], -node[1]))


def no_map(layer: Layer, reason: str, do: str) -> NoMapError:
    """The error of a layer without a coordinate map."""
    return NoMapError(f"layer {layer.name} ({layer.type})", f"no coordinate map: {reason}", "", do)


def same_length(*columns: Values) -> list[Values]:
    """Tuples of one value repeated to the length of the longest."""
    length = max(map(len, columns))
    return [c * length if len(c) == 1 else c for c in columns]


def show(value: Fraction) -> str:
    """A fraction as a person writes it: 12.5, 3, 1/3."""
    return str(value) if 2**10 % value.denominator else f"{float(value):g}"


def show_all(values: Sequence[Fraction]) -> str:
    """One value, or one for each axis with ' x ' between them."""
    return " x ".join(map(show, values))


def _window_map(layer: Layer) -> CoordMap:
    if layer.type == "Pooling":
        if layer.pooling_param.global_pooling:
            raise no_map(layer, "global pooling has no fixed window", "give it a kernel_size")
        axis, window = 1, pool_window(layer, None)
    else:
        axis, window = layer.convolution_param.axis, conv_window(layer)
    spans = [Fraction(k - 1, 2) for k in window.extent]
    if layer.type == "Deconvolution":
        return make_map(axis, window.stride, [h - p for h, p in zip(spans, window.pad, strict=True)])
    pairs = list(zip(spans, window.stride, window.pad, strict=True))
    return make_map(axis, [Fraction(1, s) for _, s, _ in pairs], [(p - h) / s for h, s, p in pairs])


def _crop_map(layer: Layer) -> CoordMap:
    p = layer.crop_param
    return make_map(p.axis - 1, [1], [-n for n in p.offset] or [0])


def _channel_map(layer: Layer) -> CoordMap:
    """Layers that work along one axis: no map if that axis is spatial."""
    field, old = {
        "Concat": ("concat_param", "concat_dim"),
        "Slice": ("slice_param", "slice_dim"),
        "Tile": ("tile_param", ""),
        "ArgMax": ("argmax_param", ""),
    }[layer.type]
    p = getattr(layer, field)
    axis = getattr(p, old) if old and p.HasField(old) else p.axis
    if layer.type == "ArgMax" and not p.HasField("axis"):
        raise no_map(layer, "it looks for the maximum over whole items", "set axis: 1")
    if axis not in (0, 1, -3, -4):
        raise no_map(layer, f"it works along axis {axis}, a spatial one", "use axis 1")
    return CoordMap()


def _agree(a: CoordMap, b: CoordMap) -> bool:
    return (a.scale, a.shift) == (b.scale, b.shift) and (None in (a.axis, b.axis) or a.axis == b.axis)


PASS_THROUGH = frozenset(
    (
        "AbsVal",
        "BatchNorm",
        "Bias",
        "BN",
        "BNLL",
        "Clip",
        "Dropout",
        "ELU",
        "Eltwise",
        "Exp",
        "Log",
        "LRN",
        "MVN",
        "Power",
        "PReLU",
        "ReLU",
        "Scale",
        "Sigmoid",
        "Softmax",
        "Split",
        "Swish",
        "TanH",
        "Threshold",
    )
)
GRID_LAYERS: dict[str, Callable[[Layer], CoordMap]] = {
    "Convolution": _window_map,
    "Deconvolution": _window_map,
    "Im2col": _window_map,
    "Pooling": _window_map,
    "Crop": _crop_map,
    **dict.fromkeys(("ArgMax", "Concat", "Slice", "Tile"), _channel_map),
}
