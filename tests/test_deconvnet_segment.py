"""`fcn segment` with proposals, ensemble and CRF, against the same steps made one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import refused, run_in
from PIL import Image

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.export import write_weights
from caffe_weights.prototxt import format_net
from reproduce.crf import dense_crf, find_settings, unary_of_probabilities, unary_of_scores
from reproduce.deconvnet.inference import picture_scores
from reproduce.deconvnet.rules import CLEAN, RELEASED, Rules
from reproduce.images import VOC_MEAN_BGR
from reproduce.label_maps import read_label_map
from reproduce.mean_field import softmax
from reproduce.net import Net
from reproduce.nets import Form, make_net
from surgery.interpolation import bilinear_weights

IMAGE = np.random.default_rng(7).integers(0, 256, (40, 60, 3), dtype=np.uint8)
BOXES = np.array([[0, 0, 59, 39], [-10, -5, 40, 30], [20, 10, 69, 49], [5, 5, 20, 20]])


def random_net(definition: NetParameter, path: Path, score: str, seed: int) -> Net:
    """Random weights that keep magnitudes, and a bias that brings the mean score of each class to 0."""
    net = Net(definition, phase="TEST", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, (weight, *_) in net.params.items():
            if name.startswith("upscore"):
                weight.copy_(torch.from_numpy(bilinear_weights(tuple(weight.shape))))
            elif "bn" not in name:
                axis = 1 if "deconv" in name else 0
                size = weight.numel() / weight.shape[axis]  # values that an output is the sum of
                weight.copy_(torch.randn(weight.shape, generator=generator) * (2 / size) ** 0.5)
        shape = (1, 3, 224, 224)
        blob = net(data=torch.randn(shape, generator=generator) * 60)[score]
        last = next(name for name in net.params if name.startswith(("seg-score", "score_fr")))
        net.params[last][1].sub_(blob.mean((0, 2, 3)))
    write_weights(net.weights(), path)
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    Image.fromarray(IMAGE).save(folder / "x.png")
    (folder / "boxes.csv").write_text("\n".join(",".join(map(str, box)) for box in BOXES))
    return folder


@pytest.fixture(scope="module")
def deconv(folder: Path) -> Net:
    return random_net(make_net("deconvnet", form=Form(16, 16)), folder / "deconv.caffemodel", "seg-score", 1)


@pytest.fixture(scope="module")
def fcn8s(folder: Path) -> Net:
    return random_net(make_net("voc-fcn8s", form=Form(16, 16)), folder / "fcn8s.caffemodel", "score", 2)


def deconv_scores(net: Net, rules: Rules) -> np.ndarray:
    scores, _ = picture_scores(lambda x: net(data=x)["seg-score"], IMAGE, BOXES, 224, VOC_MEAN_BGR, rules)
    return scores.numpy()


def fcn_scores(net: Net, side: int | None) -> np.ndarray:
    """By hand: BGR minus mean, zeros below and right, the top left of the score."""
    blob = IMAGE[:, :, ::-1].astype(np.float32) - np.array(VOC_MEAN_BGR, np.float32)
    pad = ((0, side - 40), (0, side - 60), (0, 0)) if side else ((0, 0),) * 3
    x = np.pad(blob, pad).transpose(2, 0, 1)[np.newaxis]
    with torch.no_grad():
        return net(data=x.copy())["score"][0, :, :40, :60].numpy()


def test_deconvnet_is_recognised_and_looks_at_the_boxes(
    folder: Path, deconv: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcn = run_in(folder, monkeypatch)
    done = fcn("segment", "x.png", "--net", "deconvnet", "--weights", "deconv.caffemodel", "--out", "a",
               "--proposals", "boxes.csv", "--batch", 3, "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    want = deconv_scores(deconv, CLEAN).argmax(0)
    assert len(np.unique(want)) > 2
    np.testing.assert_array_equal(read_label_map(folder / "a/x.png"), want)
    assert json.loads(done.stdout)["notes"] == ["x: 4 of 4 proposals (boxes.csv)"]


def test_without_boxes_the_windows_of_the_picture_are_taken(
    folder: Path, deconv: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcn = run_in(folder, monkeypatch)
    done = fcn("segment", "x.png", "--weights", "deconv.caffemodel", "--out", "b", "--max-proposals", 4,
               "--aggregate", "mean", "--proposals", "windows", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["notes"] == ["x: 1 of 1 proposals (sliding window)"]


def test_the_released_system(folder: Path, deconv: Net, fcn8s: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipped boxes, clipped product of scores, FCN on 500 x 500; the whole picture's box is 60 x 40."""
    fcn = run_in(folder, monkeypatch)
    done = fcn("segment", "x.png", "--weights", "deconv.caffemodel", "--out", "c", "--proposals", "boxes.csv",
               "--faithful", "--least-side", 30, "--ensemble", "voc-fcn8s", "--ensemble-weights",
               "fcn8s.caffemodel")  # fmt: skip
    assert done.exit_code == 0, done.output
    rules = Rules("max", 50, 30, RELEASED.clip, RELEASED.offset)
    product = np.maximum(deconv_scores(deconv, rules), 0) * np.maximum(fcn_scores(fcn8s, 500), 0)
    got = read_label_map(folder / "c/x.png")
    assert (got == product.argmax(0)).mean() > 0.999  # the FCN takes its shortcut over the border


def test_the_papers_system_with_the_crf(
    folder: Path, deconv: Net, fcn8s: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pydensecrf", reason="needs the extra [crf]")
    fcn = run_in(folder, monkeypatch)
    done = fcn("segment", "x.png", "--weights", "deconv.caffemodel", "--out", "d", "--proposals", "boxes.csv",
               "--ensemble", "voc-fcn8s", "--ensemble-weights", "fcn8s.caffemodel", "--crf",
               "--crf-set", "iterations=3")  # fmt: skip
    assert done.exit_code == 0, done.output
    mean = (softmax(deconv_scores(deconv, CLEAN)) + softmax(fcn_scores(fcn8s, None))) / 2
    want = dense_crf(unary_of_probabilities(mean), IMAGE, find_settings("deconvnet", iterations=3))
    assert (read_label_map(folder / "d/x.png") == want.argmax(0)).mean() > 0.999


def test_a_plain_net_can_have_the_crf(folder: Path, fcn8s: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pydensecrf", reason="needs the extra [crf]")
    fcn = run_in(folder, monkeypatch)
    done = fcn("segment", "x.png", "--weights", "fcn8s.caffemodel", "--out", "e", "--crf", "deeplab-v1")
    assert done.exit_code == 0, done.output
    energies = unary_of_scores(fcn_scores(fcn8s, None))
    want = dense_crf(energies, IMAGE, find_settings("deeplab-v1")).argmax(0)
    assert (read_label_map(folder / "e/x.png") == want).mean() > 0.999


def test_options_that_do_not_fit(
    folder: Path, deconv: Net, fcn8s: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcn = run_in(folder, monkeypatch)
    net = ("segment", "x.png", "--weights", "fcn8s.caffemodel", "--out", "f")
    crops = ("segment", "x.png", "--weights", "deconv.caffemodel", "--out", "f")
    refused(fcn(*net, "--ensemble", "voc-fcn8s"), "--ensemble-weights")
    refused(fcn(*net, "--least-side", 9), "--proposals")
    refused(fcn(*net, "--aggregate", "sum"), "--aggregate: given without --proposals; wanted both")
    refused(fcn(*net, "--faithful"), "--faithful: given without --proposals")
    refused(fcn(*net, "--crf", "deeplab"), "deeplab-v1")
    refused(fcn(*net, "--crf", "--size", "30x30"), "--size")
    refused(fcn(*net, "--net", "deconvnet"), "voc-fcn8s")
    refused(fcn(*net, "--crf", "--crf-set", "iterations=-1"), "iterations")
    (folder / "net.prototxt").write_text(format_net(make_net("voc-fcn8s", form=Form(16, 16), size=(40, 60))))
    refused(fcn(*net, "--net", "net.prototxt", "--proposals", "windows"), "40 x 60", "square")
    refused(fcn(*crops, "--proposals", "none.csv"), "none.csv")
    refused(fcn(*crops, "--faithful", "--proposals", "boxes.csv"), "112 pixels")
    refused(fcn(*crops, "--proposals", "windows", "--ensemble", "voc-fcn16s", "--ensemble-weights",
                "fcn8s.caffemodel"), "voc-fcn16s")  # fmt: skip
    refused(fcn(*crops, "--mean", "1,2,3", "--color", "rgb"), "bgr")
    assert not (folder / "f").exists()
