"""The names that Auto-DeepLab's weights have in a TensorFlow checkpoint, layer by layer, as data.

From the scopes in core/nas_network.py, core/nas_cell.py and model.py of tensorflow/models (research/deeplab).
No checkpoint of the searched net was found anywhere, so only names that follow from the code and shapes are
held by tests; the outermost scope of the backbone is the default one of its function [I].

Layouts: TensorFlow keeps a convolution as height, width, in, out and a depthwise one as height, width,
channels, 1. Its gamma and beta are Scale's blobs, its moving averages BatchNorm's first two; BatchNorm's
third, the factor, is 1. The first convolution reads RGB there and BGR here: its input channels are turned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import WeightsError
from caffe_weights.weights import Weights
from surgery.geometry import Shape, dims
from surgery.shapes import infer_shapes

BACKBONE = "hnasnet"
DENSE, DEPTHWISE = (3, 2, 0, 1), (2, 3, 0, 1)  # axes of a variable in the order of our blob
STEM = {"stem1": "conv0", "stem2": "conv1", "stem3": "conv2"}
HEAD = {
    "aspp_image": "image_pooling",
    "aspp0": "aspp0",
    "aspp1": "aspp1",
    "aspp2": "aspp2",
    "aspp3": "aspp3",
    "aspp_projection": "concat_projection",
    "decoder_low": "decoder/feature_projection0",
    "decoder1": "decoder/decoder_conv0/decoder_conv0_1",
    "decoder2": "decoder/decoder_conv0/decoder_conv0_2",
}
LOGITS = "logits/semantic"
CELL = re.compile(r"(cell(\d+))_(before|last|block(\d+)_(left|right)_([a-z]+)(\d?))")


class Variable(NamedTuple):
    """A variable of a checkpoint: its name, shape, the blob it fills, and the order of its axes there."""

    name: str
    shape: Shape
    layer: str
    blob: int
    axes: tuple[int, ...] = ()


def tensorflow_variables(net: NetParameter) -> list[Variable]:
    """The variables of a checkpoint of an Auto-DeepLab in deploy form, in the order of its layers.

    BatchNorm's factor is the only blob that none of them fills.
    """
    shapes, found = infer_shapes(net).layers, []
    for layer in net.layer:
        params = shapes[layer.name].params
        if layer.name == "score_logits":
            found += [
                _convolution(f"{LOGITS}/weights", layer.name, params[0]),
                Variable(f"{LOGITS}/biases", params[1], layer.name, 1),
            ]
        elif layer.type == "Convolution":
            scope, _ = _scopes(layer.name, _kernel(net, layer.name))
            found.append(_convolution(scope, layer.name, params[0]))
        elif layer.type in ("BatchNorm", "Scale"):
            convolution = layer.name.rpartition("_")[0]
            _, scope = _scopes(convolution, _kernel(net, convolution))
            names = ("moving_mean", "moving_variance") if layer.type == "BatchNorm" else ("gamma", "beta")
            found += [Variable(f"{scope}/{name}", params[i], layer.name, i) for i, name in enumerate(names)]
    return found


def from_tensorflow(net: NetParameter, values: Mapping[str, np.ndarray]) -> Weights:
    """The weights of a net from a checkpoint's variables by name; float32, contiguous. WeightsError.

    Variables that the net has no use for, such as momenta, are left alone.
    """
    blobs: dict[str, list[np.ndarray]] = {}
    for variable in tensorflow_variables(net):
        value = values.get(variable.name)
        if value is None:
            raise WeightsError(f"variable {variable.name}", "not in the checkpoint",
                               f"the weights of layer {variable.layer}")  # fmt: skip
        if value.shape != variable.shape:
            raise WeightsError(
                f"variable {variable.name}", f"shape {dims(value.shape)}", dims(variable.shape)
            )
        turned = value.transpose(variable.axes) if variable.axes else value
        if variable.layer == "stem1":
            turned = turned[:, ::-1]
        blobs.setdefault(variable.layer, []).append(np.ascontiguousarray(turned, np.float32))
    for layer in net.layer:
        if layer.type == "BatchNorm":
            blobs[layer.name].append(np.ones(1, np.float32))
    return Weights(blobs, net)


def _convolution(name: str, layer: str, shape: Shape) -> Variable:
    """Weights of (out, in / group, height, width) as TensorFlow keeps them."""
    axes = DEPTHWISE if name.endswith("depthwise_weights") else DENSE
    return Variable(name, tuple(shape[axes.index(i)] for i in range(4)), layer, 0, axes)


def _kernel(net: NetParameter, name: str) -> int:
    """The kernel that the scope of a convolution names; a pointwise one is called after its depthwise one."""
    named = name.replace("_pointwise", "_depthwise")
    return next(layer.convolution_param.kernel_size[0] for layer in net.layer if layer.name == named)


def _scopes(name: str, kernel: int) -> tuple[str, str]:
    """The variable of a convolution's weights, and the scope of the BatchNorm behind it."""
    if name in STEM:
        return f"{BACKBONE}/{STEM[name]}/weights", f"{BACKBONE}/{STEM[name]}_bn"
    if name in HEAD:
        return f"{HEAD[name]}/weights", f"{HEAD[name]}/BatchNorm"
    match = CELL.fullmatch(name)
    assert match is not None, name
    _, cell, what, block, side, kind, number = match.groups()
    scope = f"{BACKBONE}/cell_{cell}"
    if what in ("before", "last"):
        names = {"before": ("prev_1x1", "prev_bn"), "last": ("1x1", "beginning_bn")}[what]
        return f"{scope}/{names[0]}/weights", f"{scope}/{names[1]}"
    scope += f"/comb_iter_{int(block) - 1}/{side}"
    size = f"{kernel}x{kernel}"
    if kind in ("depthwise", "pointwise"):
        both = f"{size}_{number}"
        return f"{scope}/separable_{both}/{kind}_weights", f"{scope}/bn_sep_{both}"
    if kind == "atrous":
        return f"{scope}/atrous_{size}/weights", f"{scope}/bn_atr_{size}"
    return f"{scope}/1x1/weights", f"{scope}/bn_1"  # a skip with a stride
