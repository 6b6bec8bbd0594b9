"""Auto-DeepLab: the net of an architecture (a path and a cell), above all the published one.

Liu et al., CVPR 2019, and its authors' code in tensorflow/models (research/deeplab): stem and backbone
core/nas_network.py, cell core/nas_cell.py (00b613a4), head and decoder model.py (3100470f). What its counts
fix: atrous operations are dense convolutions, ASPP and decoder are dense too, 19 classes.

Every operation is ReLU first and ends with BatchNorm and Scale; the rectified copy of a state is made once
and read by all. For other paths than the published one, low-level features are the last cell's at stride 4,
or the stem's, and ASPP's rates span as many pixels as 12, 24 and 36 at stride 8. Departures: padding is
symmetric, which TensorFlow's SAME is for odd sizes only, so pictures should have 32 k + 1 a side; an
up-sampling cell resizes H-2 also where it has the stride already, which changes nothing at such sizes and
lets others through; AVE pooling counts its padding, as Caffe's does; logits start from a whole normal
distribution, not a truncated one; channels are BGR, and the first weights of a checkpoint must be turned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import sqrt
from typing import Any, NamedTuple

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import NetError
from reproduce.nets.architecture import Architecture
from reproduce.nets.blocks import Form, dropout, finish, relu
from reproduce.nets.data import Data
from reproduce.nets.heads import loss
from surgery.netspec import L, NetSpec, P, Top
from surgery.shapes import infer_shapes

STEM = ((64, 2), (64, 1), (128, 2))  # width and stride of its three convolutions
HEAD = 256  # width of ASPP and decoder
LOW_LEVEL = 48  # of the projection of the low-level features
RATES = (12, 24, 36)  # of ASPP at stride 8
KEEP = 0.9  # behind ASPP
DECAY = 0.9997  # of BatchNorm's averages
BACKBONE_EPS, HEAD_EPS = 1e-3, 1e-5
SLIDING_WINDOW = 97  # of image pooling in the paper's evaluation: a crop of 769 at stride 8
WEIGHT = ({"lr_mult": 1, "decay_mult": 1},)
UNDECAYED = ({"lr_mult": 1, "decay_mult": 0},) * 2  # of Scale, and of a bias below
WEIGHT_AND_BIAS = (*WEIGHT, {"lr_mult": 1, "decay_mult": 0})


class State(NamedTuple):
    """A blob with its stride and published channels; its rectified copy is called after `name`."""

    name: str
    top: Top
    stride: int
    channels: int


def auto_deeplab(
    architecture: Architecture | None, data: Data, split: str, form: Form, filters: int | None = None
) -> NetParameter:
    """The net of an architecture, with the loss; that of `form`, where it has one, takes its place.

    `filters` is F, else the architecture's. NetError without an architecture.
    """
    architecture = form.architecture or architecture
    if architecture is None:
        raise NetError("auto-deeplab", "no architecture", "the file of one",
                       "pass --architecture FILE, or take auto-deeplab-s")  # fmt: skip
    n = NetSpec()
    data.add(n, split)
    n.pixels = L.Power(n.data, scale=2 / 255)  # of -127.5 to 127.5
    architecture = replace(architecture, filters=filters or architecture.filters)
    states = backbone(n, n["pixels"], architecture, form)
    low = next(state for state in reversed(states) if state.stride == 4)
    decoded = _decoder(n, _aspp(n, states[-1], form), low, form)
    n.score_logits = L.Convolution(
        decoded, num_output=form.head(data.classes), kernel_size=1, param=list(WEIGHT_AND_BIAS),
        weight_filler={"type": "gaussian", "std": 0.01},
    )  # fmt: skip
    n.score = L.Interp(n.score_logits, n.data)
    loss(n, normalize=True)
    net = finish(n)
    _fill_backbone(net)
    return net


def backbone(n: NetSpec, bottom: Top, architecture: Architecture, form: Form) -> list[State]:
    """Stem and cells: the states behind the stem's last two convolutions and each cell (`cell0`, ...)."""
    states, stride = [], 1
    for number, (width, step) in enumerate(STEM, 1):
        name, stride = f"stem{number}", stride * step
        bottom = _convolution(n, name, bottom, form.width(width), 3, BACKBONE_EPS, stride=step)
        states.append(State(name, bottom, stride, width))
        bottom = _rectified(n, states[-1]) if number < len(STEM) else bottom
    for number, stride in enumerate(architecture.strides):
        states.append(cell(n, f"cell{number}", states[-1], states[-2], stride, architecture, form))
    return states[1:]


def cell(
    n: NetSpec, name: str, last: State, before: State, stride: int, architecture: Architecture, form: Form
) -> State:
    """One cell at `stride` on the outputs of the cell before (`last`) and of the one before that."""
    published = architecture.channels(stride)
    width = form.width(published)
    up, down = stride < last.stride, stride > last.stride
    if up:
        n[f"{name}_up"] = L.Interp(last.top, zoom_factor=2)
        last = State(f"{name}_up", n[f"{name}_up"], stride, last.channels)
    if up or before.stride != last.stride:
        n[f"{name}_resized"] = L.Interp(before.top, last.top)
        before = State(f"{name}_resized", n[f"{name}_resized"], last.stride, before.channels)
    if before.channels != published:
        before = _projected(n, f"{name}_before", before, width)
    states = {"H-1": _projected(n, f"{name}_last", last, width), "H-2": before}
    for number, block in enumerate(architecture.cell, 1):
        sides = []
        for side, (source, operation) in zip(("left", "right"), block, strict=True):
            step = 2 if down and source in ("H-1", "H-2") else 1
            place = f"{name}_block{number}_{side}"
            sides.append(OPERATIONS[operation](n, place, states[source], width, step))
        key = f"{name}_block{number}"
        n[key] = L.Eltwise(*sides, operation=P.Eltwise.SUM)
        states[f"block {number}"] = State(key, n[key], stride, width)
    blocks = [state.top for source, state in states.items() if source.startswith("block")]
    n[name] = L.Concat(*blocks)
    return State(name, n[name], stride, published * len(blocks))


def slide_image_pooling(net: NetParameter, window: int = SLIDING_WINDOW) -> NetParameter:
    """A copy of a net with declared inputs whose image pooling is a mean over `window` pixels, stride 1.

    So the paper evaluated [I]; nothing changes for maps no larger than it. NetError without the layer.
    """
    result = NetParameter()
    result.CopyFrom(net)
    layers = [layer for layer in result.layer if layer.name == "image_pooling"]
    if not layers:
        raise NetError("net", "no layer image_pooling", "an Auto-DeepLab")
    height, width = infer_shapes(net).layers["image_pooling"].bottoms[0][2:]
    param = layers[0].pooling_param
    param.ClearField("global_pooling")
    param.kernel_h, param.kernel_w = min(window, height), min(window, width)
    return result


def _separable(kernel: int, n: NetSpec, name: str, state: State, width: int, stride: int) -> Top:
    """ReLU, depthwise, pointwise, BatchNorm, twice; the stride is that of the first depthwise one."""
    bottom = _rectified(n, state)
    for number, step in ((1, stride), (2, 1)):
        if number == 2:
            bottom = relu(n, f"{name}_relu", bottom)
        n[f"{name}_depthwise{number}"] = L.Convolution(
            bottom, num_output=width, group=width, kernel_size=kernel, pad=kernel // 2, stride=step,
            bias_term=False, param=list(WEIGHT),
        )  # fmt: skip
        depthwise = n[f"{name}_depthwise{number}"]
        bottom = _convolution(n, f"{name}_pointwise{number}", depthwise, width, 1, BACKBONE_EPS)
    return bottom


def _atrous(kernel: int, n: NetSpec, name: str, state: State, width: int, stride: int) -> Top:
    """ReLU, dense convolution of rate 2, BatchNorm; in place of a stride the map is halved and the rate 1."""
    bottom, rate = _rectified(n, state), 2
    if stride == 2:
        bottom = n[f"{name}_half"] = L.Interp(bottom, shrink_factor=2)
        rate = 1
    return _convolution(n, f"{name}_atrous", bottom, width, kernel, BACKBONE_EPS, rate=rate)


def _pool(method: int, n: NetSpec, name: str, state: State, width: int, stride: int) -> Top:
    top: Top = L.Pooling(
        state.top, pool=method, kernel_size=3, pad=1, stride=stride, round_mode=P.Pooling.FLOOR
    )
    n[f"{name}_pool"] = top
    return top


def _skip(n: NetSpec, name: str, state: State, width: int, stride: int) -> Top:
    """The state itself; with a stride ReLU, a 1 x 1 convolution and BatchNorm."""
    if stride == 1:
        return state.top
    return _convolution(n, f"{name}_skip", _rectified(n, state), width, 1, BACKBONE_EPS, stride=stride)


OPERATIONS: dict[str, Callable[..., Top]] = {
    "sep 3x3": partial(_separable, 3),
    "sep 5x5": partial(_separable, 5),
    "atrous 3x3": partial(_atrous, 3),
    "atrous 5x5": partial(_atrous, 5),
    "avg pool 3x3": partial(_pool, P.Pooling.AVE),
    "max pool 3x3": partial(_pool, P.Pooling.MAX),
    "skip": _skip,
}


def _aspp(n: NetSpec, state: State, form: Form) -> Top:
    """Atrous spatial pyramid pooling, image pooling first."""
    width, bottom = form.width(HEAD), _rectified(n, state)
    n.image_pooling = L.Pooling(bottom, pool=P.Pooling.AVE, global_pooling=True)
    n.aspp_image_up = L.Interp(_head(n, "aspp_image", n["image_pooling"], width, 1), bottom)
    branches = [n.aspp_image_up, _head(n, "aspp0", bottom, width, 1)]
    for number, rate in enumerate(RATES, 1):
        branches.append(_head(n, f"aspp{number}", bottom, width, 3, rate * 8 // state.stride))
    n.aspp = L.Concat(*branches)
    return dropout(n, "aspp_dropout", _head(n, "aspp_projection", n["aspp"], width, 1), 1 - KEEP)


def _decoder(n: NetSpec, aspp: Top, low: State, form: Form) -> Top:
    """The head's map at the size of the low-level features, beside these; two 3 x 3 convolutions."""
    skip = _head(n, "decoder_low", low.top, form.width(LOW_LEVEL), 1)
    n.decoder_up = L.Interp(aspp, skip)
    n.decoder = L.Concat(n.decoder_up, skip)
    first = _head(n, "decoder1", n["decoder"], form.width(HEAD), 3)
    return _head(n, "decoder2", first, form.width(HEAD), 3)


def _head(n: NetSpec, name: str, bottom: Top, width: int, kernel: int, rate: int = 1) -> Top:
    """Convolution, BatchNorm, Scale, ReLU; weights start by Xavier's rule, as TensorFlow's do."""
    filler = {"type": "xavier", "variance_norm": "AVERAGE"}
    top = _convolution(n, name, bottom, width, kernel, HEAD_EPS, rate=rate, weight_filler=filler)
    return relu(n, f"{name}_relu", top)


def _projected(n: NetSpec, name: str, state: State, width: int) -> State:
    """ReLU, 1 x 1 convolution, BatchNorm."""
    top = _convolution(n, name, _rectified(n, state), width, 1, BACKBONE_EPS)
    return State(name, top, state.stride, width)


def _rectified(n: NetSpec, state: State) -> Top:
    """The rectified copy of a state, made once."""
    key = f"{state.name}_relu"
    if key not in n:
        n[key] = L.ReLU(state.top)
    top: Top = n[key]
    return top


def _convolution(
    n: NetSpec, name: str, bottom: Top, width: int, kernel: int, eps: float, stride: int = 1, rate: int = 1,
    **extra: Any,
) -> Top:  # fmt: skip
    """Convolution without bias, BatchNorm, Scale: <name>, <name>_bn, <name>_scale."""
    n[name] = L.Convolution(
        bottom, num_output=width, kernel_size=kernel, stride=stride, pad=rate * (kernel // 2), dilation=rate,
        bias_term=False, param=list(WEIGHT), **extra,
    )  # fmt: skip
    n[f"{name}_bn"] = L.BatchNorm(n[name], in_place=True, eps=eps, moving_average_fraction=DECAY)
    n[f"{name}_scale"] = L.Scale(n[f"{name}_bn"], in_place=True, bias_term=True, param=list(UNDECAYED))
    top: Top = n[f"{name}_scale"]
    return top


def _fill_backbone(net: NetParameter) -> None:
    """Weights without a filler start uniform in +-1 / sqrt(k k C), C the input's channels.

    That is variance scaling by 1/3 of the fan-in, which TensorFlow takes as k k C of a depthwise one too [I].
    """
    channels = {"data": 3}
    for layer in net.layer:
        found = [channels.get(bottom, 0) for bottom in layer.bottom]
        for top in layer.top:
            channels.setdefault(top, sum(found) if layer.type == "Concat" else sum(found[:1]))
        if layer.type == "Convolution":
            param = layer.convolution_param
            channels[layer.top[0]] = param.num_output
            if not param.HasField("weight_filler"):
                bound = 1 / sqrt(param.kernel_size[0] ** 2 * found[0])
                param.weight_filler.type, param.weight_filler.min, param.weight_filler.max = (
                    "uniform", -bound, bound,
                )  # fmt: skip
