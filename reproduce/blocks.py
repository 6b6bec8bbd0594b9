"""Large maps in the order that the CPU's convolutions work in.

oneDNN computes on blocks of 16 channels. PyTorch hands it maps in the order N, C, H, W and gets them back so:
each convolution reorders its bottom and its top, in the backward pass once more each, and a max pooling in
that order is slow. Here a large map stays in blocks (a tensor of layout `torch._mkldnn`) from one convolution
through ReLU and pooling to the next, and is put in order where a layer needs it so. The convolutions are the
very kernels that the plain way calls: values and gradients are the same, bit for bit.

Not on other devices or in other dtypes, nor while a graph is recorded to be exported, nor where PyTorch is
told to do without oneDNN (`torch.backends.mkldnn.flags(enabled=False)`). Where a map holds NaN or an
infinity, `reproduce.layers.pooling` decides what wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as nnf

from reproduce.layers.base import Layer
from reproduce.layers.convolution import Convolution
from reproduce.layers.neuron import ReLU
from reproduce.layers.pooling import MAX, Pooling, torch_agrees
from reproduce.layers.product import is_product, plain_floats
from surgery.geometry import conv_size, pool_size

LARGE = 1 << 18  # so many values of a map are worth it


def possible(like: Tensor) -> bool:
    """Whether maps of the dtype and on the device of `like` can be kept in blocks now."""
    if not plain_floats(like):
        return False
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def run(layer: Layer, x: Tensor, blobs: list[Tensor], patch: bool, in_place: bool) -> Tensor | None:
    """The top in blocks of a bottom in blocks or not; None where that cannot be or is not worth it.

    A `patch` has the layer's padding in itself. `in_place` allows to overwrite the bottom. A layer whose
    `forward` somebody has replaced is left alone.
    """
    rule = RULES.get(type(layer))
    if rule is None or x.dim() != 4 or "forward" in vars(layer):
        return None
    return rule(layer, x, blobs, patch, in_place)


def in_order(x: Tensor) -> Tensor:
    """The map as an ordinary tensor."""
    return x.to_dense() if x.is_mkldnn else x


def _convolve(layer: Layer, x: Tensor, blobs: list[Tensor], patch: bool, in_place: bool) -> Tensor | None:
    assert isinstance(layer, Convolution)
    axis, window = layer.window(4)
    if axis != 1:
        return None
    window = replace(window, pad=(0, 0)) if patch else window
    weight, bias = blobs[0], blobs[1] if len(blobs) > 1 else None
    size = conv_size(tuple(x.shape[2:]), window)
    if x.shape[0] * len(weight) * prod(size) < LARGE or is_product(weight, layer.group):
        return None
    x = x if x.is_mkldnn else x.to_mkldnn()
    return nnf.conv2d(x, weight, bias, window.stride, window.pad, window.dilation, layer.group)


def _rectify(layer: Layer, x: Tensor, blobs: list[Tensor], patch: bool, in_place: bool) -> Tensor | None:
    assert isinstance(layer, ReLU)
    if layer.slope or not x.is_mkldnn:
        return None
    return nnf.relu_(x) if in_place else nnf.relu(x)


def _pool(layer: Layer, x: Tensor, blobs: list[Tensor], patch: bool, in_place: bool) -> Tensor | None:
    assert isinstance(layer, Pooling)
    if layer.method != MAX or layer.mask or layer.window is None or not (x.is_mkldnn or x.numel() >= LARGE):
        return None
    window = replace(layer.window, pad=(0, 0)) if patch else layer.window
    size, floor = tuple(x.shape[2:]), patch or layer.floor
    if not torch_agrees(size, pool_size(size, window, floor), window, floor):
        return None
    x = x if x.is_mkldnn else x.to_mkldnn()
    return nnf.max_pool2d(x, window.kernel, window.stride, window.pad, 1, not floor) if _finite(x) else None


def _finite(x: Tensor) -> bool:
    # a mean of each channel: it is no number where one of the values is none
    return bool(nnf.adaptive_avg_pool2d(x.detach(), 1).to_dense().isfinite().all())


Rule = Callable[[Layer, Tensor, list[Tensor], bool, bool], Tensor | None]
RULES: dict[type[Layer], Rule] = {Convolution: _convolve, ReLU: _rectify, Pooling: _pool}
