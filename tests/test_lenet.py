"""A real classifier, LeNet as BVLC Caffe trained it on MNIST, converted, cut and run.

It is no part of the repository: it is looked for beside the checkout, in ../shared/data/lenet_mnist. The
digits are scikit-learn's, which neither Caffe nor we have trained this net on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.export import read_weights
from reproduce.conversion import convert
from reproduce.digits import draw_digit
from reproduce.inference import forward
from reproduce.net import Net
from reproduce.tolerances import POINTWISE, worst_difference

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "lenet_mnist"
MODEL, DEPLOY = FOLDER / "lenet_iter_10000.caffemodel", FOLDER / "lenet.prototxt"
FORMATS = [".caffemodel", ".caffemodel.h5", ".safetensors", ".pt", ".npz"]
SEED = 0

pytestmark = pytest.mark.skipif(not MODEL.exists(), reason="no LeNet beside the repository (../shared/data)")


@pytest.fixture(scope="module")
def blobs() -> dict[str, list[np.ndarray]]:
    """The weights as the protobuf library reads them, layer by layer."""
    net = NetParameter()
    net.ParseFromString(MODEL.read_bytes())
    return {
        layer.name: [np.array(b.data, np.float32).reshape(tuple(b.shape.dim)) for b in layer.blobs]
        for layer in net.layer
        if layer.blobs
    }


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Net:
    """The fully convolutional form, from files that the conversion wrote."""
    folder = tmp_path_factory.mktemp("lenet")
    convert(str(MODEL), str(folder / "x.safetensors"), str(DEPLOY), convolutional=True)
    return Net.from_prototxt(folder / "x.prototxt", weights=folder / "x.safetensors")


@pytest.mark.parametrize("extension", FORMATS)
def test_to_every_format_and_back(tmp_path: Path, extension: str, blobs: dict[str, list[np.ndarray]]) -> None:
    there, back = str(tmp_path / f"there{extension}"), str(tmp_path / "back.caffemodel")
    convert(str(MODEL), there)
    convert(there, back, None if extension == ".caffemodel" else str(DEPLOY))
    for path in (there, back):
        found = read_weights(path)
        assert list(found) == list(blobs)
        for name, arrays in blobs.items():
            assert [a.shape for a in found[name]] == [a.shape for a in arrays]
            assert [a.dtype for a in found[name]] == [a.dtype for a in arrays]
            assert [a.tobytes() for a in found[name]] == [a.tobytes() for a in arrays]


def test_caffemodel_to_caffemodel_is_the_same_file(tmp_path: Path) -> None:
    convert(str(MODEL), str(tmp_path / "x.caffemodel"))
    assert (tmp_path / "x.caffemodel").read_bytes() == MODEL.read_bytes()


def test_classifier_is_that_of_plain_torch(blobs: dict[str, list[np.ndarray]]) -> None:
    x = np.random.default_rng(SEED).random((4, 1, 28, 28), dtype=np.float32)
    got = forward(Net.from_prototxt(DEPLOY, weights=MODEL), {"data": x}, ["ip2"])["ip2"]
    assert worst_difference(got, _by_hand(blobs, x)[:, :, 0, 0])[0] <= 1e-5


def test_fully_convolutional_form_equals_the_classifier(cut: Net) -> None:
    x = np.random.default_rng(SEED).random((1, 1, 28, 28), dtype=np.float32)
    classifier = Net.from_prototxt(DEPLOY, weights=MODEL)
    for blob in ("ip2", "prob"):
        wanted = forward(classifier, {"data": x}, [blob])[blob]
        got = forward(cut, {"data": x}, [blob])[blob]
        assert got.shape == (1, 10, 1, 1)
        assert worst_difference(got[:, :, 0, 0], wanted)[0] <= POINTWISE


def test_a_strip_gives_scores_every_four_pixels(cut: Net, blobs: dict[str, list[np.ndarray]]) -> None:
    strip = np.random.default_rng(SEED).random((1, 1, 28, 140), dtype=np.float32)
    scores = forward(cut, {"data": strip}, ["ip2"])["ip2"]
    assert scores.shape == (1, 10, 1, (140 - 28) // 4 + 1)
    fields = np.concatenate([strip[:, :, :, i : i + 28] for i in range(0, 113, 4)])
    assert worst_difference(scores[0, :, 0].T.copy(), _by_hand(blobs, fields)[:, :, 0, 0])[0] <= 1e-5


def test_reads_real_digits_on_strips(cut: Net, record_property: Callable[[str, object], None]) -> None:
    digits = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed").load_digits()
    chosen = np.random.default_rng(SEED).permutation(len(digits.target))[:100]
    right = 0
    for five in chosen.reshape(20, 5):
        strip = np.concatenate([draw_digit(image) for image in digits.images[five]], axis=1)
        assert strip.shape == (28, 140)
        assert strip.min() == 0
        assert strip.max() <= 1
        prob = forward(cut, {"data": strip[np.newaxis, np.newaxis]})["prob"]
        right += int((prob[0, :, 0, ::7].argmax(0) == digits.target[five]).sum())
    record_property("digits_right_of_100", right)
    assert right >= 80, f"{right} of 100 right"


def test_a_drawn_digit_is_20_high_and_centred() -> None:
    image = np.zeros((8, 8))
    image[1:7, 2:5] = 16
    rows, columns = np.nonzero(draw_digit(image) > 0)
    assert (rows.min(), rows.max()) == (4, 23)
    assert (columns.min(), columns.max()) == (9, 18)


def test_without_net_or_shape_the_train_net_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--input-shape"):
        convert(str(MODEL), str(tmp_path / "x.npz"), convolutional=True)
    assert list(tmp_path.iterdir()) == []


def test_input_shape_serves_where_no_deploy_net_is_at_hand(tmp_path: Path) -> None:
    report = convert(str(MODEL), str(tmp_path / "x.npz"), convolutional=True, input_shape=(1, 28, 28))
    assert [(c.layer, c.kernel) for c in report.convolutions] == [("ip1", (4, 4)), ("ip2", (1, 1))]
    net = Net.from_prototxt(tmp_path / "x.prototxt", weights=tmp_path / "x.npz")
    assert net.outputs == ["ip2"]
    assert net.inputs == ["data"]


def _by_hand(blobs: dict[str, list[np.ndarray]], x: np.ndarray) -> np.ndarray:
    """LeNet's scores in ten lines of torch, its fully connected layers as convolutions."""
    w = {name: [torch.from_numpy(a) for a in arrays] for name, arrays in blobs.items()}
    y = functional.max_pool2d(functional.conv2d(torch.from_numpy(x), w["conv1"][0], w["conv1"][1]), 2)
    y = functional.max_pool2d(functional.conv2d(y, w["conv2"][0], w["conv2"][1]), 2)
    y = functional.relu(functional.conv2d(y, w["ip1"][0].reshape(500, 50, 4, 4), w["ip1"][1]))
    return functional.conv2d(y, w["ip2"][0].reshape(10, 500, 1, 1), w["ip2"][1]).numpy()
