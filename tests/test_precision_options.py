"""--precision of the commands and of parity's `self:`; what a CUDA device is given, on a CPU where it can.

Halves of bfloat16 keep 8 bits: made by hand, a weight of 1.001 becomes 1.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caffe_nets import colours_net, save_net
from cli_helpers import Fcn, make_models, refused, run_in
from made_weights import made_weights
from PIL import Image

from caffe_weights.export import write_weights
from caffe_weights.prototxt import format_net
from reproduce import gpu
from reproduce.inference import compute, forward, picture_net
from reproduce.nets import Form, make_net
from reproduce.segment import label_maps
from reproduce.tolerances import NET

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CPU, CARD = torch.device("cpu"), torch.device("cuda")
FORM = Form(16, 16)


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    torch.set_num_threads(1)
    make_models(tmp_path)
    net = colours_net()
    net.layer[1].blobs[0].data[0] = 1.001
    save_net(tmp_path, net, "fine")
    return run_in(tmp_path, monkeypatch)


def narrow(folder: Path, name: str = "voc-fcn8s", size: tuple[int, int] = (64, 80)) -> tuple[Path, Path]:
    """A narrow net and its made-up weights as files, the input declared in a size."""
    net = make_net(name, form=FORM)
    for layer in net.layer:
        if layer.type == "Input":
            layer.input_param.shape[0].dim[2:] = size
    (folder / "fcn.prototxt").write_text(format_net(net))
    write_weights(made_weights(name, FORM), folder / "fcn.caffemodel", net=net)
    return folder / "fcn.prototxt", folder / "fcn.caffemodel"


# ---- commands ----


def test_run_computes_in_halves_and_writes_float32(fcn: Fcn, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((1, 3, 2, 2), 100, np.float32))
    for precision, wanted in (("float32", 100.1), ("bf16", 100.0)):
        done = fcn("run", "fine.prototxt", "fine.caffemodel", "--input", "x.npy", "--out", f"{precision}.npz",
                   "--precision", precision, "--json")  # fmt: skip
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["precision"] == precision
        score = np.load(tmp_path / f"{precision}.npz")["score"]
        assert score.dtype == np.float32
        np.testing.assert_allclose(score[0, 0], wanted, rtol=1e-6)


def test_segment_and_classify_in_halves(fcn: Fcn, tmp_path: Path) -> None:
    done = fcn("segment", "x.png", "--net", "net.prototxt", "--weights", "net.caffemodel", "--mean", "0,0,0",
               "--precision", "bf16", "--out", "o", "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["precision"] == "bf16"
    assert np.asarray(Image.open(tmp_path / "o/x.png")).tolist() == [[2, 1], [0, 0]]
    done = fcn("classify", "x.png", "--net", "fine.prototxt", "--weights", "fine.caffemodel",
               "--mean", "0,0,0", "--precision", "bf16", "--json")  # fmt: skip
    scores = {row["label"]: row["score"] for row in json.loads(done.stdout)["images"][0]["predictions"]}
    assert scores[0] == (20 + 20 + 200 + 1) / 4  # blue, exact in halves; 1.001 of it otherwise


@pytest.mark.parametrize(
    "command",
    [
        ("run", "net.prototxt", "net.caffemodel", "--input", "x.png", "--out", "o.npz"),
        ("segment", "x.png", "--net", "net.prototxt", "--weights", "net.caffemodel", "--out", "o"),
        ("classify", "x.png", "--net", "net.prototxt", "--weights", "net.caffemodel"),
    ],
)
def test_tf32_wants_a_card(fcn: Fcn, tmp_path: Path, command: tuple[str, ...]) -> None:
    refused(fcn(*command, "--precision", "tf32"), "--precision tf32: cpu, which has no TF32")
    assert not (tmp_path / "o.npz").exists() and not (tmp_path / "o").exists()


def test_dense_scores_are_float32(fcn: Fcn, tmp_path: Path) -> None:
    done = fcn("segment", "x.png", "--net", "net.prototxt", "--weights", "net.caffemodel", "--out", "o",
               "--dense", "atrous", "--precision", "bf16")  # fmt: skip
    refused(done, "--precision bf16: given with --dense")


# ---- parity ----


def test_parity_tells_how_many_labels_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcn = run_in(tmp_path, monkeypatch)
    net, weights = narrow(tmp_path)
    for precision, most in (("bf16", 0.05), ("fp16", 0.01)):
        done = fcn("parity", net, weights, "--against", f"self:precision={precision}", "--no-judge", "--json")
        assert done.exit_code == 1, done.stderr
        (row,) = [row for row in json.loads(done.stdout)["blobs"] if row["output"]]
        picture = picture_net(net, weights, precision=precision, frame=False)
        x = (np.random.default_rng(0).integers(0, 256, (1, 3, 64, 80)) - 127.5).astype(np.float32)
        halved = forward(picture.net, {"data": x}, ["score"])["score"]
        exact = forward(picture_net(net, weights, frame=False).net, {"data": x}, ["score"])["score"]
        assert halved.dtype == np.float32
        assert row["flips"]["equal_share"] == pytest.approx((halved.argmax(1) == exact.argmax(1)).mean())
        worst = np.abs(halved - exact).max() / np.abs(halved).max()
        assert row["difference"]["of_largest"] == pytest.approx(worst, rel=1e-3)
        assert 1e-5 < worst < most
    done = fcn("parity", net, weights, "--against", "self:frame=on", "--no-judge")
    assert done.exit_code == 0, done.stdout
    assert "labels of score: 100.000% of 5120 equal; the scores differ by at most" in done.stdout


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("precision=tf32", "--against self:precision=tf32: cpu, which has no TF32; wanted a CUDA device"),
        ("precision=int8", "precision=float32 or precision=float64 or precision=tf32 or precision=bf16"),
        ("frame=maybe", "wanted frame=on or frame=off"),
        ("speed=9", "wanted device=... or threads=... or precision=... or frame=..."),
    ],
)
def test_settings_of_parity_that_cannot_be(fcn: Fcn, settings: str, words: str) -> None:
    refused(fcn("parity", "net.prototxt", "net.caffemodel", "--against", f"self:{settings}"), words)


# ---- what a device is given ----


def test_labels_from_the_device_are_numpys(tmp_path: Path) -> None:
    picture = picture_net(*save_net(tmp_path, colours_net()))
    x = np.random.default_rng(0).integers(0, 3, (4, 3, 9, 7)).astype(np.float32)  # many ties
    x[1, 2, 0, 0] = np.nan
    labels, classes = label_maps(picture.net, "data", "score", torch.from_numpy(x))
    scores = forward(picture.net, {"data": x}, ["score"])["score"]
    np.testing.assert_array_equal(labels.numpy(), scores.argmax(1))
    assert (classes, labels.dtype) == (3, torch.uint8)


def test_nothing_changes_on_a_cpu(tmp_path: Path) -> None:
    net = picture_net(*narrow(tmp_path)).net
    strides = [p.stride() for p in net.parameters()]
    assert [p.stride() for p in gpu.arrange(net, CPU, "bf16").parameters()] == strides
    x = torch.ones(2)
    assert gpu.pin(x, CPU) is x and gpu.send(x, CPU) is x
    coming = gpu.Coming(x, 0.0)
    assert coming.array() is not None and coming.array().tolist() == [1, 1] and coming.seconds > 0
    tuned = gpu.Autotuning(CPU)
    for _ in range(2):
        with tuned("a"):
            assert not torch.backends.cudnn.benchmark


def test_cudnn_searches_only_for_sizes_that_come_again() -> None:
    tuned, seen = gpu.Autotuning(CARD), []
    for kind in ("a", "b", "a", "a", "c"):
        with tuned(kind):
            seen.append(torch.backends.cudnn.benchmark)
        assert not torch.backends.cudnn.benchmark
    assert seen == [False, False, True, True, False]
    with pytest.raises(KeyError), tuned("a"):
        raise KeyError
    assert not torch.backends.cudnn.benchmark


def test_the_workspace_is_bounded_unless_somebody_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(gpu.WORKSPACE_VARIABLE, raising=False)
    gpu.bound_workspace()
    assert os.environ[gpu.WORKSPACE_VARIABLE] == "1024"
    monkeypatch.setenv(gpu.WORKSPACE_VARIABLE, "7")
    gpu.bound_workspace()
    assert os.environ[gpu.WORKSPACE_VARIABLE] == "7"


@pytest.mark.parametrize(("precision", "last"), [("float32", False), ("bf16", True), ("tf32", True)])
def test_weights_lie_as_the_tensor_cores_read_them(tmp_path: Path, precision: str, last: bool) -> None:
    files = narrow(tmp_path)
    net = picture_net(*files).net  # stays on the CPU: only the order is looked at
    gpu.arrange(net, CARD, precision)
    weight = net.params["conv1_2"][0]
    assert weight.is_contiguous(memory_format=torch.channels_last) == last
    x = torch.ones(1, 3, 64, 80)
    again = picture_net(*files).net
    a, b = (compute(each, {"data": x}, ["score"])["score"] for each in (net, again))
    assert float((a - b).abs().max() / b.abs().max()) < NET


@CUDA
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "fp16"])
def test_a_card_gives_the_labels_of_the_cpu(tmp_path: Path, precision: str) -> None:
    files = narrow(tmp_path)
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 60, (2, 3, 64, 80)).astype(np.float32))
    scores = compute(picture_net(*files).net, {"data": x}, ["score"])["score"]
    card = picture_net(*files, device="cuda", precision=precision).net
    best = scores.topk(2, dim=1).values
    bound = {"float32": NET, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}[precision]
    sure = best[:, 0] - best[:, 1] > 2 * bound * scores.abs().max()
    tuned = gpu.Autotuning(CARD)
    for _ in range(3):
        with tuned(x.shape):
            labels, _ = label_maps(card, "data", "score", gpu.pin(x, CARD))
        assert labels.is_cuda and labels.dtype == torch.uint8
        found = torch.from_numpy(gpu.Coming(labels, 0.0).array())
        assert bool((found == scores.argmax(1))[sure].all())
        assert (
            torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
        )


@CUDA
def test_fc6_needs_no_gigabytes_of_workspace(tmp_path: Path) -> None:
    # 512 channels of 7 x 7 to 4096, as in VGG16, on a map of 22 x 22
    weight, x = torch.zeros(4096, 512, 7, 7, device="cuda"), torch.zeros(1, 512, 22, 22, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gpu.bound_workspace()
    torch.nn.functional.conv2d(x, weight)
    assert torch.cuda.max_memory_allocated() - before < 2 * gpu.WORKSPACE_MIB << 20


@CUDA
def test_a_folder_on_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_models(tmp_path)
    fcn: Any = run_in(tmp_path, monkeypatch)
    (tmp_path / "in").mkdir()
    for i in range(9):
        picture = np.random.default_rng(i).integers(0, 256, (3 + i % 2, 4, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"in/{i}.png")
    done = fcn("segment", "in", "--net", "net.prototxt", "--weights", "net.caffemodel", "--mean", "0,0,0",
               "--out", "out", "--batch", "2", "--device", "cuda")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    for i in range(9):
        truth = np.asarray(Image.open(tmp_path / f"in/{i}.png"))[:, :, ::-1].argmax(2)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"out/{i}.png")), truth)
