"""Scores at every pixel without up-sampling: shift-and-stitch, and its equal, filter rarefaction (a trous).

Section 3.2 of the FCN paper (CVPR 2015): a net of stride s gives dense output either by running it on s x s
shifted inputs and interlacing the outputs, or once, with every stride set to 1 and the filters behind it
enlarged by holes. Here both are functions on a net, and their results are equal up to rounding.

They can only be equal where padding inside the net plays no part, since padding moves with each shift. So the
picture is laid on an endless plane of zeros (the mean colour), which is what padding the first convolution
approximates: each score is the net's on the window that its receptive field sees, whole. Near the border
this differs from the net's own padding, and nowhere else.

A score made of several (skips, two streams) is the sum of each one's dense map; interpolation layers, which
only fill in between coarse pixels, have nothing to do and are left out. Where a unit's centre lies between
two pixels, as behind VGG's even pools, it counts for the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import floor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from caffe_weights.caffe_pb2 import NetParameter, PoolingParameter
from caffe_weights.errors import NetError
from caffe_weights.weights import Weights
from reproduce.layers import LAYERS
from reproduce.net import Net
from surgery.coordinates import map_to_input, receptive_field
from surgery.deploy import subnet
from surgery.geometry import Layer, conv_window, fail, pool_window
from surgery.grid import PASS_THROUGH, Graph
from surgery.interpolation import bilinear_weights

Pair = tuple[int, int]
Inputs = Mapping[str, Tensor | np.ndarray]

BATCH = 8  # shifted inputs run at once
POINTWISE = (PASS_THROUGH - {"MVN", "Eltwise"}) | {"Slice"}


@dataclass(frozen=True)
class Term:
    """A part of the scores: blob times `factor`, before any interpolation."""

    blob: str
    factor: float


@dataclass(frozen=True)
class Sight:
    """What a blob's units see: stride, size of the receptive field, its first pixel for unit 0 and, for the
    unit of a pixel, relative to that pixel; (height, width) each."""

    stride: Pair
    size: Pair
    first: Pair
    before: Pair


@dataclass(frozen=True)
class Sheet:
    """A blob at full resolution: element 0 is at `origin`; unit i of the net's own blob is at rate * i."""

    values: Tensor
    rate: Pair
    origin: Pair


def dense_scores(net: Net, inputs: Inputs, output: str | None = None, method: str = "atrous") -> Tensor:
    """Scores (N, C, H, W) at every pixel of inputs (N, channels, H, W) by "atrous" or "shift-and-stitch".

    `output` is the score blob, by default the net's only output. The first costs about stride squared times
    the net's own run in its deepest layers, the second in all. NetError for a layer that has no dense
    form, an interpolation that has learned, an output that is not clear.
    """
    if method not in METHODS:
        raise NetError("dense", repr(method), " or ".join(METHODS))
    like = _like(net)
    tensors = {
        name: (x if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x))).to(like)
        for name, x in inputs.items()
    }
    total: Tensor | None = None
    for term in score_terms(net, output or _only_output(net)):
        part = subnet(net.definition, [Graph(net.definition).node(term.blob)],
                      {name: tuple(x.shape) for name, x in tensors.items()})  # fmt: skip
        _leave_padding_to_the_plane(part)
        needed = {name: tensors[name] for layer in part.layer if layer.type == "Input" for name in layer.top}
        scores = METHODS[method](net, part, term.blob, needed) * term.factor
        total = scores if total is None else total + scores
    assert total is not None
    return total


def score_terms(net: Net, output: str) -> list[Term]:
    """The blobs that `output` is a sum of, behind crops and interpolation."""
    found: list[Term] = []
    waiting = [Term(output, 1.0)]
    while waiting:
        term = waiting.pop()
        layer = _maker(net.definition, term.blob)
        if layer.type == "Deconvolution":
            _check_interpolation(net, layer)
        if layer.type in ("Crop", "Deconvolution"):
            waiting.append(Term(layer.bottom[0], term.factor))
        elif layer.type == "Eltwise" and _is_sum(layer) and _fuses(net, layer):
            factors = list(layer.eltwise_param.coeff) or [1.0] * len(layer.bottom)
            waiting += [Term(b, term.factor * f) for b, f in zip(layer.bottom, factors, strict=True)]
        else:
            found.append(term)
    return found


def sight(part: NetParameter, blob: str) -> Sight:
    """What the units of `blob` see of the input. NetError where they keep no grid of whole strides."""
    field = receptive_field(part, blob)
    shift = map_to_input(part)[blob].shift
    stride = tuple(_whole(step, blob) for step in field.stride)
    before = tuple(f - floor(s) for f, s in zip(field.first, (shift[0], shift[-1]), strict=True))
    return Sight((stride[0], stride[1]), field.size, field.first, (before[0], before[1]))


def _shift_and_stitch(net: Net, part: NetParameter, blob: str, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run the net on every shift of the picture on its plane, and interlace."""
    see = sight(part, blob)
    size = next(iter(inputs.values())).shape[2:]
    rest = [f % s for f, s in zip(see.first, see.stride, strict=True)]
    skip = [(r - f) // s for r, f, s in zip(rest, see.first, see.stride, strict=True)]
    window = [n + r + k - 1 for n, r, k in zip(size, rest, see.size, strict=True)]
    margins = [
        (r - b, n_window + s - 1 - n - (r - b))
        for n, r, b, s, n_window in zip(size, rest, see.before, see.stride, window, strict=True)
    ]
    planes = {name: nnf.pad(x, (*margins[1], *margins[0])) for name, x in inputs.items()}
    shapes = {name: (BATCH, x.shape[1], *window) for name, x in inputs.items()}
    model = Net(part, _weights_of(net, part), input_shapes=shapes, frame=False).to(_like(net))
    count = next(iter(inputs.values())).shape[0]
    out: Tensor | None = None
    for shifts in _batches(list(product(range(see.stride[0]), range(see.stride[1])))):
        batch = {name: torch.cat([p[:, :, y : y + window[0], x : x + window[1]] for y, x in shifts])
                 for name, p in planes.items()}  # fmt: skip
        units = model(keep=[blob], **batch)[blob][:, :, skip[0] :, skip[1] :]
        if out is None:
            out = units.new_empty(count, units.shape[1], *size)
        for (y, x), piece in zip(shifts, units.split(count), strict=True):
            place = out[:, :, y :: see.stride[0], x :: see.stride[1]]
            place.copy_(piece[:, :, : place.shape[2], : place.shape[3]])
    assert out is not None
    return out


def _atrous(net: Net, part: NetParameter, blob: str, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run the net once on the plane with all strides 1, every filter spread by the strides before it."""
    see = sight(part, blob)
    size = next(iter(inputs.values())).shape[2:]
    margins = [(-b, k - 1 + b) for b, k in zip(see.before, see.size, strict=True)]
    sheets = {
        name: Sheet(nnf.pad(x, (*margins[1], *margins[0])), (1, 1), (0, 0)) for name, x in inputs.items()
    }
    readers = _last_readers(part)
    params = net.params
    for index, layer in enumerate(part.layer):
        if layer.type == "Input":
            continue
        tops = _dense_layer(layer, [sheets[name] for name in layer.bottom], params.get(layer.name, []))
        for name in layer.bottom:
            if readers[name] == index and name != blob:
                del sheets[name]
        sheets.update(zip(layer.top, tops, strict=True))
    sheet = sheets[blob]
    y, x = (-f - o for f, o in zip(see.first, sheet.origin, strict=True))
    return sheet.values[:, :, y : y + size[0], x : x + size[1]]


METHODS: dict[str, Callable[[Net, NetParameter, str, Mapping[str, Tensor]], Tensor]] = {
    "shift-and-stitch": _shift_and_stitch,
    "atrous": _atrous,
}


def _dense_layer(layer: Layer, bottoms: Sequence[Sheet], blobs: Sequence[Tensor]) -> list[Sheet]:
    """The tops of one layer at full resolution, of all windows that lie inside."""
    if layer.type in ("Convolution", "Pooling"):
        return [_windows(layer, bottoms[0], blobs)]
    if layer.type in ("Eltwise", "Concat"):
        bottoms = _aligned(layer, bottoms)
    elif layer.type not in POINTWISE or len(bottoms) != 1 or _sees_around(layer):
        raise fail(layer, "no dense form", "convolutions, pooling, and layers that treat pixels alike",
                   "segment without --dense")  # fmt: skip
    tops = LAYERS[layer.type](layer, "TEST").forward([b.values for b in bottoms], list(blobs))
    return [Sheet(top, bottoms[0].rate, bottoms[0].origin) for top in tops]


def _windows(layer: Layer, bottom: Sheet, blobs: Sequence[Tensor]) -> Sheet:
    convolution = layer.type == "Convolution"
    if not convolution and layer.pooling_param.global_pooling:
        raise fail(
            layer, "no dense form: its window is the whole map", "a kernel_size", "segment without --dense"
        )
    window = conv_window(layer, 2) if convolution else pool_window(layer, None)
    holes = _times(bottom.rate, window.dilation)
    x, kernel = bottom.values, (window.kernel[0], window.kernel[1])
    if convolution:
        bias = blobs[1] if len(blobs) > 1 else None
        y = nnf.conv2d(x, blobs[0], bias, dilation=holes, groups=layer.convolution_param.group)
    elif layer.pooling_param.pool == PoolingParameter.MAX:
        y = nnf.max_pool2d(x, kernel, 1, 0, holes)
    elif layer.pooling_param.pool == PoolingParameter.AVE:
        mean = x.new_full((x.shape[1], 1, *kernel), 1 / (kernel[0] * kernel[1]))
        y = nnf.conv2d(x, mean, dilation=holes, groups=x.shape[1])
    else:
        raise fail(layer, "no dense form for stochastic pooling", "MAX or AVE", "segment without --dense")
    pad = _times(bottom.rate, window.pad)
    origin = (bottom.origin[0] + pad[0], bottom.origin[1] + pad[1])
    return Sheet(y, _times(bottom.rate, window.stride), origin)


def _aligned(layer: Layer, bottoms: Sequence[Sheet]) -> list[Sheet]:
    """The part that all bottoms cover."""
    if len({b.rate for b in bottoms}) > 1:
        raise fail(layer, "bottoms of different strides", "one stride", "segment without --dense")
    low = [max(b.origin[axis] for b in bottoms) for axis in (0, 1)]
    high = [min(b.origin[axis] + b.values.shape[2 + axis] for b in bottoms) for axis in (0, 1)]
    cut = []
    for b in bottoms:
        rows, columns = (slice(lo - o, hi - o) for lo, hi, o in zip(low, high, b.origin, strict=True))
        cut.append(Sheet(b.values[:, :, rows, columns], b.rate, (low[0], low[1])))
    return cut


def _times(rate: Pair, values: Sequence[int]) -> Pair:
    return rate[0] * values[0], rate[1] * values[-1]


def _sees_around(layer: Layer) -> bool:
    return layer.type == "LRN" and layer.lrn_param.norm_region == layer.lrn_param.WITHIN_CHANNEL


def _whole(step: Fraction, blob: str) -> int:
    if step.denominator != 1:
        raise NetError(f"blob {blob}", f"a stride of {step}", "a whole one", "name a blob before up-sampling")
    return int(step)


def _batches(shifts: list[Pair]) -> Iterator[list[Pair]]:
    for start in range(0, len(shifts), BATCH):
        yield shifts[start : start + BATCH]


def _maker(net: NetParameter, blob: str) -> Layer:
    graph = Graph(net)
    return graph.layers[graph.node(blob)[0]]


def _is_sum(layer: Layer) -> bool:
    return layer.eltwise_param.operation == layer.eltwise_param.SUM


def _fuses(net: Net, layer: Layer) -> bool:
    """Whether a sum is one of scores, which are named so or interpolated, not of a trunk's features."""
    makers = [_maker(net.definition, bottom) for bottom in layer.bottom]
    return all(m.type in ("Crop", "Deconvolution") or m.name.startswith("score") for m in makers)


def _check_interpolation(net: Net, layer: Layer) -> None:
    weights = net.params[layer.name][0].detach().cpu().numpy()
    try:
        plain = np.allclose(weights, bilinear_weights(weights.shape), atol=1e-6)
    except ValueError:
        plain = False
    if not plain:
        raise fail(layer, "its weights are not bilinear", "interpolation that has not learned",
                   "segment without --dense")  # fmt: skip


def _leave_padding_to_the_plane(part: NetParameter) -> None:
    """Without the padding of a first convolution the same scores cost less: its zeros are the plane's."""
    for source in part.layer:
        readers = [layer for layer in part.layer if set(source.top) & set(layer.bottom)]
        if source.type == "Input" and len(readers) == 1 and readers[0].type == "Convolution":
            for name in ("pad", "pad_h", "pad_w"):
                readers[0].convolution_param.ClearField(name)


def _only_output(net: Net) -> str:
    if len(net.outputs) != 1:
        raise NetError("net", f"{len(net.outputs)} outputs ({', '.join(net.outputs)})", "one", "name it")
    return net.outputs[0]


def _last_readers(part: NetParameter) -> dict[str, int]:
    """The last layer that reads a blob of this name; a blob made anew in place stays until then."""
    return {name: index for index, layer in enumerate(part.layer) for name in layer.bottom}


def _like(net: Net) -> Tensor:
    """A tensor of the net's dtype, on its device."""
    return next((blob.detach() for blobs in net.params.values() for blob in blobs), torch.empty(0))


def _weights_of(net: Net, part: NetParameter) -> Weights:
    names = {layer.name for layer in part.layer}
    return Weights({name: [b.detach().cpu().numpy() for b in blobs] for name, blobs in net.params.items()
                    if name in names and blobs})  # fmt: skip
