"""What each layer of a net makes, holds, costs and sees, from the definition alone.

Sizes, counts and geometry come from `shapes` and `coordinates`. A multiply-add is one multiplication with its
addition in a Convolution, Deconvolution or InnerProduct, biases apart, counted as Caffe computes them: over
the padded border too, and over every kernel weight, also those of an up-sampling layer that are zero. Layers
that do other arithmetic are named as uncounted; those that only move or choose values have none.
Activation memory is what Caffe keeps in a forward pass: every top that is not its bottom (a layer in place
makes none, a Split shares), 4 bytes a value; training keeps gradients of the same size besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod

from caffe_weights.errors import NetError
from surgery.coordinates import CoordMap, map_to_input, receptive_field
from surgery.geometry import Layer, Shape
from surgery.grid import Graph, layer_map
from surgery.shapes import LayerShapes, Net, NetShapes, data_types, infer_shapes

VALUE_BYTES = 4
UP_SAMPLING = "Deconvolution"

# multiply-adds of a layer from its shapes; weights are (out, in / group, *kernel), for a Deconvolution
# (in, out / group, *kernel)
MULTIPLY_ADDS: dict[str, Callable[[LayerShapes], int]] = {
    "Convolution": lambda s: sum(map(prod, s.tops)) * prod(s.params[0][1:]),
    "Deconvolution": lambda s: sum(map(prod, s.bottoms)) * prod(s.params[0][1:]),
    "InnerProduct": lambda s: prod(s.tops[0]) * prod(s.params[0]) // s.tops[0][-1],
}
NO_ARITHMETIC = frozenset((
    "ArgMax", "BatchReindex", "Concat", "Crop", "Dropout", "Filter", "Flatten", "Im2col", "Input", "ReLU",
    "Reshape", "Silence", "Slice", "Split", "Tile", "Unpooling", "Upsample"))  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One layer. `parameters` leaves out blobs that an earlier layer owns.

    Geometry is that of the first top on the first input it descends from, (height, width) each: the receptive
    field's size, the step from unit to unit and the place of unit 0's centre, in input pixels; None where
    the layer keeps no grid.
    """

    name: str
    type: str
    shapes: tuple[Shape, ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int
    receptive_field: tuple[int, int] | None = None
    stride: tuple[Fraction, Fraction] | None = None
    offset: tuple[Fraction, Fraction] | None = None


@dataclass(frozen=True)
class Summary:
    """All layers, and the types among them whose arithmetic is not counted."""

    rows: tuple[Row, ...]
    uncounted: tuple[str, ...] = field(default=())

    @property
    def parameters(self) -> int:
        """Values in all parameters."""
        return sum(row.parameters for row in self.rows)

    @property
    def up_sampling_parameters(self) -> int:
        """Those of them in Deconvolution layers."""
        return sum(row.parameters for row in self.rows if row.type == UP_SAMPLING)

    @property
    def statistics(self) -> int:
        """Those of them that no solver moves: BatchNorm's averages and their factor."""
        return sum(row.parameters for row in self.rows if row.type == "BatchNorm")

    @property
    def multiply_adds(self) -> int:
        """Of all layers that are counted."""
        return sum(row.multiply_adds for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """What one forward pass keeps."""
        return sum(row.activation_bytes for row in self.rows)


def summarize(net: Net, input_shapes: Mapping[str, Shape] | None = None) -> Summary:
    """The summary of a filtered V2 net; `input_shapes` and errors as of `infer_shapes`."""
    shapes = infer_shapes(net, input_shapes)
    maps = _maps(net)
    owned: set[str] = set()
    partial = _partial(net)
    rows = tuple(_row(net, layer, shapes, maps, owned, partial) for layer in net.layer)
    sources = data_types() | {"Input"}
    known = MULTIPLY_ADDS.keys() | NO_ARITHMETIC | sources
    uncounted = dict.fromkeys(_kind(layer) for layer in net.layer)
    return Summary(rows, tuple(kind for kind in uncounted if kind not in known))


def _row(
    net: Net,
    layer: Layer,
    shapes: NetShapes,
    maps: Mapping[str, CoordMap],
    owned: set[str],
    partial: set[str],
) -> Row:
    found = shapes.layers[layer.name]
    own = [top not in layer.bottom and layer.type != "Split" for top in layer.top]
    values = sum(prod(shape) for shape, mine in zip(found.tops, own, strict=False) if mine)
    count = MULTIPLY_ADDS.get(layer.type)
    field_size, stride, offset = _geometry(net, layer, found, maps, layer.name not in partial)
    return Row(layer.name, layer.type, found.tops, _parameters(layer, found, owned),
               count(found) if count else 0, VALUE_BYTES * values, field_size, stride, offset)  # fmt: skip


def _parameters(layer: Layer, found: LayerShapes, owned: set[str]) -> int:
    total = 0
    for index, shape in enumerate(found.params):
        name = layer.param[index].name if index < len(layer.param) else ""
        if not name or name not in owned:
            total += prod(shape)
        owned.add(name)
    return total


def _geometry(
    net: Net, layer: Layer, found: LayerShapes, maps: Mapping[str, CoordMap], whole: bool
) -> tuple[tuple[int, int] | None, tuple[Fraction, Fraction] | None, tuple[Fraction, Fraction] | None]:
    top = layer.top[0] if layer.top else ""
    if top not in maps or len(found.tops[0]) != 4:
        return None, None, None
    scale, shift = maps[top].scale, maps[top].shift
    stride, offset = (scale[0], scale[-1]), (shift[0], shift[-1])
    if not whole:
        return None, stride, offset
    try:
        return receptive_field(net, top).size, stride, offset
    except NetError:  # a layer on the way that sees the whole map
        return None, stride, offset


def _partial(net: Net) -> set[str]:
    """Layers that lie on an input's grid on one way and on another see it through a layer without a map."""
    graph, found = Graph(net), set()
    for index, layer in enumerate(graph.layers):
        nodes = {node for top in range(len(layer.top)) for node in graph.followed((index, top))}
        if graph.bottoms[index] and (
            not _has_map(layer) or any(graph.layers[node[0]].name in found for node in nodes)
        ):
            found.add(layer.name)
    return found


def _has_map(layer: Layer) -> bool:
    try:
        layer_map(layer)
    except NetError:
        return False
    return True


def _maps(net: Net) -> dict[str, CoordMap]:
    try:
        return map_to_input(net)
    except NetError:  # two paths disagree: no grid to speak of
        return {}


def _kind(layer: Layer) -> str:
    if layer.type != "Pooling":
        return layer.type
    return "Input" if layer.pooling_param.pool == layer.pooling_param.MAX else "Pooling (AVE)"
