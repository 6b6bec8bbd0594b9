"""Where the pixels of one blob lie on another: crop offsets, filled crops, receptive fields.

Built on the maps of `surgery/grid.py`. The crop rule is that of `python/caffe/coord_map.py` of BVLC/caffe at
9b891540: equal scale, an offset that is whole and not negative. Departure: blobs joined only by pointwise
layers have offset 0 instead of an AttributeError.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from caffe_weights.errors import NetError
from surgery.geometry import Layer, conv_window, fail, pool_window
from surgery.grid import (
    CoordMap,
    Graph,
    Net,
    Node,
    NoMapError,
    compose,
    inverse,
    layer_map,
    no_map,
    show_all,
)

__all__ = [
    "Alignment",
    "CoordMap",
    "NoMapError",
    "ReceptiveField",
    "align",
    "align_nodes",
    "compose",
    "crop_alignment",
    "crop_offset",
    "crop_offsets",
    "fill_crops",
    "inverse",
    "map_to_input",
    "offsets_of",
    "receptive_field",
]


@dataclass(frozen=True)
class Alignment:
    """How blob `a` lies on blob `b`: both maps begin at their latest common ancestor."""

    a: str
    b: str
    ancestor: str
    node: Node  # which version of the ancestor
    ancestor_to_a: CoordMap
    ancestor_to_b: CoordMap

    @property
    def a_to_b(self) -> CoordMap:
        """Coordinates of `a` to coordinates of `b`."""
        return compose(self.ancestor_to_b, inverse(self.ancestor_to_a))


@dataclass(frozen=True)
class ReceptiveField:
    """What one unit of a blob sees of an input, in input pixels, (height, width) each.

    `first` is the first pixel seen by unit 0; negative ones lie in the padding. `stride` is the step from
    unit to unit. Where units differ, as behind an up-sampling, `size` is the largest.
    """

    blob: str
    input: str
    size: tuple[int, int]
    stride: tuple[Fraction, Fraction]
    first: tuple[int, int]


def map_to_input(net: Net, input_blob: str | None = None) -> dict[str, CoordMap]:
    """Map of each blob to the input: coordinates of the blob's pixels on the input's grid.

    Without `input_blob` every blob is taken to the first input it descends from. Blobs that do not lie on
    an input's grid are left out. NetError if two paths disagree.
    """
    graph = Graph(net)
    found = {}
    for name, node in graph.final.items():
        back = graph.ancestors(node)
        inputs = _inputs(graph, back, input_blob)
        if inputs:
            found[name] = inverse(graph.agreed(back, inputs[0]))
    return found


def align(net: Net, top_a: str, top_b: str) -> Alignment:
    """How the final versions of two blobs lie on each other; NetError if nothing joins them."""
    graph = Graph(net)
    return align_nodes(graph, graph.node(top_a), graph.node(top_b))


def align_nodes(graph: Graph, a: Node, b: Node) -> Alignment:
    """`align` for two versions of blobs in a graph."""
    from_a, from_b = graph.ancestors(a), graph.ancestors(b)
    common = set(from_a) & set(from_b)
    name_a, name_b = graph.name(a), graph.name(b)
    if not common:
        stops = [str(e) for e in graph.stops(a) + graph.stops(b)]
        raise NetError(
            f"blobs {name_a} and {name_b}",
            "no common ancestor by coordinate maps",
            "two blobs that come from one",
            "; ".join(dict.fromkeys(stops)),
        )
    node = max(common)
    to_a, to_b = graph.agreed(from_a, node), graph.agreed(from_b, node)
    return Alignment(name_a, name_b, graph.name(node), node, to_a, to_b)


def crop_offset(net: Net, top_a: str, top_b: str) -> int:
    """Offset at which a Crop of `top_a` to `top_b` begins, the same for every spatial axis.

    NetError as from `crop_offsets`, and if the axes need different offsets.
    """
    offsets = crop_offsets(net, top_a, top_b)
    if len(offsets) > 1:
        raise NetError(
            f"blobs {top_a} and {top_b}",
            f"offsets {', '.join(map(str, offsets))}",
            "one for all axes",
            "use crop_offsets",
        )
    return offsets[0]


def crop_offsets(net: Net, top_a: str, top_b: str) -> tuple[int, ...]:
    """The same, one value for all spatial axes or one an axis.

    NetError if the blobs differ in scale, if the offset is no whole number, or if it is negative.
    """
    return offsets_of(align(net, top_a, top_b))


def offsets_of(alignment: Alignment) -> tuple[int, ...]:
    """Crop offsets of an alignment; errors as of `crop_offsets`."""
    m = alignment.a_to_b
    where = f"crop of {alignment.a} to {alignment.b}"
    if any(a != 1 for a in m.scale):
        raise NetError(
            where,
            f"a pixel of {alignment.a} spans {show_all(m.scale)} of {alignment.b}",
            "a scale of 1",
            "correct the strides of the up-sampling",
        )
    offsets = [-b for b in m.shift]
    if any(b < 0 for b in offsets):
        raise NetError(
            where,
            f"the offset is {show_all(offsets)}: {alignment.b} begins before {alignment.a}",
            "at least 0",
            "pad more before the first convolution",
        )
    if any(b.denominator != 1 for b in offsets):
        raise NetError(
            where,
            f"the offset is {show_all(offsets)}, between two pixels",
            "a whole number",
            "use an odd kernel in the up-sampling where it is even, or an even one where it is odd"
            if any(b.denominator == 2 for b in offsets)
            else "change kernels and pads on the way",
        )
    return tuple(int(b) for b in offsets)


def fill_crops(net: Net, overwrite: bool = False) -> Net:
    """A new net in which every Crop without crop_param has the offset that aligns it, in net order.

    That is what such a layer meant in the fork of Caffe that early FCN and HED nets were written for; in
    BVLC Caffe it means 0. `overwrite` computes the offsets of all crops. Errors as of `crop_offsets`.
    """
    result = type(net)()
    result.CopyFrom(net)
    for index, layer in enumerate(result.layer):
        if layer.type == "Crop" and (overwrite or not layer.HasField("crop_param")):
            alignment = crop_alignment(Graph(result), index)
            axis = alignment.a_to_b.axis
            offsets = offsets_of(alignment)
            layer.crop_param.Clear()
            layer.crop_param.axis = 2 if axis is None else axis + 1
            layer.crop_param.offset.extend(offsets)
    return result


def crop_alignment(graph: Graph, index: int) -> Alignment:
    """How the bottoms of the Crop layer at `index` lie on each other; NetError unless there are two."""
    if len(graph.bottoms[index]) != 2:
        raise fail(graph.layers[index], f"{len(graph.bottoms[index])} bottoms", "2", "correct bottom")
    return align_nodes(graph, *graph.bottoms[index])


def receptive_field(net: Net, blob: str, input_blob: str | None = None) -> ReceptiveField:
    """The receptive field of a blob on an input, by default the first it descends from.

    NetError if they are not joined, or joined by a layer that sees the whole input.
    """
    graph = Graph(net)
    node = graph.node(blob)
    maps = graph.ancestors(node)
    inputs = _inputs(graph, maps, input_blob)
    if not inputs:
        raise NetError(
            f"blob {blob}",
            f"not on the grid of {input_blob or 'an input'}",
            "a blob computed from it",
            "; ".join(map(str, graph.stops(node))),
        )
    scale = inverse(graph.agreed(maps, inputs[0])).scale
    spans = [_largest_span(graph, node, inputs[0], axis) for axis in (0, 1)]
    (first_h, size_h), (first_w, size_w) = spans
    return ReceptiveField(
        blob, graph.name(inputs[0]), (size_h, size_w), (scale[0], scale[-1]), (first_h, first_w)
    )


def _inputs(graph: Graph, ancestors: Iterable[Node], input_blob: str | None) -> list[Node]:
    """The ancestors that no layer computes, first in the net first, or the one of that name."""
    if input_blob is not None:
        return [node for node in ancestors if node == graph.node(input_blob)]
    return [node for node in sorted(ancestors) if not graph.bottoms[node[0]]]


def _largest_span(graph: Graph, node: Node, target: Node, axis: int) -> tuple[int, int]:
    """First pixel of unit 0, and the largest size over all units."""
    period = 1
    for index, _ in graph.ancestors(node):
        if graph.layers[index].type == "Deconvolution":
            period *= _axis_window(graph.layers[index], axis)[1]
    spans = [_span(graph, node, target, axis, unit) for unit in range(period)]
    return spans[0][0], max(last - first + 1 for first, last in spans)


def _span(graph: Graph, node: Node, target: Node, axis: int, unit: int) -> tuple[int, int]:
    spans = {node: (unit, unit)}
    for here in graph.backwards(spans):
        if here == target or not graph.bottoms[here[0]]:
            continue
        layer = graph.layers[here[0]]
        first, last = _seen(layer, axis, *spans[here])
        for bottom in graph.followed(here):
            low, high = spans.get(bottom, (first, last))
            spans[bottom] = (min(low, first), max(high, last))
    return spans[target]


def _seen(layer: Layer, axis: int, first: int, last: int) -> tuple[int, int]:
    """Pixels of the bottom that units first..last of the top see along one axis."""
    layer_map(layer)
    if layer.type == "MVN":
        raise no_map(layer, "it normalises over the whole map", "remove it from the path")
    if layer.type == "LRN" and layer.lrn_param.norm_region == layer.lrn_param.WITHIN_CHANNEL:
        reach = (layer.lrn_param.local_size - 1) // 2
        return first - reach, last + reach
    if layer.type == "Crop":
        offsets = layer.crop_param.offset or [0]
        offset = offsets[min(axis, len(offsets) - 1)]
        return first + offset, last + offset
    if layer.type not in ("Convolution", "Deconvolution", "Im2col", "Pooling"):
        return first, last
    extent, stride, pad = _axis_window(layer, axis)
    if layer.type == "Deconvolution":
        return -((extent - 1 - pad - first) // stride), (last + pad) // stride
    return first * stride - pad, last * stride - pad + extent - 1


def _axis_window(layer: Layer, axis: int) -> tuple[int, int, int]:
    window = pool_window(layer, None) if layer.type == "Pooling" else conv_window(layer)
    index = min(axis, len(window.kernel) - 1)
    return window.extent[index], window.stride[index], window.pad[index]
