"""Scoring in batches: the losses and counts of single pictures, by numpy in float64; errors in writing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import Fcn, refused, run_in
from made_data import make_siftflow, make_voc
from made_weights import made_weights
from PIL import Image

from caffe_weights.export import write_weights
from caffe_weights.prototxt import parse_net
from caffe_weights.upgrade import upgrade_net
from reproduce.evaluate import evaluate
from reproduce.net import Net
from reproduce.nets import Form

NARROW = ("--narrow", "16", "--fc", "12", "--workers", "0")
SPLIT = {"voc": ("--split", "val"), "siftflow": ("--split", "trainval")}
SIZES = [(3, 4), (5, 2), (3, 4), (3, 4), (5, 2)]
TEXT = """
  input: "data" input_shape { dim: 1 dim: 3 dim: 4 dim: 4 }
  input: "label" input_shape { dim: 1 dim: 1 dim: 4 dim: 4 }
  layer { name: "twice" type: "Power" bottom: "data" top: "score" power_param { scale: 2 } }
  layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" loss_weight: 3
    loss_param { ignore_label: 255 normalization: RULE } }
  layer { name: "anchor" type: "Convolution" bottom: "data" top: "anchor"
    convolution_param { num_output: 1 kernel_size: 1 } }
"""
DIVISOR: dict[str, Callable[[np.ndarray], int]] = {
    "VALID": lambda label: int((label != 255).sum()),
    "FULL": lambda label: label.size,
    "BATCH_SIZE": lambda label: 1,
    "NONE": lambda label: 1,
}


class FakeFeed:
    """Random pictures of the SIZES, with void pixels in other numbers."""

    dataset = SimpleNamespace(void=255)

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.batches = []
        for height, width in SIZES:
            label = rng.integers(0, 3, (1, 1, height, width)).astype(np.float32)
            label[rng.random(label.shape) < 0.3] = 255
            self.batches.append(
                {"data": rng.normal(size=(1, 3, height, width)).astype(np.float32), "label": label}
            )

    def __call__(self, number: int) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(blob) for name, blob in self.batches[number].items()}

    def ids(self, number: int) -> list[str]:
        return [f"picture{number}"]


@pytest.mark.parametrize("rule", list(DIVISOR))
@pytest.mark.parametrize("batch", [1, 2, 3, 9])
def test_loss_and_counts_are_those_of_single_pictures(rule: str, batch: int, tmp_path: Path) -> None:
    feed: Any = FakeFeed()
    net = Net(upgrade_net(parse_net(TEXT.replace("RULE", rule))), phase="TEST", seed=0)
    steps: list[None] = []
    found = evaluate(net, feed, len(SIZES), tmp_path, lambda: steps.append(None), batch=batch)
    loss, counts = 0.0, np.zeros((3, 3), int)
    for number, blobs in enumerate(feed.batches):
        scores, label = 2 * blobs["data"][0].astype(np.float64), blobs["label"][0, 0].astype(int)
        logs = scores - np.log(np.exp(scores).sum(0))
        known = label != 255
        loss -= (
            3
            * np.take_along_axis(logs, np.where(known, label, 0)[None], 0)[0][known].sum()
            / DIVISOR[rule](label)
        )
        np.add.at(counts, (label[known], scores.argmax(0)[known]), 1)
        shown = np.asarray(Image.open(tmp_path / f"picture{number}.png"))
        np.testing.assert_array_equal(shown, scores.argmax(0))
    assert found.loss == pytest.approx(loss / len(SIZES), rel=1e-6)
    np.testing.assert_array_equal(found.counts[0][1], counts)
    assert len(steps) == found.pictures == len(SIZES) and found.seconds > 0


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    torch.set_num_threads(1)
    return run_in(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("name", "kind", "make"),
    [("voc-fcn8s", "voc", make_voc), ("siftflow-fcn16s", "siftflow", make_siftflow)],
)
def test_the_command_scores_batches_alike(fcn: Fcn, tmp_path: Path, name: str, kind: str, make: Any) -> None:
    make(tmp_path / "set")
    write_weights(made_weights(name, Form(16, 12)), tmp_path / "w.caffemodel")
    command = ("evaluate", name, "--weights", "w.caffemodel", "--data", f"{kind}:set")
    reports = []
    for options in [("--batch", "1"), ("--batch", "2", "--workers", "1"), ("--no-frame",)]:
        done = fcn(*command, *SPLIT[kind], *NARROW, "--json", *options)
        assert done.exit_code == 0, done.stderr
        reports.append(json.loads(done.stdout))
    for report in reports:
        assert report["precision"] == "float32" and report["images_per_second"] > 0 and report["seconds"] > 0
        assert report["loss"] == pytest.approx(reports[0]["loss"], rel=1e-5)
        for head, first in zip(report["heads"], reports[0]["heads"], strict=True):
            assert head["pixels"] == first["pixels"]
            assert head["pixel_accuracy"] == pytest.approx(first["pixel_accuracy"], abs=2 / head["pixels"])


def test_an_error_in_writing_is_told(fcn: Fcn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_voc(tmp_path / "set")
    write_weights(made_weights("voc-fcn32s", Form(16, 12)), tmp_path / "w.caffemodel")
    command = (
        "evaluate",
        "voc-fcn32s",
        "--weights",
        "w.caffemodel",
        "--data",
        "voc:set",
        *NARROW,
        *SPLIT["voc"],
    )
    assert fcn(*command, "--out", "maps").exit_code == 0
    first = next((tmp_path / "maps").iterdir())
    refused(fcn(*command, "--out", "maps"), str(first.parent.name), "exists")

    def full(image: Image.Image, path: str, force: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    refused(fcn(*command, "--out", "full"), "no space left on the disk")
    assert not list((tmp_path / "full").iterdir())
