"""Shapes made by losses, Accuracy, the recurrent layers and sources of data.

Follows the `Reshape` and `LayerSetUp` functions under `src/caffe/layers` of BVLC/caffe at 9b891540, and
for the recurrent layers the nets they unroll to. Departures: a SoftmaxWithLoss may have a probability top,
which that commit documents but cannot build; an Accuracy over the best 0 classes is an error.
"""

from __future__ import annotations

from math import prod

from surgery.geometry import Layer, Shape, dims, fail, find_axis
from surgery.layer_shapes import Shapes, legacy

HIDDEN_STATES = {"LSTM": 2, "RNN": 1}


def paired_loss(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """EuclideanLoss and SigmoidCrossEntropyLoss: two bottoms of equal count."""
    _same_items(layer, bottoms)
    if layer.type == "EuclideanLoss":
        legacy(layer, bottoms[0])
    if prod(bottoms[0]) != prod(bottoms[1]):
        raise _mismatch(layer, bottoms, "as many values in both")
    return ((),), ()


def hinge_loss(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """HingeLoss: one label an item."""
    _same_items(layer, bottoms)
    legacy(layer, bottoms[0])
    if prod(bottoms[1]) != bottoms[0][0]:  # Caffe would read the first so many
        raise _mismatch(layer, bottoms, "one label an item")
    return ((),), ()


def label_loss(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """SoftmaxWithLoss and InfogainLoss: a label where the scores have an item of `axis`."""
    p = layer.softmax_param if layer.type == "SoftmaxWithLoss" else layer.infogain_loss_param
    if layer.loss_param.weight_by_label_freqs or layer.loss_param.class_weighting:
        raise fail(layer, "SegNet's weights of classes", "none: they are not run here",
                   "remove weight_by_label_freqs and class_weighting, or write an InfogainLoss")  # fmt: skip
    _same_items(layer, bottoms)
    axis = _label_axis(layer, bottoms, p.axis)
    if layer.type == "InfogainLoss":
        _check_infogain(layer, bottoms, bottoms[0][axis])
    return ((), bottoms[0])[: max(1, len(layer.top))], ()


def multinomial_loss(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """MultinomialLogisticLoss: probabilities and one label an item."""
    _same_items(layer, bottoms)
    for i, shape in enumerate(bottoms):
        legacy(layer, shape, i)
    if prod(bottoms[1][1:]) != 1:
        raise _mismatch(layer, bottoms, "one label an item")
    return ((),), ()


def contrastive_loss(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """ContrastiveLoss: two feature vectors an item and one label for the pair."""
    first, second, label = (legacy(layer, shape, i) for i, shape in enumerate(bottoms))
    if first[2:] != (1, 1) or second[2:] != (1, 1) or first[1] != second[1] or label[1:] != (1, 1, 1):
        raise _mismatch(layer, bottoms, "features N x C, features N x C and labels N")
    _same_items(layer, bottoms)
    if label[0] != first[0]:
        raise _mismatch(layer, bottoms, f"a label for each of {first[0]} pairs")
    return ((),), ()


def accuracy(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Accuracy: one value, and a second top with one value a class."""
    p = layer.accuracy_param
    axis = _label_axis(layer, bottoms, p.axis)
    classes = bottoms[0][axis]
    if not 1 <= p.top_k <= classes:
        raise fail(layer, f"top_k {p.top_k} of {classes} classes", f"1 to {classes}", "set top_k")
    return ((), (classes,))[: len(layer.top)], ()


def recurrent(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """LSTM and RNN over T x N x ... : the output, and with expose_hidden the last hidden states.

    Parameters as the unrolled net holds them: input weights and bias, weights of the static input if there
    is one, weights of the hidden state, and in an RNN the output's weights and bias.
    """
    p, exposed = layer.recurrent_param, HIDDEN_STATES[layer.type]
    states = exposed if p.expose_hidden else 0
    _check_counts(layer, bottoms, states)
    static = bottoms[2] if len(bottoms) > 2 + states else None
    _check_recurrent(layer, bottoms, static)
    hidden, (steps, streams) = p.num_output, bottoms[0][:2]
    if hidden < 1:
        raise fail(layer, f"num_output {hidden}", "at least 1", "set num_output")
    state = (1, streams, hidden)
    for i, shape in enumerate(
        bottoms[len(bottoms) - states :] if states else (), start=len(bottoms) - states
    ):
        if shape != state:
            raise fail(
                layer, f"bottom {i} ({layer.bottom[i]}) is {dims(shape)}", f"{dims(state)}, a hidden state"
            )
    gates = 4 * hidden if layer.type == "LSTM" else hidden
    params: list[Shape] = [(gates, prod(bottoms[0][2:])), (gates,)]
    params += [(gates, prod(static[1:]))] if static is not None else []
    params += [(gates, hidden)]
    params += [(hidden, hidden), (hidden,)] if layer.type == "RNN" else []
    return ((steps, streams, hidden), *[state] * states), tuple(params)


def lstm_unit(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """LSTMUnit: the cell, the gates and the continuation flags of one step; the new cell and output."""
    cell, gates, flags = bottoms
    if len(cell) != 3 or gates != (1, *cell[1:2], 4 * cell[-1]) or flags != (1, *cell[1:2]) or cell[0] != 1:
        raise _mismatch(layer, bottoms, "1 x N x D, 1 x N x 4D and 1 x N")
    return (cell, cell), ()


def parameter(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Parameter: its blob is its top."""
    shape = tuple(layer.parameter_param.shape.dim)
    return (shape,), (shape,)


def dummy_data(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """DummyData: one shape for all tops or one a top, in the present or the older fields."""
    p, tops = layer.dummy_data_param, len(layer.top)
    if len(p.data_filler) not in (0, 1, tops):
        raise fail(layer, f"{len(p.data_filler)} data_fillers for {tops} tops", f"none, 1 or {tops}")
    old = [list(getattr(p, field)) for field in ("num", "channels", "height", "width")]
    if not any(old):
        return spread(layer, [tuple(s.dim) for s in p.shape]), ()
    if p.shape:
        raise fail(layer, "both shape and num, channels, height, width are set", "one of the two forms")
    columns = [[size for (size,) in spread(layer, [(n,) for n in values])] for values in old]
    return tuple(zip(*columns, strict=True)), ()


def spread(layer: Layer, shapes: list[Shape]) -> Shapes:
    """One shape for every top, from one for all or one each."""
    if len(shapes) not in (1, len(layer.top)):
        raise fail(layer, f"{len(shapes)} shapes for {len(layer.top)} tops", f"1 or {len(layer.top)}")
    return tuple(shapes if len(shapes) == len(layer.top) else shapes * len(layer.top))


def _same_items(layer: Layer, bottoms: Shapes) -> None:
    if not bottoms[0] or bottoms[0][:1] != bottoms[1][:1]:
        raise _mismatch(layer, bottoms, "the same first size")


def _mismatch(layer: Layer, bottoms: Shapes, wanted: str) -> Exception:
    found = ", ".join(f"{name} {dims(s)}" for name, s in zip(layer.bottom, bottoms, strict=True))
    return fail(layer, f"bottoms {found}", wanted)


def _label_axis(layer: Layer, bottoms: Shapes, axis: int) -> int:
    scores, labels = bottoms[:2]
    axis = find_axis(layer, "axis", axis, len(scores))
    wanted = prod(scores[:axis]) * prod(scores[axis + 1 :])
    if prod(labels) != wanted:
        raise fail(
            layer,
            f"bottom 1 ({layer.bottom[1]}) is {dims(labels)} with {prod(labels)} labels",
            f"{wanted}, one for each item of {dims(scores)} along axis {axis}",
        )
    return axis


def _check_infogain(layer: Layer, bottoms: Shapes, classes: int) -> None:
    if layer.loss_param.HasField("normalize"):
        raise fail(layer, "normalize is set", "normalization", "this layer does not take the older flag")
    if len(bottoms) < 3:
        if not layer.infogain_loss_param.source:
            raise fail(layer, "no source and no third bottom", "an infogain matrix", "set source")
    elif prod(bottoms[2]) != classes**2:
        raise fail(layer, f"bottom 2 ({layer.bottom[2]}) is {dims(bottoms[2])}", f"1x1x{classes}x{classes}")


def _check_counts(layer: Layer, bottoms: Shapes, states: int) -> None:
    low = 2 + states
    if not low <= len(bottoms) <= low + 1 or len(layer.top) != 1 + states:
        raise fail(
            layer,
            f"{len(bottoms)} bottoms and {len(layer.top)} tops with expose_hidden "
            f"{str(layer.recurrent_param.expose_hidden).lower()}",
            f"{low} or {low + 1} bottoms (input, flags, static input, states) and {1 + states} tops",
        )


def _check_recurrent(layer: Layer, bottoms: Shapes, static: Shape | None) -> None:
    x, flags = bottoms[:2]
    if len(x) < 3 or flags != x[:2]:
        raise fail(
            layer,
            f"bottoms {layer.bottom[0]} {dims(x)} and {layer.bottom[1]} {dims(flags)}",
            "T x N x ... with at least 3 axes and T x N",
        )
    if static is not None and (len(static) < 2 or static[0] != x[1]):
        raise fail(
            layer, f"bottom 2 ({layer.bottom[2]}) is {dims(static)}", f"{x[1]} x ..., one row a stream"
        )
