"""Made-up weights for the nets by name, for tests of what is done with published ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_weights.caffe_pb2 import LayerParameter
from caffe_weights.weights import Weights
from reproduce.nets import Form, find, make_net
from surgery.interpolation import bilinear_weights
from surgery.shapes import Shape, infer_shapes

NARROW = Form(16, fc=12)


def made_weights(name: str, form: Form = NARROW, seed: int = 0, split: str | None = None) -> Weights:
    """He-scaled random weights, bilinear up-sampling; with the definition of `split` (default: the first)."""
    rng = np.random.default_rng(seed)
    net = make_net(name, form=form)
    shapes = infer_shapes(net).layers
    weights = Weights(net=make_net(name, split or find(name).splits[0], form=form))
    for layer in net.layer:
        if shapes[layer.name].params:
            weights[layer.name] = _blobs(layer, shapes[layer.name].params, rng)
    return weights


def _blobs(layer: LayerParameter, shapes: Sequence[Shape], rng: np.random.Generator) -> list[np.ndarray]:
    if layer.type == "Deconvolution":
        return [bilinear_weights(shapes[0])]
    if layer.type == "BatchNorm":
        mean, variance = rng.normal(0, 0.1, shapes[0]), rng.uniform(0.5, 1.5, shapes[1])
        return [mean.astype(np.float32), variance.astype(np.float32), np.ones(shapes[2], np.float32)]
    if layer.type == "Scale" and len(shapes) == 1:
        return [np.full(shapes[0], layer.scale_param.filler.value, np.float32)]
    fans = [max(1, int(np.prod(shape[1:]))) for shape in shapes]
    return [
        rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan))
        for shape, fan in zip(shapes, fans, strict=True)
    ]
