"""Layers that read a flattened map: which of them mean the same on the map itself.

An InnerProduct's output (N, K) becomes (N, K, 1, 1) when it is made a convolution, and (N, K, H, W) on a
larger input; a map flattened in front of one stays the map. A layer in between, or behind, may stay if it
treats all positions alike. The tables say which do; everything else is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery.geometry import Layer, Shape, dims, fail
from surgery.shapes import LayerShapes

# one value for one value, whatever its place
POINTWISE = frozenset(
    [
        "AbsVal",
        "BNLL",
        "Clip",
        "Dropout",
        "ELU",
        "Eltwise",
        "Exp",
        "Log",
        "Power",
        "ReLU",
        "Sigmoid",
        "Silence",
        "Split",
        "Swish",
        "TanH",
        "Threshold",
    ]
)
# all channels of a position alike
CHANNELWISE = frozenset(["ArgMax", "BatchNorm", "Bias", "PReLU", "Scale", "Slice", "Softmax"])
# compare with labels: a 1 x 1 map has as many values as before, a larger one wants a label for each position
LOSSES = frozenset(
    [
        "Accuracy",
        "ContrastiveLoss",
        "EuclideanLoss",
        "HDF5Output",
        "HingeLoss",
        "InfogainLoss",
        "MultinomialLogisticLoss",
        "SigmoidCrossEntropyLoss",
        "SoftmaxWithLoss",
    ]
)
# layers that a map, flattened or not, may pass on its way to an InnerProduct
THROUGH = POINTWISE | CHANNELWISE | {"Concat", "Flatten", "Reshape"}
# the settings that hold a layer type's axis
_AXIS = {
    "Accuracy": "accuracy_param",
    "ArgMax": "argmax_param",
    "Bias": "bias_param",
    "Concat": "concat_param",
    "InfogainLoss": "infogain_loss_param",
    "Scale": "scale_param",
    "Slice": "slice_param",
    "Softmax": "softmax_param",
    "SoftmaxWithLoss": "softmax_param",
}
# their older names
_OLD_AXIS = {"Concat": "concat_dim", "Slice": "slice_dim"}


@dataclass(frozen=True)
class Form:
    """What became of a blob: the blob to read now and, if it was flat, its channels, height and width.

    A borrowed name is that of the blob before an absorbed Flatten, which others may read: no layer may
    write there in place. `version` counts the writes to it when it was borrowed.
    """

    name: str
    size: Shape
    flat: bool = True
    borrowed: bool = False
    version: int = 0
    absorbed: tuple[str, ...] = ()

    @property
    def one_position(self) -> bool:
        """Whether height and width are 1, so that every channel is a value of its own."""
        return self.size[1:] == (1, 1)


def top_sizes(layer: Layer, old: LayerShapes, forms: Sequence[Form | None]) -> dict[str, Shape]:
    """Channels, height and width of the tops of a layer whose bottoms were flat; NetError if it mixes."""
    flat = [form for form in forms if form and form.flat]
    if layer.type in LOSSES or layer.type == "Python":
        _check_one_position(layer, flat)
        return {}
    second_may_differ = layer.type in ("Scale", "Bias") and forms[0] in flat
    if len(flat) != len(forms) and not second_may_differ:
        raise fail(
            layer,
            "a converted bottom beside one that is not",
            "bottoms that are all converted",
            "leave this net a classifier, or cut the branch off",
        )
    if layer.type in POINTWISE or (layer.type == "PReLU" and layer.prelu_param.channel_shared):
        return dict.fromkeys(layer.top, _common(layer, [form.size for form in flat]))
    if layer.type == "Concat":
        height, width = _common(layer, [form.size[1:] for form in flat])
        return {layer.top[0]: (sum(form.size[0] for form in flat), height, width)}
    if layer.type not in CHANNELWISE:
        raise fail(
            layer,
            f"reads {dims(old.bottoms[0])} values that become a map, and may mix positions",
            "a layer that treats positions alike",
            "remove it, or leave the net a classifier",
        )
    _check_one_position(layer, flat)
    if layer.type == "Slice":
        return {name: (shape[1], 1, 1) for name, shape in zip(layer.top, old.tops, strict=True)}
    channels = layer.argmax_param.top_k if layer.type == "ArgMax" else flat[0].size[0]
    return dict.fromkeys(layer.top, (channels, 1, 1))


def _check_one_position(layer: Layer, flat: Sequence[Form]) -> None:
    for form in flat:
        if not form.one_position:
            raise fail(
                layer,
                f"reads a flattened map of {dims(form.size)}",
                "the output of an InnerProduct",
                "its channels are positions too",
            )


def _common(layer: Layer, sizes: Sequence[Shape]) -> Shape:
    if len(set(sizes)) > 1:
        raise fail(
            layer,
            f"its bottoms were flattened from maps of {' and '.join(map(dims, sizes))}",
            "maps of one size",
            "convert one branch at a time",
        )
    return sizes[0]


def adapt(layer: Layer, old: LayerShapes) -> list[str]:
    """Write the axis of a layer that read (N, K) to mean the channels of (N, K, H, W); the notes."""
    if layer.type == "Python":
        return [f"{layer.name}: this Python layer now reads a map"]
    if layer.type not in _AXIS:
        return []
    settings = getattr(layer, _AXIS[layer.type])
    if layer.type == "ArgMax" and not settings.HasField("axis"):
        return [_give_axis(layer)]
    named = _OLD_AXIS.get(layer.type, "")
    axis = getattr(settings, named if named and settings.HasField(named) else "axis")
    rank = len(old.bottoms[0])
    two_bottoms = layer.type in ("Scale", "Bias") and len(layer.bottom) == 2
    if axis % rank != 1 and not two_bottoms:
        raise fail(layer, f"axis {axis} of {dims(old.bottoms[0])}", "axis 1", "the others are no channels")
    notes = []
    if axis < 0:
        settings.axis = axis % rank
        notes.append(f"{layer.name}: axis {axis} became {axis % rank}")
    if layer.type in ("Scale", "Bias") and settings.num_axes == -1 and not two_bottoms:
        settings.num_axes = 1
        notes.append(f"{layer.name}: num_axes -1 became 1")
    return notes


def _give_axis(layer: Layer) -> str:
    """Without an axis ArgMax takes all of an item, which on a map would be all positions."""
    if layer.argmax_param.out_max_val:
        raise fail(layer, "out_max_val without an axis", "axis: 1", "with an axis it gives values only")
    layer.argmax_param.axis = 1
    return f"{layer.name}: axis 1 set, so that each position has its own maximum"
