"""Windows of convolution, deconvolution, im2col and pooling layers, and the sizes they make.

Follows `base_conv_layer.cpp`, `conv_layer.cpp`, `deconv_layer.cpp`, `im2col_layer.cpp` and
`pooling_layer.cpp` of BVLC/caffe at 9b891540. Departures: a stride, dilation or group of 0, which Caffe
divides by without looking, is an error here, and so is a pooling kernel_size beside a kernel_h alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError

Shape = tuple[int, ...]
Layer = caffe_pb2.LayerParameter


@dataclass(frozen=True)
class Window:
    """Kernel, stride, padding and dilation, one value for each spatial axis, outermost axis first."""

    kernel: Shape
    stride: Shape
    pad: Shape
    dilation: Shape

    @property
    def extent(self) -> Shape:
        """Size of the dilated kernel on the input."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))


def fail(layer: Layer, found: str, wanted: str = "", do: str = "") -> NetError:
    """The error for a bad `layer`; `found` begins with the field or blob at fault."""
    return NetError(f"layer {layer.name or '(no name)'} ({layer.type})", found, wanted, do)


def dims(shape: Shape) -> str:
    """A shape for a message: `1x3x500x500`, or `one value` for a 0-d blob."""
    return "x".join(map(str, shape)) or "one value"


def conv_window(layer: Layer, axes: int | None = None) -> Window:
    """Window of a Convolution, Deconvolution or Im2col layer with `axes` spatial axes.

    Without `axes` the fields keep their own length: 1 for a value meant for every axis. NetError for a
    field of a wrong length, given twice, or below its least value.
    """
    p = layer.convolution_param
    kernel = _conv_field(layer, "kernel_size", "kernel", axes, None, 1)
    stride = _conv_field(layer, "stride", "stride", axes, 1, 1)
    pad = _conv_field(layer, "pad", "pad", axes, 0, 0)
    dilation = _repeat(layer, "dilation", list(p.dilation) or [1], axes, 1)
    length = max(map(len, (kernel, stride, pad, dilation))) if axes is None else axes
    for field, values in (("kernel_size", kernel), ("stride", stride), ("pad", pad), ("dilation", dilation)):
        if len(values) not in (1, length):
            raise fail(
                layer,
                f"{field} has {len(values)} values where another field has {length}",
                "one value, or one for each spatial axis",
            )
    spread = [v * length if len(v) == 1 else v for v in (kernel, stride, pad, dilation)]
    return Window(*spread)


def pool_window(layer: Layer, size: Shape | None) -> Window:
    """Window of a Pooling layer; with global_pooling it is the whole of `size`, (height, width).

    NetError for contradicting or missing fields, padding of at least the kernel, or a global pooling
    without `size`.
    """
    p = layer.pooling_param
    if p.global_pooling:
        return _global_window(layer, size)
    kernel = _pool_field(layer, "kernel_size", "kernel", 1)
    stride = _pool_field(layer, "stride", "stride", 1)
    pad = _pool_field(layer, "pad", "pad", 0)
    if any(pad):
        if p.pool == p.STOCHASTIC:
            raise fail(layer, f"pad {dims(pad)} with stochastic pooling", "MAX or AVE", "set pad to 0")
        for name, value, limit in zip("hw", pad, kernel, strict=True):
            if value >= limit:
                raise fail(
                    layer,
                    f"pad_{name} {value} is not below kernel_{name} {limit}",
                    f"at most {limit - 1}",
                    "lower the padding",
                )
    return Window(kernel, stride, pad, (1, 1))


def conv_size(size: Shape, window: Window) -> Shape:
    """Sizes after a convolution: integer division that truncates towards zero, as C's does.

    So a kernel larger than its padded input by less than the stride still gives one output.
    """
    values = zip(size, window.extent, window.stride, window.pad, strict=True)
    return tuple(_truncate(n + 2 * p - k, s) + 1 for n, k, s, p in values)


def deconv_size(size: Shape, window: Window) -> Shape:
    """Sizes after a deconvolution."""
    values = zip(size, window.extent, window.stride, window.pad, strict=True)
    return tuple(s * (n - 1) + k - 2 * p for n, k, s, p in values)


def pool_size(size: Shape, window: Window, floor: bool = False) -> Shape:
    """Sizes after pooling, rounded up unless `floor`; the last window of a padded layer starts inside."""
    out = []
    for n, k, s, p in zip(size, window.kernel, window.stride, window.pad, strict=True):
        span = n + 2 * p - k
        count = (span // s if floor else -(-span // s)) + 1
        if any(window.pad) and (count - 1) * s >= n + p:
            count -= 1
        out.append(count)
    return tuple(out)


def weight_shape(layer: Layer, channels: int, window: Window) -> Shape:
    """Shape of a convolution's weights, (out, in / group, *kernel); in and out swapped in a deconvolution."""
    p = layer.convolution_param
    out, group = p.num_output, p.group
    if out < 1:
        raise fail(layer, f"num_output {out}", "at least 1", "set num_output")
    for name, value in (("channels of the input", channels), ("num_output", out)):
        if group < 1 or value % group:
            raise fail(
                layer,
                f"group {group} does not divide the {value} {name}"
                if name != "num_output"
                else f"group {group} does not divide num_output {value}",
                "a divisor of both",
            )
    first, second = (channels, out) if layer.type == "Deconvolution" else (out, channels)
    return (first, second // group, *window.kernel)


def find_axis(layer: Layer, field: str, axis: int, rank: int) -> int:
    """`axis` counted from the front; NetError unless a blob with `rank` axes has it."""
    if not -rank <= axis < rank:
        wanted = f"{-rank} to {rank - 1}" if rank else "a blob with axes"
        raise fail(layer, f"{field} {axis} on a blob with {rank} axes", wanted, f"set {field}")
    return axis % rank


def need_rank(layer: Layer, shape: Shape, rank: int, index: int = 0) -> None:
    """NetError unless a bottom has exactly `rank` axes."""
    if len(shape) != rank:
        raise fail(layer, f"bottom {index} ({layer.bottom[index]}) is {dims(shape)}", f"{rank} axes")


def check_count(layer: Layer, blob: str, shape: Shape) -> None:
    """NetError unless every size of `shape` is at least 1 and Caffe can count its values in 31 bits."""
    if any(n < 1 for n in shape):
        raise fail(
            layer,
            f"{blob} would be {dims(shape)}",
            "sizes of at least 1",
            "enlarge the input, or shrink the kernel or crop",
        )
    if prod(shape) > 2**31 - 1:
        raise fail(
            layer,
            f"{blob} would hold {prod(shape)} values ({dims(shape)})",
            f"at most {2**31 - 1}",
            "use a smaller input",
        )


def _conv_field(
    layer: Layer, field: str, stem: str, axes: int | None, default: int | None, least: int
) -> Shape:
    p = layer.convolution_param
    values = list(getattr(p, field))
    if not (p.HasField(f"{stem}_h") or p.HasField(f"{stem}_w")):
        if not values and default is None:
            raise fail(layer, f"no {field}", "at least one value", f"set {field}")
        return _repeat(layer, field, values or [default or 0], axes, least)
    if values:
        raise fail(layer, f"both {field} and {stem}_h or {stem}_w are set", "one of the two forms")
    if axes not in (None, 2):
        raise fail(layer, f"{stem}_h and {stem}_w with {axes} spatial axes", "2 spatial axes", f"use {field}")
    return _at_least(layer, stem, (getattr(p, f"{stem}_h"), getattr(p, f"{stem}_w")), least)


def _repeat(layer: Layer, field: str, values: list[int], axes: int | None, least: int) -> Shape:
    if axes is not None and len(values) not in (1, axes):
        raise fail(layer, f"{field} has {len(values)} values", f"1 or {axes}, one for each spatial axis")
    for value in values:
        if value < least:
            raise fail(layer, f"{field} {value}", f"at least {least}", f"set {field}")
    return tuple(values) if axes is None or len(values) == axes else tuple(values * axes)


def _at_least(layer: Layer, stem: str, values: Shape, least: int) -> Shape:
    for name, value in zip("hw", values, strict=True):
        if value < least:
            raise fail(layer, f"{stem}_{name} {value}", f"at least {least}", f"set {stem}_{name}")
    return values


def _pool_field(layer: Layer, field: str, stem: str, least: int) -> Shape:
    p = layer.pooling_param
    height, width = p.HasField(f"{stem}_h"), p.HasField(f"{stem}_w")
    single = p.HasField(field)
    if single and (height or width):
        raise fail(layer, f"both {field} and {stem}_h or {stem}_w are set", "one of the two forms")
    if height != width:
        raise fail(layer, f"only one of {stem}_h and {stem}_w is set", "both, or neither")
    if field == "kernel_size" and not single and not height:
        raise fail(
            layer,
            "no kernel_size",
            "kernel_size, kernel_h and kernel_w, or global_pooling",
            "set kernel_size",
        )
    if height:
        return _at_least(layer, stem, (getattr(p, f"{stem}_h"), getattr(p, f"{stem}_w")), least)
    return _repeat(layer, field, [getattr(p, field)], 2, least)


def _global_window(layer: Layer, size: Shape | None) -> Window:
    p = layer.pooling_param
    for field in ("kernel_size", "kernel_h", "kernel_w"):
        if p.HasField(field):
            raise fail(
                layer,
                f"global_pooling with {field} {getattr(p, field)}",
                "no kernel",
                f"remove {field} or global_pooling",
            )
    for stem, least in (("pad", 0), ("stride", 1)):
        if _pool_field(layer, stem, stem, least) != (least, least):
            raise fail(layer, f"global_pooling with {stem} set", f"{stem} {least}", f"remove {stem}")
    if size is None:
        raise fail(layer, "global_pooling has no fixed window", "a kernel_size")
    return Window(size, (1, 1), (0, 0), (1, 1))


def _truncate(a: int, b: int) -> int:
    return a // b if a >= 0 else -(-a // b)
