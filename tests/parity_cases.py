"""Planted faults: files of fcn-alexnet from the goldens with one thing changed, and who is guilty of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caffe_weights.caffe_pb2 import LayerParameter, NetParameter, PoolingParameter
from caffe_weights.export import read_weights, write_weights
from caffe_weights.prototxt import format_net, read_net
from caffe_weights.weights import Weights
from surgery.deploy import deploy_net

Blobs = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Model:
    """The two files of a model, as text."""

    net: str
    weights: str


@dataclass(frozen=True)
class Planted:
    """A fault: the guilty layer, and the change to a definition or to weights."""

    guilty: str
    net: Callable[[NetParameter], None] | None = None
    weights: Callable[[Blobs], None] | None = None


def one_weight(blobs: Blobs) -> None:
    blobs["conv3"][0][1, 2, 1, 1] *= 3


def swapped_channels(blobs: Blobs) -> None:
    blobs["conv1"][0] = np.ascontiguousarray(blobs["conv1"][0][:, ::-1])


def permuted_class(blobs: Blobs) -> None:
    for blob in blobs["score_fr"]:
        blob[[3, 7]] = blob[[7, 3]]


def crop_off_by_one(net: NetParameter) -> None:
    layer(net, "score").crop_param.offset[0] += 1


def floor_pooling(net: NetParameter) -> None:
    layer(net, "pool1").pooling_param.round_mode = PoolingParameter.FLOOR


def undivided_alpha(net: NetParameter) -> None:
    param = layer(net, "norm1").lrn_param
    param.alpha *= param.local_size


FAULTS = {
    "one weight": Planted("conv3", weights=one_weight),
    "channel order": Planted("conv1", weights=swapped_channels),
    "crop offset": Planted("score", net=crop_off_by_one),
    "floor pooling": Planted("pool1", net=floor_pooling),
    "alpha not divided": Planted("norm1", net=undivided_alpha),
    "permuted class": Planted("score_fr", weights=permuted_class),
}


def layer(net: NetParameter, name: str) -> LayerParameter:
    return next(item for item in net.layer if item.name == name)


def golden_model(goldens: Path, folder: Path, name: str = "fcn-alexnet") -> Model:
    """A golden net's files, the definition in deploy form."""
    stem = goldens / "nets" / name
    (folder / "net.prototxt").write_text(format_net(deploy_net(read_net(f"{stem}.prototxt"))))
    return Model(str(folder / "net.prototxt"), f"{stem}.caffemodel.gz")


def plant(model: Model, fault: Planted, folder: Path) -> Model:
    """The model with the fault, in files of its own."""
    net, weights = read_net(model.net), model.weights
    if fault.weights:
        blobs = {name: [np.array(a) for a in arrays] for name, arrays in read_weights(weights).items()}
        fault.weights(blobs)
        weights = str(folder / "fault.caffemodel")
        write_weights(Weights(blobs), weights, net=net)
    if fault.net:
        fault.net(net)
    (folder / "fault.prototxt").write_text(format_net(net))
    return Model(str(folder / "fault.prototxt"), weights)
