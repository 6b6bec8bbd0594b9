"""Shapes made by layers that compute: windows, matrix products, normalisation, neurons.

One function a family: the layer and the shapes of its bottoms in, the shapes of its tops and of its
parameter blobs (in Caffe's order) out. Follows the `Reshape` and `LayerSetUp` functions under
`src/caffe/layers` of BVLC/caffe at 9b891540; every check there is a NetError here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, log, prod

from surgery.geometry import (
    Layer,
    Shape,
    Window,
    conv_size,
    conv_window,
    deconv_size,
    dims,
    fail,
    find_axis,
    need_rank,
    pool_size,
    pool_window,
    weight_shape,
)

Shapes = tuple[Shape, ...]
Rule = Callable[[Layer, Shapes], tuple[Shapes, Shapes]]


def same(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """A pointwise layer."""
    return bottoms[:1], ()


def counted(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """A pointwise layer that counts its passes."""
    return bottoms[:1], ((1,),)


def convolution(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Convolution and Deconvolution: every bottom passes the same weights to the top of its index."""
    for i, shape in enumerate(bottoms):
        if shape != bottoms[0]:
            raise fail(
                layer, f"bottom {i} ({layer.bottom[i]}) is {dims(shape)}", f"{dims(bottoms[0])} as bottom 0"
            )
    if len(layer.top) != len(bottoms):
        raise fail(layer, f"{len(layer.top)} tops for {len(bottoms)} bottoms", "one top a bottom")
    p, shape = layer.convolution_param, bottoms[0]
    axis = find_axis(layer, "axis", p.axis, len(shape))
    window = conv_window(layer, len(shape) - axis - 1)
    weight = weight_shape(layer, shape[axis], window)
    size = (deconv_size if layer.type == "Deconvolution" else conv_size)(shape[axis + 1 :], window)
    params = (weight, (p.num_output,)) if p.bias_term else (weight,)
    return ((*shape[:axis], p.num_output, *size),) * len(bottoms), params


def im2col(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Every window's values as channels."""
    shape = bottoms[0]
    axis = find_axis(layer, "axis", layer.convolution_param.axis, len(shape))
    window = conv_window(layer, len(shape) - axis - 1)
    channels = shape[axis] * prod(window.kernel)
    return ((*shape[:axis], channels, *conv_size(shape[axis + 1 :], window)),), ()


def pooling(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Pooling; a second top (MAX only) is the mask of the chosen positions."""
    p, shape = layer.pooling_param, bottoms[0]
    need_rank(layer, shape, 4)
    if len(layer.top) > 1 and p.pool != p.MAX:
        raise fail(layer, f"{len(layer.top)} tops", "one top, or pool MAX for a mask")
    size = pool_size(shape[2:], pool_window(layer, shape[2:]), p.round_mode == p.FLOOR)
    return ((*shape[:2], *size),) * len(layer.top), ()


def spp(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Spatial pyramid pooling: 1, 4, 16, ... bins a channel, flattened, unless there is one level only."""
    shape, levels = bottoms[0], layer.spp_param.pyramid_height
    need_rank(layer, shape, 4)
    if levels < 1:
        raise fail(layer, f"pyramid_height {levels}", "at least 1", "set pyramid_height")
    sizes = [_pyramid_level(layer, shape[2:], level) for level in range(levels)]
    if levels == 1:
        return ((*shape[:2], *sizes[0]),), ()
    return ((shape[0], shape[1] * sum(map(prod, sizes))),), ()


def interp(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Bilinear resizing of (N, C, H, W); a second bottom gives the size. Of DeepLab's fork, not of 1.0."""
    for i, shape in enumerate(bottoms):
        need_rank(layer, shape, 4, i)
    return ((*bottoms[0][:2], *interp_size(layer, *(shape[2:] for shape in bottoms))),), ()


def interp_size(layer: Layer, size: Shape, like: Shape | None = None) -> Shape:
    """(height, width) that an Interp layer makes of `size`, or of the second bottom's, `like`.

    NetError unless exactly one of the factors, height and width, and the second bottom says it.
    """
    p = layer.interp_param
    for field in ("pad_beg", "pad_end"):
        if getattr(p, field) > 0:
            raise fail(layer, f"{field} {getattr(p, field)}", "at most 0: pixels to cut off", f"set {field}")
    for field in ("height", "width", "zoom_factor", "shrink_factor"):
        if p.HasField(field) and getattr(p, field) < 1:
            raise fail(layer, f"{field} {getattr(p, field)}", "at least 1", f"set {field}")
    if p.HasField("height") != p.HasField("width"):
        raise fail(layer, "only one of height and width", "both, or neither")
    ways = (p.HasField("zoom_factor") or p.HasField("shrink_factor"), p.HasField("height"), like is not None)
    if sum(ways) != 1:
        raise fail(layer, f"{sum(ways) or 'no'} ways of saying the size",
                   "one: zoom_factor and shrink_factor, height and width, or a second bottom")  # fmt: skip
    cut = tuple(n + p.pad_beg + p.pad_end for n in size)
    if min(cut) < 1:
        raise fail(layer, f"pad_beg {p.pad_beg} and pad_end {p.pad_end} of {dims(size)}", "a pixel left over")
    if ways[0]:
        return tuple((n - 1) // p.shrink_factor * p.zoom_factor + 1 for n in cut)
    return like if like is not None else (p.height, p.width)


def inner_product(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """A matrix product over all axes from `axis` on; weights (out, in), or (in, out) with `transpose`."""
    p, shape = layer.inner_product_param, bottoms[0]
    axis = find_axis(layer, "axis", p.axis, len(shape))
    inputs, outputs = prod(shape[axis:]), _outputs(layer, p.num_output)
    weight = (inputs, outputs) if p.transpose else (outputs, inputs)
    return ((*shape[:axis], outputs),), ((weight, (outputs,)) if p.bias_term else (weight,))


def embed(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """A row of the weights for each index."""
    p = layer.embed_param
    outputs = _outputs(layer, p.num_output)
    if p.input_dim < 1:
        raise fail(layer, f"input_dim {p.input_dim}", "at least 1", "set input_dim")
    weight = (p.input_dim, outputs)
    return ((*bottoms[0], outputs),), ((weight, (outputs,)) if p.bias_term else (weight,))


def batch_norm(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Sums of mean and variance, one a channel, and their common factor."""
    shape = bottoms[0]
    _need_channels(layer, shape)
    return bottoms[:1], (shape[1:2], shape[1:2], (1,))


def scale(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Scale: the factor is a parameter or the second bottom; `bias_term` adds a parameter of its shape."""
    p = layer.scale_param
    factor, owned = _broadcast(layer, bottoms, p.axis, p.num_axes)
    if p.bias_term:
        find_axis(layer, "axis", p.axis, len(bottoms[0]))
    return bottoms[:1], owned + ((factor,) if p.bias_term else ())


def bias(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Bias: the addend is a parameter or the second bottom."""
    p = layer.bias_param
    return bottoms[:1], _broadcast(layer, bottoms, p.axis, p.num_axes)[1]


def prelu(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """One slope a channel, or a single 0-d one."""
    _need_channels(layer, bottoms[0])
    legacy(layer, bottoms[0])
    return bottoms[:1], ((() if layer.prelu_param.channel_shared else bottoms[0][1:2]),)


def lrn(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Local response normalisation."""
    need_rank(layer, bottoms[0], 4)
    size = layer.lrn_param.local_size
    if size % 2 == 0:
        raise fail(layer, f"local_size {size}", "an odd size", "set local_size")
    return bottoms[:1], ()


def mvn(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Mean and variance normalisation; the top has four axes, filled with ones, whatever the bottom has."""
    return (legacy(layer, bottoms[0]),), ()


def softmax(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Softmax along an axis."""
    find_axis(layer, "axis", layer.softmax_param.axis, len(bottoms[0]))
    return bottoms[:1], ()


def logarithmic(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Exp and Log: the base is e (-1) or positive, and not 1 in Log."""
    log_of_base(layer)
    return bottoms[:1], ()


def log_of_base(layer: Layer) -> float:
    """Natural logarithm of the base of an Exp or Log layer. NetError where Caffe's check would fail."""
    base = (layer.exp_param if layer.type == "Exp" else layer.log_param).base
    if base == -1:
        return 1.0
    if base <= 0 or not isfinite(base):
        raise fail(layer, f"base {base:g}", "a positive number, or -1 for e", "set base")
    if base == 1 and layer.type == "Log":
        raise fail(layer, "base 1", "another base: 1 has no logarithm", "set base")
    return log(base)


def dropout(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Dropout: the ratio is a probability below 1."""
    ratio = layer.dropout_param.dropout_ratio
    if not 0 <= ratio < 1:
        raise fail(layer, f"dropout_ratio {ratio:g}", "at least 0 and below 1", "set dropout_ratio")
    return bottoms[:1], ()


def eltwise(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Sum, product or maximum of bottoms of one shape."""
    p = layer.eltwise_param
    for i, shape in enumerate(bottoms):
        if shape != bottoms[0]:
            raise fail(
                layer,
                f"bottom {i} ({layer.bottom[i]}) is {dims(shape)}",
                f"{dims(bottoms[0])} as bottom 0 ({layer.bottom[0]})",
                "crop or reshape one of them",
            )
    if p.coeff and p.operation == p.PROD:
        raise fail(layer, "coeff with operation PROD", "operation SUM", "remove coeff")
    if len(p.coeff) not in (0, len(bottoms)):
        raise fail(layer, f"{len(p.coeff)} values of coeff", f"none or {len(bottoms)}, one a bottom")
    return bottoms[:1], ()


def legacy(layer: Layer, shape: Shape, index: int = 0) -> Shape:
    """The shape as num, channels, height, width: ones behind it up to four axes."""
    if len(shape) > 4:
        raise fail(layer, f"bottom {index} ({layer.bottom[index]}) is {dims(shape)}", "at most 4 axes")
    return shape + (1,) * (4 - len(shape))


def _outputs(layer: Layer, count: int) -> int:
    if count < 1:
        raise fail(layer, f"num_output {count}", "at least 1", "set num_output")
    return count


def _need_channels(layer: Layer, shape: Shape) -> None:
    if len(shape) < 2:
        raise fail(layer, f"bottom 0 ({layer.bottom[0]}) is {dims(shape)}", "at least 2 axes")


def _pyramid_level(layer: Layer, size: Shape, level: int) -> Shape:
    bins = 2**level
    kernel = tuple(-(-n // bins) for n in size)
    pad = tuple((k * bins - n + 1) // 2 for n, k in zip(size, kernel, strict=True))
    if any(pad) and layer.spp_param.pool == layer.spp_param.STOCHASTIC:
        raise fail(layer, f"stochastic pooling needs padding at level {level}", "MAX or AVE", "set pool")
    if any(p >= k for p, k in zip(pad, kernel, strict=True)):
        raise fail(
            layer,
            f"pyramid level {level} cuts {dims(size)} into windows of {dims(kernel)} with "
            f"padding {dims(pad)}",
            "padding below the window",
            "lower pyramid_height or enlarge the input",
        )
    return pool_size(size, Window(kernel, kernel, pad, (1, 1)))


def _broadcast(layer: Layer, bottoms: Shapes, axis: int, num_axes: int) -> tuple[Shape, Shapes]:
    """Shape of the second operand of Scale and Bias, and the parameters: that one, or none."""
    shape = bottoms[0]
    if len(bottoms) == 1:
        start = find_axis(layer, "axis", axis, len(shape)) if num_axes or shape else 0
        if num_axes < -1:
            raise fail(layer, f"num_axes {num_axes}", "at least 0, or -1 for all", "set num_axes")
        stop = len(shape) if num_axes == -1 else start + num_axes
        if stop > len(shape):
            raise fail(
                layer,
                f"axis {axis} and num_axes {num_axes} on {dims(shape)}",
                f"at most {len(shape)} axes",
                "lower num_axes",
            )
        return shape[start:stop], (shape[start:stop],)
    other = bottoms[1]
    start = find_axis(layer, "axis", axis, len(shape)) if other else 0
    if shape[start : start + len(other)] != other:
        raise fail(
            layer,
            f"bottom 1 ({layer.bottom[1]}) is {dims(other)}",
            f"the sizes of bottom 0 ({dims(shape)}) from axis {start} on",
        )
    return other, ()
