"""Which layers keep a blob in region and rim, and how each computes a region. See `reproduce.frame`.

A layer may be here when every position of its top depends on a bounded window of its bottoms and, inside the
map, in the same way everywhere. Left out with reason: Deconvolution (of a constant it makes a pattern that
repeats with its stride), Dropout in TRAIN (its mask differs at every position), batch statistics, MVN,
stochastic pooling and whatever else looks at the whole map. Softmax, Slice and Tile could be here but stand
behind the heads. Crop only reads: it takes the assembled map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as nnf

from reproduce.layers import neuron
from reproduce.layers.base import FLT_MAX, Layer, positive_axis
from reproduce.layers.convolution import Convolution
from reproduce.layers.neuron import Dropout
from reproduce.layers.normalization import LRN, BatchNorm, Bias, Scale
from reproduce.layers.pooling import MAX, STOCHASTIC, Pooling, average_pool, max_pool
from reproduce.layers.shape import Concat, Eltwise
from surgery.geometry import Window
from surgery.shapes import LayerShapes

POINT = Window((1, 1), (1, 1), (0, 0), (1, 1))
CHANNELS = 1


class Place(NamedTuple):
    """Where a patch lies on a map: its first row and column, and the map's size."""

    start: tuple[int, int]
    size: tuple[int, int]


Finder = Callable[[Layer, LayerShapes], Window | None]
Runner = Callable[[Layer, list[Tensor], list[Tensor], Place], Tensor]


class Rule(NamedTuple):
    """What a type of layer does to a blob in two parts.

    `window` is what a position reads, or None where this very layer cannot be followed. `run` makes the top
    from patches of the bottoms that hold just what it reads, without padding of its own: beyond the map a
    patch holds `outside`.
    """

    window: Finder
    run: Runner
    outside: Callable[[Layer], float] = lambda layer: 0.0


def find_window(layer: Layer, found: LayerShapes) -> Window | None:
    """The window of a layer that can be followed, else None."""
    rule = RULES.get(type(layer))
    maps = all(len(shape) == 4 for shape in (*found.bottoms, *found.tops))
    if rule is None or not maps or len(found.tops) != 1:
        return None
    if len(found.bottoms) != 1 and not isinstance(layer, Concat | Eltwise):
        return None
    return rule.window(layer, found)


def _point(layer: Layer, found: LayerShapes) -> Window:
    return POINT


def _run_whole(layer: Layer, patches: list[Tensor], blobs: list[Tensor], place: Place) -> Tensor:
    return layer.forward(patches, blobs)[0]


def _convolution(layer: Layer, found: LayerShapes) -> Window | None:
    assert isinstance(layer, Convolution)
    axis, window = layer.window(4)
    return window if axis == CHANNELS else None


def _convolve(layer: Layer, patches: list[Tensor], blobs: list[Tensor], place: Place) -> Tensor:
    assert isinstance(layer, Convolution)
    return layer.convolve(patches[0], blobs, pad=(0, 0))


def _pooling(layer: Layer, found: LayerShapes) -> Window | None:
    assert isinstance(layer, Pooling)
    return None if layer.method == STOCHASTIC or layer.mask else layer.window


def _pool(layer: Layer, patches: list[Tensor], blobs: list[Tensor], place: Place) -> Tensor:
    assert isinstance(layer, Pooling) and layer.window is not None
    x, window = patches[0], layer.window
    inner = Window(window.kernel, window.stride, (0, 0), (1, 1))
    if layer.method == MAX:
        return max_pool(x, inner, True)
    beyond = [_beyond(i, x.shape[2 + i], place) for i in (0, 1)]
    if not any(beyond):
        return average_pool(x, inner, True)
    total = nnf.avg_pool2d(x, window.kernel, window.stride, divisor_override=1)
    rows, columns = (_counts(i, total.shape[2 + i], window, place) for i in (0, 1))
    return total / torch.tensor([[r * c for c in columns] for r in rows], dtype=x.dtype, device=x.device)


def _beyond(axis: int, length: int, place: Place) -> bool:
    return place.start[axis] < 0 or place.start[axis] + length > place.size[axis]


def _counts(axis: int, length: int, window: Window, place: Place) -> list[int]:
    # a window counts its padding, and not what overhangs the padding
    end = place.size[axis] + window.pad[axis]
    starts = (place.start[axis] + i * window.stride[axis] for i in range(length))
    return [min(start + window.kernel[axis], end) - start for start in starts]


def _outside_pool(layer: Layer) -> float:
    return -FLT_MAX if isinstance(layer, Pooling) and layer.method == MAX else 0.0


def _lrn(layer: Layer, found: LayerShapes) -> Window:
    assert isinstance(layer, LRN)
    if not layer.within:
        return POINT
    return Window((layer.size,) * 2, (1, 1), ((layer.size - 1) // 2,) * 2, (1, 1))


def _normalize(layer: Layer, patches: list[Tensor], blobs: list[Tensor], place: Place) -> Tensor:
    assert isinstance(layer, LRN)
    y, pad = layer.forward(patches, blobs)[0], (layer.size - 1) // 2
    if not layer.within or not pad:
        return y
    return y[:, :, pad:-pad, pad:-pad]  # the borders saw the layer's own padding


def _scale(layer: Layer, found: LayerShapes) -> Window | None:
    assert isinstance(layer, Scale | Bias)
    if not found.params or not found.params[0]:
        return POINT
    axis = positive_axis(layer.param.axis, 4)
    return POINT if axis == CHANNELS and len(found.params[0]) == 1 else None


def _dropout(layer: Layer, found: LayerShapes) -> Window | None:
    return POINT if isinstance(layer, Dropout) and layer.phase == "TEST" else None


def _batch_norm(layer: Layer, found: LayerShapes) -> Window | None:
    return POINT if isinstance(layer, BatchNorm) and layer.stored else None


def _concat(layer: Layer, found: LayerShapes) -> Window | None:
    assert isinstance(layer, Concat)
    return POINT if positive_axis(layer.axis, 4) == CHANNELS else None


POINTWISE: tuple[type[Layer], ...] = (
    Eltwise, neuron.AbsVal, neuron.BNLL, neuron.Clip, neuron.ELU, neuron.Exp, neuron.Log, neuron.PReLU,
    neuron.Power, neuron.ReLU, neuron.Sigmoid, neuron.Swish, neuron.TanH, neuron.Threshold,
)  # fmt: skip
RULES: dict[type[Layer], Rule] = {  # by class, so that a layer put in the place of ours is left alone
    **dict.fromkeys(POINTWISE, Rule(_point, _run_whole)),
    BatchNorm: Rule(_batch_norm, _run_whole),
    Bias: Rule(_scale, _run_whole),
    Concat: Rule(_concat, _run_whole),
    Convolution: Rule(_convolution, _convolve),
    Dropout: Rule(_dropout, _run_whole),
    LRN: Rule(_lrn, _normalize),
    Pooling: Rule(_pooling, _pool, _outside_pool),
    Scale: Rule(_scale, _run_whole),
}
