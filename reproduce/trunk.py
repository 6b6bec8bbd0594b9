"""A trunk alone as the start of a net: what there is of pre-trained weights, the rest by fillers; torch-free.

For pre-training that lacks the classifier's fc6 and fc7, such as the 13 convolutions of an ImageNet VGG16 in
an ONNX file: its convolutions are VGG16's in order, and get their names. Nothing of the reference's; `fcn
start` stays strict and wants a whole predecessor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caffe_weights.errors import FormatError, WeightsError
from caffe_weights.export import read_weights
from caffe_weights.onnx_file import read_convolutions
from caffe_weights.weights import Weights
from reproduce.nets import Form, make_net
from reproduce.nets.vgg import STAGES
from surgery.geometry import dims
from surgery.interpolation import bilinear_weights
from surgery.shapes import infer_shapes

VGG16 = [
    f"conv{stage}_{number}" for stage, (_, count) in enumerate(STAGES, 1) for number in range(1, count + 1)
]


def read_start(path: str) -> Weights:
    """Weights of any format we read, or the VGG16 trunk of an ONNX file. FileError, FormatError."""
    return read_onnx_trunk(path) if path.endswith(".onnx") else read_weights(path)


def read_onnx_trunk(path: str | Path) -> Weights:
    """The 13 convolutions of a VGG16 in an ONNX file, under their names in Caffe. FormatError."""
    found = read_convolutions(path)
    if len(found) != len(VGG16):
        raise FormatError(str(path), f"{len(found)} convolutions", f"the {len(VGG16)} of VGG16")
    channels = 3
    for name, (node, blobs) in zip(VGG16, found, strict=True):
        shape = blobs[0].shape if blobs else ()
        if len(blobs) != 2 or len(shape) != 4 or shape[1:] != (channels, 3, 3):
            raise FormatError(f"{path}: node {node}", f"weights of {dims(shape)}, {len(blobs)} blobs",
                              f"N x {channels} x 3 x 3 and a bias, as {name} of VGG16 has")  # fmt: skip
        channels = shape[0]
    blobs_by_name = {name: item.blobs for name, item in zip(VGG16, found, strict=True)}
    return Weights(blobs_by_name, source=str(path))


def start_trunk(name: str, sources: Sequence[Weights], form: Form) -> tuple[Weights, str]:
    """The weights that a net finds in `sources` by layer name, with bilinear up-sampling, and words on them.

    WeightsError where a shape is another, or no layer fits.
    """
    layers = infer_shapes(make_net(name, form=form)).layers
    found = Weights()
    for weights in sources:
        for layer in (name for name in layers if name in weights):
            shapes, wanted = [blob.shape for blob in weights[layer]], list(layers[layer].params)
            if shapes != wanted:
                found_words, wanted_words = (" and ".join(map(dims, these)) for these in (shapes, wanted))
                raise WeightsError(f"{weights.source}: layer {layer}", found_words, wanted_words,
                                   f"give the weights of {name}'s trunk in its widths")  # fmt: skip
            found[layer] = weights[layer]
    copied = [layer for layer in layers if layer in found]
    if not copied:
        raise WeightsError(sources[0].source or "weights", f"no layer of {name}", "its trunk")
    for up in layers.values():
        if up.type == "Deconvolution" and up.name not in found:
            found[up.name] = [bilinear_weights(up.params[0])]
    where = ", ".join(weights.source for weights in sources)
    return found, f"{len(copied)} layers from {where}, {copied[0]} to {copied[-1]}"
