"""Which published net a weight file is of, from its layer names and shapes; torch-free.

Names decide the net, shapes its widths and number of classes, so a narrow or re-trained one is recognised
too. Some nets have the same layers and shapes (nyud-fcn32s-color and -hha; CaffeNet and AlexNet); then the
definition that a caffemodel carries decides where it can, and the others are named as alternatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

from caffe_weights.caffe_pb2 import LayerParameter, NetParameter
from caffe_weights.errors import InputError, NetError, WeightsError
from caffe_weights.weights import Weights
from reproduce.definition import Definition, input_shapes
from reproduce.nets import DEPLOY, NETS, Form, find, make_net
from reproduce.nets.data import read_param_str
from surgery.geometry import Shape, dims
from surgery.shapes import infer_shapes

Blobs = Mapping[str, Sequence[np.ndarray]]

_WEIGHTED = ("Convolution", "Deconvolution", "InnerProduct")
_NARROW = Form(64, fc=1)
_LAYERS_OF = {"auto-deeplab-m": "auto-deeplab-s", "auto-deeplab-l": "auto-deeplab-s"}  # of other widths


@dataclass(frozen=True)
class Recognized:
    """A net of `NETS`, in deploy form and in the widths of the weights.

    `published_shape`: widths and classes are the published ones. `alternatives` have the same layers and
    shapes, and the right number of classes; where a published net is among the candidates, only published
    ones count.
    """

    name: str
    net: NetParameter
    classes: int
    published_shape: bool
    alternatives: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = self.name
        if not self.published_shape:
            words += f" in other widths or classes ({self.classes} classes)"
        if self.alternatives:
            words += f" (or {', '.join(self.alternatives)}: the same layers and shapes)"
        return words


def recognize(weights: Weights, size: tuple[int, int] | None = None) -> Recognized:
    """The net that `weights` are of, its deploy form for pictures of `size` (height, width).

    WeightsError, with the nearest net and what differs, when it is none of `NETS` or shapes do not fit.
    """
    fitting = candidates(weights)
    if not fitting:
        raise _unknown(weights)
    classes = _classes(fitted(fitting[0], weights))
    same = [name for name in fitting if _published_classes(name) == classes] or fitting
    same = [n for n in same if _same_widths(fitted(n, weights), make_net(n))] or same  # sizes of one net
    told = [name for name in same if _told_apart(name, weights)]
    first, *others = told or same
    alternatives = () if told else tuple(n for n in others if find(n).published >= find(first).published)
    net = fitted(first, weights, size)
    return Recognized(first, net, classes, _same_widths(net, make_net(first)), alternatives)


def candidates(weights: Weights) -> list[str]:
    """The nets of `NETS` with the layers of `weights`, published ones first."""
    present = {name for name, blobs in weights.items() if len(blobs)}
    return sorted((n for n in NETS if _matches(n, present)), key=lambda name: not find(name).published)


def fitted(name: str, weights: Weights, size: tuple[int, int] | None = None) -> NetParameter:
    """The deploy form of net `name` in the widths of `weights`. WeightsError where a blob does not fit it."""
    net = make_net(name, DEPLOY, size)
    for layer in net.layer:
        if layer.name in weights and layer.type in _WEIGHTED:
            _set_width(layer, weights[layer.name])
    where = f"{weights.source}: " if weights.source else ""
    try:
        shapes = infer_shapes(net).layers
    except NetError as error:
        raise WeightsError(f"{where}weights of {name}", str(error), "layers that fit each other") from None
    for layer in net.layer:
        _check(f"{where}layer {layer.name}", name, weights.get(layer.name, []), shapes[layer.name].params)
    return net


@dataclass(frozen=True)
class PublishedNet:
    """A recognised net, ready to label pictures: definition, score blob, and mean (BGR; None: unknown)."""

    recognized: Recognized
    definition: Definition
    score: str
    mean: tuple[float, ...] | None

    def __str__(self) -> str:
        return str(self.recognized)


def published_net(weights: Weights) -> PublishedNet:
    """What is needed to run the net of `weights` on pictures; WeightsError as from `recognize`."""
    found = recognize(weights)
    tops = [top for layer in found.net.layer for top in layer.top]
    data = find(found.name).data
    inputs = input_shapes(found.net)
    definition = Definition(found.net, found.name, "TEST", inputs, True, frozenset(tops))
    score = "score_sem" if "score_sem" in tops else "score"
    return PublishedNet(found, definition, score, data.mean.get("data") if data else None)


@cache
def layer_names(name: str) -> frozenset[str]:
    """The layers of net `name` that have parameters."""
    if name in _LAYERS_OF:  # 1176 layers take a quarter of a second to make
        return layer_names(_LAYERS_OF[name])
    return frozenset(
        n for n, layer in infer_shapes(make_net(name, form=_NARROW)).layers.items() if layer.params
    )


@cache
def optional_names(name: str) -> frozenset[str]:
    """Layers that weights of `name` may have or lack: what training a classifier leaves behind."""
    if name == "googlenet":
        train = find(name).build("train", _NARROW)
        layers = infer_shapes(train).layers
        return frozenset(n for n, layer in layers.items() if layer.params) - layer_names(name)
    if find(name).data is None:
        return frozenset(layer.name for layer in make_net(name, form=_NARROW).layer[-2:]) & layer_names(name)
    return frozenset()


def _matches(name: str, present: set[str]) -> bool:
    wanted, optional = layer_names(name), optional_names(name)
    return wanted - optional <= present <= wanted | optional


def natural_shape(shape: Shape, rank: int) -> Shape:
    """A blob's shape in `rank` axes: without the ones in front of files before 2014, a kernel laid flat."""
    if len(shape) == 4 and rank < 4 and shape[: 4 - rank] == (1,) * (4 - rank):
        return shape[4 - rank :]
    return (shape[0], prod(shape[1:])) if len(shape) == 4 and rank == 2 else shape


def _set_width(layer: LayerParameter, blobs: Sequence[np.ndarray]) -> None:
    shape = natural_shape(blobs[0].shape, 2 if layer.type == "InnerProduct" else 4)
    if layer.type == "InnerProduct":
        layer.inner_product_param.num_output = shape[0]
    elif layer.type == "Convolution":
        if layer.convolution_param.group == layer.convolution_param.num_output > 1:
            layer.convolution_param.group = shape[0]  # one filter a channel
        layer.convolution_param.num_output = shape[0]
    elif len(shape) > 1:
        layer.convolution_param.num_output = shape[1] * layer.convolution_param.group


def _check(where: str, net: str, blobs: Sequence[np.ndarray], wanted: Sequence[Shape]) -> None:
    """WeightsError unless each blob has its shape; a fully connected layer may be in convolutional form."""
    if not blobs:
        return
    if len(blobs) != len(wanted):
        raise WeightsError(where, f"{len(blobs)} blobs", f"{len(wanted)}, as in {net}")
    for blob, shape in zip(blobs, wanted, strict=True):
        found = natural_shape(blob.shape, len(shape))
        if found != shape:
            raise WeightsError(where, f"shape {dims(blob.shape)}", f"{dims(shape)}, as in {net}",
                               "give weights of that net, or the net's prototxt")  # fmt: skip


def _same_widths(a: NetParameter, b: NetParameter) -> bool:
    return all(
        x.convolution_param.num_output == y.convolution_param.num_output
        and x.inner_product_param.num_output == y.inner_product_param.num_output
        for x, y in zip(a.layer, b.layer, strict=True)
        if x.type in _WEIGHTED
    )


def _classes(net: NetParameter) -> int:
    """Channels of the first score, or outputs of a classifier."""
    scores = [x for x in net.layer if x.name.startswith(("score_", "seg-score")) and x.type == "Convolution"]
    if scores:
        return scores[0].convolution_param.num_output
    return [x for x in net.layer if x.type == "InnerProduct"][-1].inner_product_param.num_output


def _told_apart(name: str, weights: Weights) -> bool:
    """Whether the definition that came with the weights is this net's: its layers in order, its data."""
    try:
        stored = weights.net
    except InputError:
        return False
    if stored is None:
        return False
    entry = find(name)
    if entry.data is None:
        ours = [(layer.name, layer.type) for layer in make_net(name, form=_NARROW).layer if layer.bottom]
        theirs = {(layer.name, layer.type): i for i, layer in enumerate(stored.layer)}
        places = [theirs[key] for key in ours if key in theirs]
        return len(places) > len(ours) // 2 and places == sorted(places)
    return bool(_tops(stored)) and _tops(stored) == _tops(make_net(name, entry.splits[0], form=_NARROW))


def _tops(net: NetParameter) -> object:
    """What a Python data layer reads, from its settings: its dataset, and its tops where it says so."""
    layer = next((layer for layer in net.layer if layer.type == "Python"), None)
    if layer is None:
        return None
    try:
        return layer.python_param.module, read_param_str(layer.python_param.param_str).get("tops")
    except NetError:
        return None


def _published_classes(name: str) -> int:
    return find(name).classes or 1000


def _unknown(weights: Weights) -> WeightsError:
    present = {name for name, blobs in weights.items() if len(blobs)}
    nearest = max(NETS, key=lambda name: len(layer_names(name) & present) / len(layer_names(name) | present))
    wanted = layer_names(nearest)
    missing = [name for name in ordered_names(nearest) if name not in present]
    extra = [name for name in weights if name not in wanted | optional_names(nearest)]
    parts = [f"lacks {_some(missing)}"] if missing else []
    parts += [f"has {_some(extra)} besides"] if extra else []
    found = f"no net of this toolkit: of {nearest}, the nearest, it {' and '.join(parts)}"
    return WeightsError(weights.source or "weights", found, "weights of a net in fcn net --list",
                        "pass its prototxt with --net")  # fmt: skip


def ordered_names(name: str) -> list[str]:
    """The layers of a net that have parameters, in its order."""
    return [layer.name for layer in make_net(name, form=_NARROW).layer if layer.name in layer_names(name)]


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
