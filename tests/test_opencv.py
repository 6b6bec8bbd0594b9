"""OpenCV 4's importer of Caffe nets as a second oracle: the same nets, in deploy form, give the same maps."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.export import read_weights, write_weights
from caffe_weights.prototxt import format_net, read_net
from caffe_weights.weights import Weights
from reproduce.net import Net
from reproduce.tolerances import OPENCV, worst_difference
from surgery.deploy import deploy_net
from surgery.netspec import L, NetSpec, P

XAVIER, MSRA = {"type": "xavier"}, {"type": "msra"}

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
if int(cv2.__version__.split(".")[0]) != 4:
    pytest.skip("OpenCV 4 is the last with an importer of Caffe nets", allow_module_level=True)


@pytest.mark.goldens("nets/*.caffemodel.gz")
def test_golden_net_in_opencv(golden: Path) -> None:
    stem = str(golden).removesuffix(".caffemodel.gz")
    deploy = deploy_net(read_net(f"{stem}.prototxt"))
    stored = np.load(f"{stem}.npz")
    names = [layer.name for layer in deploy.layer if layer.type == "Input"]
    inputs = {name: stored[f"in/{name}"] for name in names}
    compare(deploy, read_weights(golden), gzip.decompress(golden.read_bytes()), inputs)


@pytest.mark.parametrize("size", [(61, 75), (64, 64)])
@pytest.mark.parametrize("kind", ["resnet", "squeezenet", "lenet"])
def test_small_net_in_opencv(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    definition = {"resnet": resnet, "squeezenet": squeezenet, "lenet": lenet}[kind](size)
    weights = seeded(Net(definition, seed=3).weights())
    write_weights(weights, tmp_path / "net.caffemodel", net=definition)
    data = np.random.default_rng(1).normal(size=(2, 3, *size)).astype(np.float32)
    compare(definition, weights, (tmp_path / "net.caffemodel").read_bytes(), {"data": data})


def compare(definition: NetParameter, weights: Weights, model: bytes, inputs: dict[str, np.ndarray]) -> None:
    """Run both and compare every output of the net."""
    net = Net(definition, weights)
    with torch.no_grad():
        ours = net(**inputs)
    text = np.frombuffer(format_net(definition).encode(), np.uint8)
    theirs = cv2.dnn.readNetFromCaffe(text, np.frombuffer(model, np.uint8))
    for name, value in inputs.items():
        theirs.setInput(value, name)
    assert ours
    for name, got in ours.items():
        worst, place = worst_difference(got.numpy(), theirs.forward(name), channels=False)
        assert worst <= OPENCV, f"{name}: {worst:.2g} at {place}"


def seeded(weights: Weights) -> Weights:
    """Blobs that no filler of a small net would give: positive variances, slopes near 1."""
    draw = np.random.default_rng(2)
    for name, blobs in weights.items():
        if name.startswith("bn"):
            weights[name] = [
                draw.normal(0, 0.3, blobs[0].shape),
                draw.uniform(0.5, 1.5, blobs[1].shape),
                np.full(1, 0.9),
            ]
        elif name.startswith("scale"):
            weights[name] = [draw.uniform(0.5, 1.5, blobs[0].shape), draw.normal(0, 0.3, blobs[1].shape)]
        weights[name] = [blob.astype(np.float32) for blob in weights[name]]
    return weights


def lenet(size: tuple[int, int]) -> NetParameter:
    n = NetSpec()
    n.data = L.Input(shape=[2, 3, *size])
    n.conv1 = L.Convolution(n.data, num_output=6, kernel_size=5, weight_filler=XAVIER)
    n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2)
    n.conv2 = L.Convolution(n.pool1, num_output=8, kernel_size=5, weight_filler=XAVIER)
    n.pool2 = L.Pooling(n.conv2, kernel_size=2, stride=2)
    n.ip1 = L.InnerProduct(n.pool2, num_output=12, weight_filler=XAVIER)
    n.relu1 = L.ReLU(n.ip1, in_place=True)
    n.ip2 = L.InnerProduct(n.relu1, num_output=10, weight_filler=XAVIER)
    n.prob = L.Softmax(n.ip2)
    return n.to_proto(name="lenet")


def squeezenet(size: tuple[int, int]) -> NetParameter:
    n = NetSpec()
    n.data = L.Input(shape=[2, 3, *size])
    x = rectified(n, "conv1", n.data, 12, 3, stride=2)
    n.pool1 = x = L.Pooling(x, kernel_size=3, stride=2)
    for fire in ("fire2", "fire3"):
        squeezed = rectified(n, f"{fire}/squeeze1x1", x, 4, 1)
        parts = [rectified(n, f"{fire}/expand{k}x{k}", squeezed, 8, k, pad=k // 2) for k in (1, 3)]
        n[f"{fire}/concat"] = x = L.Concat(*parts)
    n.drop9 = L.Dropout(x, in_place=True)
    x = rectified(n, "conv10", n.drop9, 10, 1)
    n.pool10 = L.Pooling(x, pool=P.Pooling.AVE, global_pooling=True)
    n.prob = L.Softmax(n.pool10)
    return n.to_proto(name="squeezenet")


def resnet(size: tuple[int, int]) -> NetParameter:
    n = NetSpec()
    n.data = L.Input(shape=[2, 3, *size])
    x = normalised(n, "conv1", n.data, 8, 7, stride=2, pad=3)
    n.pool1 = x = L.Pooling(x, kernel_size=3, stride=2)
    for block, (width, stride) in {"2a": (16, 1), "2b": (16, 1), "3a": (24, 2)}.items():
        side = x if block == "2b" else normalised(n, f"{block}_1", x, width, 1, stride=stride, relu=False)
        y = normalised(n, f"{block}_2a", x, 4, 1, stride=stride)
        y = normalised(n, f"{block}_2b", y, 4, 3, pad=1)
        y = normalised(n, f"{block}_2c", y, width, 1, relu=False)
        n[f"res{block}"] = L.Eltwise(side, y)
        n[f"relu{block}"] = x = L.ReLU(n[f"res{block}"], in_place=True)
    n.pool5 = L.Pooling(x, pool=P.Pooling.AVE, global_pooling=True)
    n.fc = L.InnerProduct(n.pool5, num_output=10, weight_filler=XAVIER)
    n.prob = L.Softmax(n.fc)
    return n.to_proto(name="resnet")


def rectified(n: NetSpec, name: str, x: Any, width: int, size: int, **options: int) -> Any:
    n[name] = L.Convolution(x, num_output=width, kernel_size=size, weight_filler=MSRA, **options)
    n[f"relu_{name}"] = L.ReLU(n[name], in_place=True)
    return n[f"relu_{name}"]


def normalised(
    n: NetSpec, name: str, x: Any, width: int, size: int, relu: bool = True, **options: int
) -> Any:
    n[name] = L.Convolution(
        x, num_output=width, kernel_size=size, bias_term=False, weight_filler=MSRA, **options
    )
    n[f"bn_{name}"] = L.BatchNorm(n[name], in_place=True)
    n[f"scale_{name}"] = L.Scale(n[f"bn_{name}"], in_place=True, bias_term=True)
    if not relu:
        return n[f"scale_{name}"]
    n[f"relu_{name}"] = L.ReLU(n[f"scale_{name}"], in_place=True)
    return n[f"relu_{name}"]
