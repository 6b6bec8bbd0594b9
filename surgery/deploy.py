"""The deploy form of a net: inputs declared, everything that serves training dropped.

What goes: data layers (an Input layer stands for those still needed), losses, Accuracy, HDF5Output, Silence,
and the layers that only feed their labels. What a loss or Accuracy judged, its first bottom, becomes an
output. Everything else is kept to the field, as in the one deploy net published with FCN (voc-fcn8s at
commit 1305c73 of fcn.berkeleyvision.org), which also left out Dropout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from surgery.geometry import Layer, Shape, fail
from surgery.grid import Graph, Node
from surgery.shapes import check_given, data_types, declared_shapes

Net = caffe_pb2.NetParameter

# Layers that end a path in training, with the number of leading bottoms that are the net's own answers.
TRAINING_ENDS = {
    "Accuracy": 1,
    "ContrastiveLoss": 2,
    "EltwiseAccuracy": 1,
    "EuclideanLoss": 1,
    "HDF5Output": 0,
    "HingeLoss": 1,
    "InfogainLoss": 1,
    "MultinomialLogisticLoss": 1,
    "SigmoidCrossEntropyLoss": 1,
    "Silence": 0,
    "SoftmaxWithLoss": 1,
}


def deploy_net(
    net: Net,
    input_shapes: Mapping[str, Shape] | None = None,
    keep_dropout: bool = True,
    loss_to_softmax: bool = False,
) -> Net:
    """A new net for inference, of a filtered V2 net of either phase.

    Shapes of the declared inputs come from `input_shapes`, else from the data layer where it tells them, with
    one item a batch. Without `keep_dropout` Dropout layers go too, and readers of their tops read their
    bottoms. `loss_to_softmax` puts a Softmax named prob in the place of the only SoftmaxWithLoss. NetError if
    an input's shape is not known, or if no layer is left.
    """
    work = _copy(net, net.layer)
    if loss_to_softmax:
        _replace_loss(work)
    if not keep_dropout:
        _drop_dropout(work)
    graph = Graph(work)
    result = subnet(work, _answers(graph), input_shapes)
    if all(layer.type == "Input" for layer in result.layer):
        raise NetError(
            "net",
            "no layer leads to an output",
            "a layer that is not only for training",
            "keep the net as it is",
        )
    return result


def subnet(net: Net, wanted: Iterable[Node], input_shapes: Mapping[str, Shape] | None = None) -> Net:
    """A new net of the layers that some versions of blobs need, with its inputs declared."""
    check_given(net, input_shapes or {})
    live = _needed(Graph(net), wanted)
    result = _copy(net, [])
    result.ClearField("state")
    for index, layer in enumerate(net.layer):
        tops = [layer.top[top] for i, top in sorted(live) if i == index]
        if tops and (layer.type == "Input" or _is_data(layer)):
            _declare(result, layer, tops, input_shapes or {})
        elif tops:
            kept = result.layer.add()
            kept.CopyFrom(layer)
            for field in ("include", "exclude", "phase"):
                kept.ClearField(field)
    _name_inputs(result)
    return result


def _copy(net: Net, layers: Iterable[Layer]) -> Net:
    result = caffe_pb2.NetParameter()
    kept = list(layers)
    for field, value in net.ListFields():
        if field.name != "layer":
            if field.is_repeated or field.message_type:
                getattr(result, field.name).MergeFrom(value)
            else:
                setattr(result, field.name, value)
    result.layer.extend(kept)
    return result


def _is_data(layer: Layer) -> bool:
    return layer.type in data_types() and not layer.bottom


def _answers(graph: Graph) -> list[Node]:
    """Blobs that nothing reads but what ends in training, or that nothing reads at all."""
    ends = _training_layers(graph)
    read, judged = set(), set()  # type: set[Node], set[Node]
    for index, bottoms in enumerate(graph.bottoms):
        if index not in ends:
            read.update(bottoms)
            continue
        layer = graph.layers[index]
        judged.update(bottoms[: TRAINING_ENDS.get(layer.type, 0)])
        read.update(set(bottoms) - judged)
    answers = []
    for index, layer in enumerate(graph.layers):
        if index not in ends and layer.type != "Input" and not _is_data(layer):
            answers += [(index, top) for top in range(len(layer.top))]
    return [node for node in answers if node not in read]


def _training_layers(graph: Graph) -> set[int]:
    """Layers that end in training, and those that read their tops."""
    ends: set[int] = set()
    for index, layer in enumerate(graph.layers):
        if layer.type in TRAINING_ENDS or any(bottom[0] in ends for bottom in graph.bottoms[index]):
            ends.add(index)
    return ends


def _needed(graph: Graph, wanted: Iterable[Node]) -> set[Node]:
    live: set[Node] = set()
    waiting = list(wanted)
    while waiting:
        node = waiting.pop()
        if node in live:
            continue
        live.add(node)
        waiting += graph.bottoms[node[0]]
    return live


def _declare(result: Net, source: Layer, tops: list[str], given: Mapping[str, Shape]) -> None:
    known = dict(zip(source.top, declared_shapes(source), strict=True))
    layer = result.layer.add(name=source.name if source.type == "Input" else "", type="Input", top=tops)
    for top in tops:
        shape = given.get(top) or known[top] or _item_shape(source, top)
        layer.input_param.shape.add(dim=shape)


def _item_shape(layer: Layer, top: str) -> Shape:
    """Shape of one item as a data layer makes it: a square crop of a known number of channels."""
    t = layer.transform_param
    size = t.crop_size or layer.data_param.crop_size or layer.image_data_param.crop_size
    size = size or layer.window_data_param.crop_size
    height, width = (
        (size, size) if size else (layer.image_data_param.new_height, layer.image_data_param.new_width)
    )
    colours = 3 if t.force_color or layer.type == "WindowData" else 1 if t.force_gray else 0
    if layer.type == "ImageData":
        colours = colours or (3 if layer.image_data_param.is_color else 1)
    channels = colours or (len(t.mean_value) if len(t.mean_value) > 1 else 0)
    if top == layer.top[0] and channels and height and width:
        return (1, channels, height, width)
    hint = f"{channels or 'C'},{height or 'H'},{width or 'W'}"
    found = f" beyond {'x'.join(hint.split(','))}" if channels or height else ""
    raise fail(
        layer,
        f"the shape of its blob {top} is not known{found}",
        "1xCxHxW",
        f"pass input_shapes={{{top!r}: ...}} or --input-shape {hint}",
    )


def _name_inputs(result: Net) -> None:
    """Name the Input layers that replace data layers: input if it is the only one, else by its top."""
    new = [layer for layer in result.layer if layer.type == "Input" and not layer.name]
    taken = {layer.name for layer in result.layer}
    alone = sum(layer.type == "Input" for layer in result.layer) == 1 and "input" not in taken
    for layer in new:
        layer.name = "input" if alone else _free_name(layer.top[0], taken)
        taken.add(layer.name)


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_input"
    return name


def _replace_loss(net: Net) -> None:
    losses = [layer for layer in net.layer if layer.type == "SoftmaxWithLoss"]
    if len(losses) != 1:
        raise NetError(
            "net",
            f"{len(losses)} SoftmaxWithLoss layers",
            "one to turn into a Softmax",
            "leave loss_to_softmax out",
        )
    loss, names = losses[0], {layer.name for layer in net.layer} | {top for x in net.layer for top in x.top}
    if "prob" in names:
        raise fail(
            loss, "the net has a prob already", "a free name for the Softmax", "leave loss_to_softmax out"
        )
    softmax = caffe_pb2.LayerParameter(name="prob", type="Softmax", bottom=loss.bottom[:1], top=["prob"])
    if loss.HasField("softmax_param"):
        softmax.softmax_param.CopyFrom(loss.softmax_param)
    loss.CopyFrom(softmax)


def _drop_dropout(net: Net) -> None:
    """Remove Dropout layers; what read a top of theirs reads the bottom, until the name is made anew."""
    alias: dict[str, str] = {}
    layers = []
    for layer in net.layer:
        bottoms = [alias.get(name, name) for name in layer.bottom]
        if layer.type == "Dropout" and len(bottoms) == 1 and len(layer.top) == 1:
            alias[layer.top[0]] = bottoms[0]
            continue
        kept = caffe_pb2.LayerParameter()
        kept.CopyFrom(layer)
        kept.bottom[:] = bottoms
        for name in layer.top:
            alias.pop(name, None)
            if name in alias.values():
                raise fail(
                    layer,
                    f"it changes blob {name}, which a Dropout before it has read",
                    "another name for its top",
                    "keep dropout",
                )
        layers.append(kept)
    del net.layer[:]
    net.layer.extend(layers)
