"""Small nets that the command line's tests share, as text and with weights set by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from google.protobuf import text_format

from caffe_weights.caffe_pb2 import NetParameter

INPUT = 'type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 2 dim: 2 } }'
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }'


def colours_net(data: str = INPUT, stride: int = 1, classes: int = 3, loss: bool = False) -> NetParameter:
    """A net whose scores are its input's channels, 1 x 1 convolution with an identity matrix for weights."""
    text = f"""
    name: "colours"
    layer {{ name: "data" {data} }}
    layer {{ name: "score" type: "Convolution" bottom: "data" top: "score"
      convolution_param {{ num_output: {classes} kernel_size: 1 stride: {stride} bias_term: false }} }}
    {LOSS if loss else ""}
    """
    net = text_format.Parse(text, NetParameter())
    set_blobs(net, "score", [np.eye(classes, 3).reshape(classes, 3, 1, 1)])
    return net


def dense_net() -> NetParameter:
    """A classifier of one fully connected layer: 2 classes of a 1 x 2 x 2 input, weights 0..7."""
    text = """
    name: "dense"
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 2 dim: 2 } } }
    layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
    """
    net = text_format.Parse(text, NetParameter())
    set_blobs(net, "ip", [np.arange(8).reshape(2, 4), np.array([1, -1])])
    return net


def set_blobs(net: NetParameter, layer: str, arrays: list[np.ndarray]) -> None:
    """Give a layer these float32 blobs."""
    target = next(item for item in net.layer if item.name == layer)
    del target.blobs[:]
    for array in arrays:
        blob = target.blobs.add()
        blob.shape.dim.extend(array.shape)
        blob.data.extend(array.ravel().tolist())


def save_net(folder: Path, net: NetParameter, stem: str = "net") -> tuple[Path, Path]:
    """Write STEM.prototxt, without blobs, and STEM.caffemodel; the protobuf library does the writing."""
    bare = NetParameter()
    bare.CopyFrom(net)
    for layer in bare.layer:
        del layer.blobs[:]
    paths = folder / f"{stem}.prototxt", folder / f"{stem}.caffemodel"
    paths[0].write_text(text_format.MessageToString(bare))
    paths[1].write_bytes(net.SerializeToString())
    return paths
