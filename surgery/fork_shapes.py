"""Shapes made by layers of Caffe's forks: Unpooling, BN, EltwiseAccuracy of DeconvNet, Upsample of SegNet.

Follows `unpooling_layer.cpp`, `bn_layer.cpp` and `eltwise_accuracy_layer.cpp` of HyeonwooNoh/caffe at
d9e8494a and `upsample_layer.cpp` of alexgkendall/caffe-segnet; every check there is a NetError here.
Departures: a stride of 0 is refused, and so is one of `kernel_h` and `kernel_w` (and the like) alone, which
the forks read as 0. A size that Unpooling works out itself, which its own checks make unreachable, is not
offered.
"""

from __future__ import annotations

from typing import Any

from surgery.geometry import Layer, Shape, Window, dims, fail, need_rank
from surgery.layer_shapes import Shapes


def unpooling(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Unpooling: a top of the size that unpool_size says; the second bottom is the mask."""
    _check_mask(layer, bottoms)
    unpool_window(layer)
    return ((*bottoms[0][:2], *unpool_size(layer)),), ()


def upsample(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Upsample: a top of the size given, or of so many times the bottom's; the second bottom is the mask."""
    _check_mask(layer, bottoms)
    return ((*bottoms[0][:2], *upsample_size(layer, bottoms[0][2:])),), ()


def bn(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """BN: scale and shift; further tops of LEARN are the batch's mean and variance."""
    shape, p = bottoms[0], layer.bn_param
    need_rank(layer, shape, 4)
    if len(layer.top) > 1 and p.bn_mode == p.INFERENCE:
        raise fail(layer, f"{len(layer.top)} tops in mode INFERENCE", "one: only LEARN has statistics",
                   "remove the others, or set bn_mode LEARN")  # fmt: skip
    channel = (1, shape[1], 1, 1)
    return (shape, channel, channel)[: len(layer.top)], (channel, channel)


def eltwise_accuracy(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """EltwiseAccuracy: one value for scores N x C x H x W and labels N x 1 x H x W."""
    for index, shape in enumerate(bottoms):
        need_rank(layer, shape, 4, index)
    scores, labels = bottoms
    if labels != (scores[0], 1, *scores[2:]):
        raise fail(layer, f"bottom 1 ({layer.bottom[1]}) is {dims(labels)}",
                   f"{dims((scores[0], 1, *scores[2:]))}, a label a pixel")  # fmt: skip
    top_k = layer.eltwise_accuracy_param.top_k
    if not 1 <= top_k <= scores[1]:
        raise fail(layer, f"top_k {top_k} of {scores[1]} classes", f"1 to {scores[1]}", "set top_k")
    return ((1, 1, 1, 1),), ()


def unpool_window(layer: Layer) -> Window:
    """Window of an Unpooling layer: what each value of the bottom stands for on the top."""
    p = layer.unpooling_param
    kernel = _pair(layer, p, "kernel_size", "kernel")
    stride = _pair(layer, p, "stride", "stride")
    if kernel is None:
        raise fail(layer, "no kernel_size", "kernel_size, or kernel_h and kernel_w", "set kernel_size")
    pad = _pair(layer, p, "pad", "pad") or (0, 0)
    if any(pad):
        raise fail(layer, f"pad {dims(pad)}", "0: unpooling has no other", "remove pad")
    stride = stride or (p.stride, p.stride)
    for name, values in (("kernel", kernel), ("stride", stride)):
        _at_least(layer, name, values, 1)
    return Window(kernel, stride, (0, 0), (1, 1))


def unpool_size(layer: Layer) -> Shape:
    """Height and width of an Unpooling layer's top."""
    size = _pair(layer, layer.unpooling_param, "unpool_size", "unpool")
    if size is None:
        raise fail(layer, "no unpool_size", "unpool_size, or unpool_h and unpool_w", "set unpool_size")
    _at_least(layer, "unpool", size, 1)
    return size


def upsample_size(layer: Layer, size: Shape) -> Shape:
    """Height and width of an Upsample layer's top for a bottom of `size`."""
    p = layer.upsample_param
    if p.HasField("upsample_h") or p.HasField("upsample_w"):
        if not (p.HasField("upsample_h") and p.HasField("upsample_w")):
            raise fail(layer, "only one of upsample_h and upsample_w is set", "both, or a scale")
        _at_least(layer, "upsample", (p.upsample_h, p.upsample_w), 2)
        return (p.upsample_h, p.upsample_w)
    scale = _pair(layer, p, "scale", "scale") or (p.scale, p.scale)
    _at_least(layer, "scale", scale, 2)
    short = (p.pad_out_h, p.pad_out_w)
    for name, one, factor in zip("hw", short, scale, strict=True):
        if one and factor != 2:
            raise fail(layer, f"pad_out_{name} with a scale of {factor}", "a scale of 2",
                       "give upsample_h and upsample_w instead")  # fmt: skip
    return tuple(n * f - int(o) for n, f, o in zip(size, scale, short, strict=True))


def _pair(layer: Layer, message: Any, single: str, stem: str) -> Shape | None:
    """(height, width) from one field or from two; None where neither is set."""
    names = (f"{stem}_h", f"{stem}_w")
    given = [message.HasField(name) for name in names]
    if message.HasField(single) and any(given):
        raise fail(layer, f"both {single} and {names[0]} or {names[1]} are set", "one of the two forms")
    if given[0] != given[1]:
        raise fail(layer, f"only one of {names[0]} and {names[1]} is set", "both, or neither")
    if all(given):
        return (getattr(message, names[0]), getattr(message, names[1]))
    return (getattr(message, single),) * 2 if message.HasField(single) else None


def _at_least(layer: Layer, stem: str, values: Shape, least: int) -> None:
    for name, value in zip("hw", values, strict=True):
        if value < least:
            raise fail(layer, f"{stem}_{name} {value}", f"at least {least}", f"set {stem}")


def _check_mask(layer: Layer, bottoms: Shapes) -> None:
    need_rank(layer, bottoms[0], 4)
    if len(bottoms) > 1 and bottoms[1] != bottoms[0]:
        raise fail(layer, f"bottom 1 ({layer.bottom[1]}) is {dims(bottoms[1])}",
                   f"{dims(bottoms[0])} as bottom 0: a place for each value")  # fmt: skip
