"""Weights are told by their layers: Caffe's own files, every net of the toolkit, and what is none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from made_weights import NARROW, made_weights
from PIL import Image

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import WeightsError
from caffe_weights.export import read_weights, write_weights
from caffe_weights.prototxt import write_net
from caffe_weights.weights import Weights
from reproduce.cli import cli
from reproduce.nets import NETS, Form, make_net
from reproduce.recognition import candidates, fitted, recognize
from surgery.shapes import infer_shapes

GOLDEN = {
    "alexnet": "alexnet", "caffenet": "caffenet", "vgg16": "vgg16", "googlenet": "googlenet",
    "fcn32s": "voc-fcn32s", "fcn16s": "voc-fcn16s", "fcn8s": "voc-fcn8s", "fcn8s-atonce": "voc-fcn8s-atonce",
    "fcn-alexnet": "voc-fcn-alexnet", "fcn32s-color-d": "nyud-fcn32s-color-d",
    "fcn32s-color-hha": "nyud-fcn32s-color-hha", "fcn8s-two-head": "siftflow-fcn8s",
}  # fmt: skip


@pytest.mark.parametrize("stem", GOLDEN)
def test_caffes_nets_are_recognised(stem: str, own_goldens: Path) -> None:
    weights = read_weights(own_goldens / "nets" / f"{stem}.caffemodel.gz")
    found = recognize(weights)
    assert (found.name, found.published_shape, found.alternatives) == (GOLDEN[stem], False, ())
    held = {name: [blob.shape for blob in blobs] for name, blobs in weights.items()}
    shapes = infer_shapes(found.net).layers
    assert {name: list(layer.params) for name, layer in shapes.items() if layer.params} == held


def full_width(name: str) -> Weights:
    """Zeros of the published shapes that take no memory, and no definition."""
    layers = infer_shapes(make_net(name)).layers
    return Weights({key: [np.broadcast_to(np.float32(0), shape) for shape in layer.params]
                    for key, layer in layers.items() if layer.params})  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_every_net_is_recognised_at_its_true_width(name: str) -> None:
    weights = full_width(name)
    found = recognize(weights)
    assert name in candidates(weights) and found.published_shape
    if name in ("alexnet", "nyud-fcn32s-hha"):
        assert name in found.alternatives and name in str(found)
    elif NETS[name].published or not NETS[name].data:
        assert found.name == name and str(found).startswith(name)


@pytest.mark.parametrize("name", ["nyud-fcn32s-color", "nyud-fcn32s-hha", "alexnet", "caffenet"])
def test_the_definition_in_a_caffemodel_tells_twins_apart(name: str, tmp_path: Path) -> None:
    weights = made_weights(name)
    write_weights(weights, tmp_path / "a.caffemodel", weights.net)
    found = recognize(read_weights(tmp_path / "a.caffemodel"))
    assert (found.name, found.alternatives) == (name, ())


def test_other_classes_and_sizes() -> None:
    found = recognize(made_weights("voc-fcn8s", Form(16, fc=4, classes=5)), (40, 60))
    assert str(found) == "voc-fcn8s in other widths or classes (5 classes)"
    assert infer_shapes(found.net).blobs["score"] == (1, 5, 40, 60)


def test_what_training_googlenet_leaves_behind_is_no_hindrance() -> None:
    weights = made_weights("googlenet")
    weights["loss1/conv"] = [np.zeros((8, 32, 1, 1), np.float32)]
    assert recognize(weights).name == "googlenet"


def test_a_classifier_in_convolutional_form() -> None:
    weights = made_weights("vgg16")
    weights["fc6"] = [weights["fc6"][0].reshape(12, 32, 7, 7), weights["fc6"][1]]
    assert recognize(weights).name == "vgg16"


def test_an_unknown_net_is_named_with_the_nearest() -> None:
    weights = made_weights("voc-fcn8s")
    del weights["score_pool3"]
    weights["extra"] = [np.zeros(1)]
    weights.source = "x.caffemodel"
    with pytest.raises(WeightsError) as error:
        recognize(weights)
    assert str(error.value).startswith(
        "x.caffemodel: no net of this toolkit: of voc-fcn8s, the nearest, it lacks score_pool3 and has extra"
    )


def test_a_blob_of_another_shape_is_named() -> None:
    weights = made_weights("voc-fcn32s")
    weights["conv2_1"] = [np.zeros((8, 5, 3, 3), np.float32), np.zeros(8, np.float32)]
    with pytest.raises(WeightsError, match="layer conv2_1: shape 8x5x3x3; wanted 8x4x3x3, as in voc-fcn32s"):
        fitted("voc-fcn32s", weights)
    weights = made_weights("voc-fcn32s")
    weights["score_fr"] = weights["score_fr"][:1]
    with pytest.raises(WeightsError, match="layer score_fr: 1 blobs; wanted 2, as in voc-fcn32s"):
        recognize(weights)


def test_a_definition_without_a_python_layer_decides_nothing() -> None:
    weights = made_weights("nyud-fcn32s-hha", split="deploy")
    assert recognize(weights).alternatives == ("nyud-fcn32s-hha",)
    bare = Weights(dict(weights), net=NetParameter())
    assert recognize(bare).name == "nyud-fcn32s-color"


def picture(folder: Path, height: int = 40, width: int = 33) -> str:
    rng = np.random.default_rng(8)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / "p.png")
    return str(folder / "p.png")


def segmented(folder: Path, image: str, *options: str) -> tuple[np.ndarray, Any]:
    out = folder / f"out{len(list(folder.iterdir()))}"
    result = CliRunner().invoke(cli, ["segment", image, "--out", str(out), "--json", *options])
    assert result.exit_code == 0, result.output
    return np.asarray(Image.open(out / "p.png")), json.loads(result.stdout)


def test_segment_needs_the_caffemodel_only(tmp_path: Path) -> None:
    weights = made_weights("nyud-fcn32s-color")
    write_weights(weights, tmp_path / "w.caffemodel", weights.net)
    write_net(make_net("nyud-fcn32s-color", form=NARROW), tmp_path / "n.prototxt")
    image, file = picture(tmp_path), ["--weights", str(tmp_path / "w.caffemodel")]
    found, report = segmented(tmp_path, image, *file)
    assert report["net"] == "nyud-fcn32s-color in other widths or classes (40 classes)"
    by_net, _ = segmented(tmp_path, image, *file, "--net", str(tmp_path / "n.prototxt"), "--mean",
                          "116.190,97.203,92.318")  # fmt: skip
    assert np.array_equal(found, by_net) and len(np.unique(found)) > 1
    plain = CliRunner().invoke(cli, ["segment", image, "--out", str(tmp_path / "o"), *file])
    assert plain.stdout.splitlines()[0].endswith("w.caffemodel: " + report["net"])


def test_segment_labels_by_the_semantic_head_of_two(tmp_path: Path) -> None:
    weights = made_weights("siftflow-fcn16s")
    write_weights(weights, tmp_path / "w.npz")
    _, report = segmented(tmp_path, picture(tmp_path), "--weights", str(tmp_path / "w.npz"))
    assert report["blob"] == "score_sem"


def test_segment_densely_both_ways(tmp_path: Path) -> None:
    weights = made_weights("voc-fcn-pool4", Form(32, fc=2))
    write_weights(weights, tmp_path / "w.npz")
    image, file = picture(tmp_path, 12, 9), ["--weights", str(tmp_path / "w.npz")]
    one, _ = segmented(tmp_path, image, *file, "--dense", "atrous")
    two, _ = segmented(tmp_path, image, *file, "--dense", "shift-and-stitch")
    assert one.shape == (12, 9) and np.array_equal(one, two) and len(np.unique(one)) > 1


def test_segment_asks_for_a_net_it_does_not_know(tmp_path: Path) -> None:
    write_weights(Weights({"conv": [np.ones((1, 1, 1, 1), np.float32)]}), tmp_path / "w.npz")
    arguments = ["segment", picture(tmp_path), "--out", str(tmp_path), "--weights", str(tmp_path / "w.npz"),
                 "--force"]  # fmt: skip
    result = CliRunner().invoke(cli, [*arguments[:3], str(tmp_path / "o"), *arguments[4:]])
    assert (
        result.exit_code == 2
        and "w.npz: no net of this toolkit" in result.stderr
        and "--net" in result.stderr
    )
