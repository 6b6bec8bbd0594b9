"""Random layers of every type: settings drawn from the schema over bottoms of random shapes.

Half of them are wild, and most of those make no sense; the other half keep to small settings that often do.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from caffe_weights.caffe_pb2 import LayerParameter, NetParameter
from surgery.shapes import LAYER_RULES

Shape = tuple[int, ...]
FIELDS = {field.name for field in LayerParameter.DESCRIPTOR.fields}
PARAMS = {  # settings that do not carry their layer's name in lower case
    "ArgMax": "argmax_param",
    "BatchNorm": "batch_norm_param",
    "ContrastiveLoss": "contrastive_loss_param",
    "Deconvolution": "convolution_param",
    "EltwiseAccuracy": "eltwise_accuracy_param",
    "DummyData": "dummy_data_param",
    "HDF5Output": "hdf5_output_param",
    "HingeLoss": "hinge_loss_param",
    "Im2col": "convolution_param",
    "InfogainLoss": "infogain_loss_param",
    "InnerProduct": "inner_product_param",
    "LSTM": "recurrent_param",
    "RNN": "recurrent_param",
    "SoftmaxWithLoss": "softmax_param",
}
NEEDED = {"num_output", "unpool_size", "kernel_size", "input_dim", "shape", "dim", "local_size"}
TAME_SKIPS = {"axis", "num_axes", "end_axis", "concat_dim", "slice_dim", "sparse", "slice_point", "coeff"}
WILD_INTEGERS = (0, 1, 1, 2, 2, 3, 4, 6, -1, -2, 1000)
TAME_INTEGERS = (1, 1, 2, 3)
SIZES = (1, 1, 2, 2, 3, 4, 4, 5, 6, 8)
REALS = (0.0, 0.25, 1.0, 2.0, -1.0, 1e30)
FILLERS = ("constant", "gaussian", "xavier", "bilinear", "positive_unitball", "msra", "uniform")
SIGNED = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
UNSIGNED = (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
RANKS = (0, 1, 2, 3, 4, 4, 4, 4, 5)


@dataclass(frozen=True)
class Draw:
    """A net with one layer `l` under test, and the shapes of its inputs x0, x1, ..."""

    net: NetParameter
    inputs: dict[str, Shape]


def draw_net(kind: str, seed: int) -> Draw:
    """A net of one layer of type `kind`, the same for the same seed."""
    rng = random.Random(f"{kind} {seed}")
    tame = rng.random() < 0.5
    _, bottoms, tops = LAYER_RULES[kind]
    shapes = _shapes(rng, kind, _count(rng, *bottoms, tame), tame)
    inputs = {f"x{i}": shape for i, shape in enumerate(shapes)}
    net = NetParameter()
    for name, shape in inputs.items():
        net.layer.add(name=name, type="Input", top=[name]).input_param.shape.add(dim=shape)
    layer = net.layer.add(name="l", type=kind, bottom=list(inputs))
    layer.top.extend(f"y{i}" for i in range(_count(rng, *tops, tame)))
    for field in (PARAMS.get(kind, f"{kind.lower()}_param"), "loss_param" if "Loss" in kind else ""):
        if field in FIELDS:
            _draw_message(rng, getattr(layer, field), tame)
    return Draw(net, inputs)


def _count(rng: random.Random, low: int, high: int, tame: bool) -> int:
    wild = [min(high, low + 2), max(0, low - 1)]
    return rng.choice([low, low, low, min(high, low + 1), *([] if tame else wild)])


def _shapes(rng: random.Random, kind: str, count: int, tame: bool) -> list[Shape]:
    """Bottoms that often fit: alike, or scores and labels, or a sequence and its flags."""
    first = tuple(rng.choice(SIZES) for _ in range(4 if tame else rng.choice(RANKS)))
    if kind == "LSTMUnit" and tame:
        items, width = first[:2]
        return [(1, items, width), (1, items, 4 * width), (1, items)][:count]
    return [first, *(_later_shape(rng, kind, i, first, tame) for i in range(1, count))][:count]


def _later_shape(rng: random.Random, kind: str, i: int, first: Shape, tame: bool) -> Shape:
    if not tame and rng.random() < 0.3:
        return tuple(rng.choice(SIZES) for _ in range(rng.choice((0, 1, 2, 4))))
    if kind in ("LSTM", "RNN"):
        return (first[:2], (*first[1:2], 3), (1, *first[1:2], 2))[min(i - 1, 2)]
    if kind in ("SoftmaxWithLoss", "Accuracy", "InfogainLoss"):
        return first[:1] + first[2:]
    if kind in ("HingeLoss", "MultinomialLogisticLoss", "Filter", "BatchReindex") or (i, kind) == (
        2,
        "ContrastiveLoss",
    ):
        return first[:1]
    return first


def _draw_message(rng: random.Random, message: Message, tame: bool) -> None:
    for field in message.DESCRIPTOR.fields:
        if tame and (field.name in TAME_SKIPS or field.name[-2:] in ("_h", "_w")):
            continue
        if rng.random() > ((1.0 if tame else 0.85) if field.name in NEEDED else 0.25):
            continue
        for _ in range(rng.choice((1, 1, 1, 2, 3)) if field.is_repeated and not tame else 1):
            _draw_value(rng, message, field, tame)


def _draw_value(rng: random.Random, message: Message, field: Any, tame: bool) -> None:
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        inner = getattr(message, field.name)
        inner = inner.add() if field.is_repeated else inner
        if field.message_type.name == "FillerParameter":
            inner.type = rng.choice(FILLERS)
        else:
            _draw_message(rng, inner, tame)
    elif field.is_repeated:
        getattr(message, field.name).append(_scalar(rng, field, tame))
    else:
        setattr(message, field.name, _scalar(rng, field, tame))


def _scalar(rng: random.Random, field: Any, tame: bool) -> int | float | bool | str:
    integer = rng.choice(TAME_INTEGERS if tame else WILD_INTEGERS)
    if field.name == "zoom_factor":  # of both axes: 1000 would be refused only by a larger machine
        integer = min(integer, 6)
    if field.cpp_type in SIGNED:
        return integer
    if field.cpp_type in UNSIGNED:
        return abs(integer)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return int(rng.choice([value.number for value in field.enum_type.values]))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    return "no-such-file" if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else rng.choice(REALS)
