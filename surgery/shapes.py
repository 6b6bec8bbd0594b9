"""Shapes of every blob and parameter of a net, from its definition alone.

Follows `Net::Init` and `Net::AppendParam` in `src/caffe/net.cpp` of BVLC/caffe at 9b891540 and, through
the table below, each layer's own rules. Integer arithmetic on tuples: no array is made. Departures: two
layers of one name, and a blob of no values, are errors at once; in Caffe they fail later or quietly.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from surgery import array_shapes as arrays
from surgery import fork_shapes as forks
from surgery import layer_shapes as layers
from surgery import loss_shapes as losses
from surgery.geometry import Layer, Shape, check_count, dims, fail

Net = caffe_pb2.NetParameter
Shapes = tuple[Shape, ...]

MANY = 1 << 30


class LayerRule(NamedTuple):
    """How to infer a layer type, and the least and most bottoms and tops it takes."""

    infer: layers.Rule
    bottoms: tuple[int, int] = (1, 1)
    tops: tuple[int, int] = (1, 1)


LAYER_RULES: dict[str, LayerRule] = {
    **{
        name: LayerRule(layers.same)
        for name in (
            "AbsVal",
            "BNLL",
            "Clip",
            "ELU",
            "Power",
            "ReLU",
            "Sigmoid",
            "Swish",
            "TanH",
            "Threshold",
        )
    },
    "Accuracy": LayerRule(losses.accuracy, (2, 2), (1, 2)),
    "ArgMax": LayerRule(arrays.arg_max),
    "BatchNorm": LayerRule(layers.batch_norm),
    "BatchReindex": LayerRule(arrays.batch_reindex, (2, 2)),
    "Bias": LayerRule(layers.bias, (1, 2)),
    "BN": LayerRule(forks.bn, (1, 1), (1, 3)),
    "Concat": LayerRule(arrays.concat, (1, MANY)),
    "ContrastiveLoss": LayerRule(losses.contrastive_loss, (3, 3), (0, 1)),
    "Convolution": LayerRule(layers.convolution, (1, MANY), (1, MANY)),
    "Crop": LayerRule(arrays.crop, (2, 2)),
    "Deconvolution": LayerRule(layers.convolution, (1, MANY), (1, MANY)),
    "Dropout": LayerRule(layers.dropout),
    "DummyData": LayerRule(losses.dummy_data, (0, 0), (1, MANY)),
    "Eltwise": LayerRule(layers.eltwise, (2, MANY)),
    "EltwiseAccuracy": LayerRule(forks.eltwise_accuracy, (2, 2)),
    "Embed": LayerRule(layers.embed),
    "EuclideanLoss": LayerRule(losses.paired_loss, (2, 2), (0, 1)),
    "Exp": LayerRule(layers.logarithmic),
    "Filter": LayerRule(arrays.filter_items, (2, MANY), (1, MANY)),
    "Flatten": LayerRule(arrays.flatten),
    "HDF5Output": LayerRule(arrays.hdf5_output, (2, 2), (0, 0)),
    "HingeLoss": LayerRule(losses.hinge_loss, (2, 2), (0, 1)),
    "Im2col": LayerRule(layers.im2col),
    "InfogainLoss": LayerRule(losses.label_loss, (2, 3), (0, 2)),
    "InnerProduct": LayerRule(layers.inner_product),
    "Interp": LayerRule(layers.interp, (1, 2)),
    "Log": LayerRule(layers.logarithmic),
    "LRN": LayerRule(layers.lrn),
    "LSTM": LayerRule(losses.recurrent, (2, 5), (1, 3)),
    "LSTMUnit": LayerRule(losses.lstm_unit, (3, 3), (2, 2)),
    "MultinomialLogisticLoss": LayerRule(losses.multinomial_loss, (2, 2), (0, 1)),
    "MVN": LayerRule(layers.mvn),
    "Parameter": LayerRule(losses.parameter, (0, 0)),
    "Pooling": LayerRule(layers.pooling, (1, 1), (1, 2)),
    "PReLU": LayerRule(layers.prelu),
    "Reduction": LayerRule(arrays.reduction),
    "Reshape": LayerRule(arrays.reshape),
    "RNN": LayerRule(losses.recurrent, (2, 4), (1, 2)),
    "Scale": LayerRule(layers.scale, (1, 2)),
    "SigmoidCrossEntropyLoss": LayerRule(losses.paired_loss, (2, 2), (0, 1)),
    "Silence": LayerRule(arrays.nothing, (1, MANY), (0, 0)),
    "Slice": LayerRule(arrays.slices, (1, 1), (1, MANY)),
    "Softmax": LayerRule(layers.softmax),
    "SoftmaxWithLoss": LayerRule(losses.label_loss, (2, 2), (0, 2)),
    "Split": LayerRule(arrays.copies, (1, 1), (1, MANY)),
    "SPP": LayerRule(layers.spp),
    "Tile": LayerRule(arrays.tile),
    "Unpooling": LayerRule(forks.unpooling, (1, 2)),
    "Upsample": LayerRule(forks.upsample, (2, 2)),
}

# Python layers that compute, by module and layer: whoever registers a class for one enters its rule.
PYTHON_RULES: dict[tuple[str, str], LayerRule] = {
    ("reproduce.layers", "DropPath"): LayerRule(layers.counted),
}

# Tops of these come from outside the net. Numbers of tops as Caffe takes them.
SOURCES: dict[str, tuple[int, int]] = {
    "Data": (1, 2),
    "DenseImageData": (2, 2),
    "HDF5Data": (1, MANY),
    "ImageData": (2, 2),
    "ImageSegData": (1, 3),
    "Input": (1, MANY),
    "MemoryData": (2, 2),
    "Python": (0, MANY),
    "WindowData": (2, 2),
    "WindowSegData": (1, 3),
}


@dataclass(frozen=True)
class LayerShapes:
    """Shapes at one layer: bottoms as it sees them, tops as it leaves them, parameters in Caffe's order."""

    name: str
    type: str
    bottoms: Shapes
    tops: Shapes
    params: Shapes

    @property
    def param_count(self) -> int:
        """Number of values in all parameter blobs; shared ones are counted at every sharer."""
        return sum(map(prod, self.params))


@dataclass
class NetShapes:
    """Shapes of a net: its layers in order, and the final version of every blob."""

    layers: dict[str, LayerShapes] = field(default_factory=dict)
    blobs: dict[str, Shape] = field(default_factory=dict)


def known_types() -> frozenset[str]:
    """Names of all layer types of Caffe 1.0, and of those of its forks that are run here."""
    return frozenset(LAYER_RULES) | frozenset(SOURCES)


def data_types() -> frozenset[str]:
    """Layer types that bring data in from outside, Python among them, but not Input."""
    return frozenset(SOURCES) - {"Input"}


def find_rule(layer: Layer) -> LayerRule | None:
    """The rule of a layer, None for one whose tops come from outside: an Input, data or Python layer."""
    if layer.type == "Python":
        return PYTHON_RULES.get((layer.python_param.module, layer.python_param.layer))
    return LAYER_RULES.get(layer.type)


def is_source(layer: Layer) -> bool:
    """Whether the tops of a layer come from outside the net."""
    return layer.type in SOURCES and find_rule(layer) is None


def infer_shapes(net: Net, input_shapes: Mapping[str, Shape] | None = None) -> NetShapes:
    """Shapes of all layers and blobs of a filtered V2 net.

    `input_shapes` gives the shape of blobs that come from outside (Input, data and Python layers) and wins
    over what the definition says. NetError for anything Caffe would refuse.
    """
    if net.layers or net.input:
        raise NetError(
            "net", "an old form (layers or input fields)", "a net of today's form", "upgrade it first"
        )
    given = {name: tuple(int(n) for n in shape) for name, shape in (input_shapes or {}).items()}
    check_given(net, given)
    result, owners = NetShapes(), {}  # type: NetShapes, dict[str, tuple[str, Shape]]
    for layer in net.layer:
        if layer.name in result.layers:
            raise fail(layer, "a second layer of this name", "one name a layer", "rename one of them")
        shapes = _infer_layer(layer, result.blobs, given)
        _check_params(layer, shapes.params, owners)
        result.layers[layer.name] = shapes
        result.blobs.update(zip(layer.top, shapes.tops, strict=False))
    return result


def needed_inputs(net: Net) -> tuple[str, ...]:
    """Blobs whose shape the definition does not give: `infer_shapes` wants them in `input_shapes`.

    The labels of Data, ImageData and WindowData layers are among them, but follow from the images' shape.
    """
    return tuple(
        top
        for layer in net.layer
        if is_source(layer)
        for top, shape in zip(layer.top, declared_shapes(layer), strict=True)
        if shape is None
    )


def declared_shapes(layer: Layer) -> Sequence[Shape | None]:
    """Shapes of the tops of an Input or data layer as the definition gives them, None where it does not."""
    if layer.type == "Input" and layer.input_param.shape:
        return losses.spread(layer, [tuple(s.dim) for s in layer.input_param.shape])
    p = layer.memory_data_param
    if layer.type == "MemoryData" and p.batch_size and p.channels and p.height and p.width:
        return [(p.batch_size, p.channels, p.height, p.width), (p.batch_size,)][: len(layer.top)]
    return [None] * len(layer.top)


def check_given(net: Net, given: Mapping[str, Shape]) -> None:
    """NetError if a name in `given` is no top of an Input, data or Python layer."""
    sources = [top for layer in net.layer if is_source(layer) for top in layer.top]
    for name in given:
        if name not in sources:
            raise NetError(
                f"input_shapes: blob {name}",
                "no Input or data layer makes it",
                " or ".join(sources) or "a net with inputs",
                "correct the name",
            )


def _infer_layer(layer: Layer, blobs: Mapping[str, Shape], given: Mapping[str, Shape]) -> LayerShapes:
    bottoms = tuple(_bottom(layer, name, blobs) for name in layer.bottom)
    check_counts(layer)
    rule = find_rule(layer)
    if rule is None:
        tops, params = _source_tops(layer, given), ()  # type: Shapes, Shapes
    else:
        tops, params = rule.infer(layer, bottoms)
    for i, shape in enumerate(tops):
        check_count(layer, f"top {layer.top[i] if i < len(layer.top) else i}", shape)
    for i, shape in enumerate(params):
        check_count(layer, f"parameter {i}", shape)
    _check_tops(layer, bottoms, tops, blobs)
    return LayerShapes(layer.name, layer.type, bottoms, tops, params)


def _check_type(layer: Layer) -> None:
    known = known_types()
    if layer.type in known:
        return
    lower = {name.lower(): name for name in known}
    near = [lower[name] for name in difflib.get_close_matches(layer.type.lower(), lower, n=3, cutoff=0.5)]
    wanted = " or ".join(near) if near else "one of " + ", ".join(sorted(known))
    raise fail(layer, f"unknown layer type {layer.type!r}", wanted, "correct type")


def _bottom(layer: Layer, name: str, blobs: Mapping[str, Shape]) -> Shape:
    if name not in blobs:
        near = difflib.get_close_matches(name, blobs, n=3)
        raise fail(
            layer,
            f"bottom {name} is no top of a layer before it",
            " or ".join(near) if near else "a blob made earlier",
            "correct bottom",
        )
    return blobs[name]


def check_counts(layer: Layer) -> None:
    """NetError for an unknown type, or a number of bottoms, tops or loss weights that it does not take."""
    _check_type(layer)
    rule = find_rule(layer)
    if rule is None:
        bottoms, tops = (0, MANY if layer.type == "Python" else 0), SOURCES[layer.type]
    else:
        _, bottoms, tops = rule
    for what, count, (low, high) in (("bottom", len(layer.bottom), bottoms), ("top", len(layer.top), tops)):
        if not low <= count <= high:
            wanted = f"{low}" if low == high else f"at least {low}" if high == MANY else f"{low} to {high}"
            raise fail(layer, f"{count} {what}s", wanted, f"correct {what}")
    weights = len(layer.top) or int(layer.type.endswith("Loss"))  # a loss without a top gets one
    for name, wanted_count in (("loss_weight", weights), ("propagate_down", len(layer.bottom))):
        count = len(getattr(layer, name))
        if count not in (0, wanted_count):
            raise fail(layer, f"{count} values of {name}", f"none or {wanted_count}")


def _check_tops(layer: Layer, bottoms: Shapes, tops: Shapes, blobs: Mapping[str, Shape]) -> None:
    for i, name in enumerate(layer.top):
        if i < len(bottoms) and layer.bottom[i] == name:
            if tops[i] != bottoms[i]:
                raise fail(
                    layer,
                    f"top {name} replaces its bottom but is {dims(tops[i])}",
                    f"{dims(bottoms[i])}",
                    "rename the top",
                )
        elif name in blobs or name in layer.top[:i]:
            raise fail(
                layer, f"top {name} is already the top of another layer", "another name", "rename the top"
            )


def _check_params(layer: Layer, params: Shapes, owners: dict[str, tuple[str, Shape]]) -> None:
    """Blob names of `param`: the first user owns, later ones must have its shape or count."""
    if len(layer.param) > len(params) and layer.type != "Python":
        raise fail(
            layer,
            f"{len(layer.param)} param entries for {len(params)} parameter blobs",
            f"at most {len(params)}",
            "remove the rest",
        )
    for i, (spec, shape) in enumerate(zip(layer.param, params, strict=False)):
        owner, owned = owners.setdefault(spec.name, (layer.name, shape)) if spec.name else (layer.name, shape)
        loose = spec.share_mode == spec.PERMISSIVE
        if (prod(owned) != prod(shape)) if loose else (owned != shape):
            raise fail(
                layer,
                f"parameter {i} shares {spec.name} but is {dims(shape)}",
                f"{dims(owned)} as in layer {owner}",
                "rename it in param",
            )


def _source_tops(layer: Layer, given: Mapping[str, Shape]) -> Shapes:
    tops: list[Shape] = []
    for i, (name, shape) in enumerate(zip(layer.top, declared_shapes(layer), strict=True)):
        shape = given.get(name, shape)
        if shape is None and i == 1 and layer.type in ("Data", "ImageData", "WindowData"):
            shape = tops[0][:1]  # one label an item
        if shape is None:
            raise fail(
                layer,
                f"no shape for blob {name}",
                "its sizes, such as 1x3x500x500",
                f"pass input_shapes={{{name!r}: ...}} or --size",
            )
        tops.append(shape)
    return tuple(tops)
