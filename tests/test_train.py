"""`fcn train` and `fcn evaluate` on small data: files, log, scores, accidents, killed and resumed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import Fcn, refused, run_in
from made_data import make_camvid, make_nyud, make_sbd, make_siftflow, make_voc, write
from PIL import Image

from caffe_weights.caffe_pb2 import LossParameter, SolverParameter
from caffe_weights.errors import InputError, NetError
from caffe_weights.export import read_weights, write_weights
from caffe_weights.prototxt import parse_net, read_net, read_solver
from caffe_weights.upgrade import load_net, upgrade_net
from caffe_weights.weights import Weights
from reproduce.commands.train import RECIPES
from reproduce.data import open_data
from reproduce.data.loading import Feed
from reproduce.data.net_source import net_source, part_of
from reproduce.data.sampling import RandomOrder
from reproduce.net import Net
from reproduce.nets import NETS, Form, make_net
from reproduce.preflight import _wrong_rate, preflight
from reproduce.run_files import changed, form_for, interpolation
from reproduce.run_log import read_log
from surgery.interpolation import bilinear_weights

NARROW = ("--narrow", "32", "--fc", "8", "--workers", "0")
TRAIN = ("train", "voc-fcn32s", "--data", "camvid:data", "--init", "msra", "--lr", "1e-8", *NARROW)


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    torch.set_num_threads(1)
    make_camvid(tmp_path / "data", size=(24, 32))
    return run_in(tmp_path, monkeypatch)


def weights_of(out: Path, iteration: int) -> Weights:
    return read_weights(out / f"snapshot/train_iter_{iteration}.caffemodel")


def equal(one: Weights, other: Weights) -> bool:
    return list(one) == list(other) and all(
        np.array_equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)
    )


def test_a_run_leaves_its_files_log_and_scores(fcn: Fcn, tmp_path: Path) -> None:
    done = fcn(
        *TRAIN, "--out", "run", "--iterations", "6", "--score-every", "3", "--set", "display=2", "--json"
    )
    assert done.exit_code == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert (run["iteration"], run["stopped"], run["net"]) == (6, False, "voc-fcn32s")
    out = tmp_path / "run"
    rows = read_log(out / "log.jsonl")
    losses, scores = [r for r in rows if "loss" in r], [r for r in rows if "mean_iu" in r]
    assert [row["iteration"] for row in losses] == list(range(6))
    assert [row["iteration"] for row in scores] == [3, 6]
    # all scores are zero before the first update: each labelled pixel costs log(11)
    first = open_data("camvid", tmp_path / "data").ids[RandomOrder(3)(0)]
    labelled = int((open_data("camvid", tmp_path / "data").label(first) != 255).sum())
    assert losses[0]["loss"] == pytest.approx(labelled * np.log(11), rel=1e-5)
    assert losses[2]["smoothed_loss"] == pytest.approx(np.mean([row["loss"] for row in losses[:3]]))
    assert Image.open(out / "curves.png").size[0] > 100
    assert "voc-fcn32s 2/6: loss" in done.stderr
    solver = read_solver(out / "solver.prototxt")
    assert (solver.max_iter, solver.display, round(solver.momentum, 6)) == (6, 2, 0.99)
    assert solver.base_lr == np.float32(1e-8)
    deploy = Net(load_net(out / "deploy.prototxt"), weights_of(out, 6))
    assert deploy.params["score_fr"][0].shape == (11, 8, 1, 1)
    np.testing.assert_array_equal(deploy.params["upscore"][0].detach(), bilinear_weights((11, 11, 64, 64)))
    assert float(deploy.params["score_fr"][0].detach().abs().max()) > 0


def test_evaluate_is_the_arg_max_counted_pixel_by_pixel(fcn: Fcn, tmp_path: Path) -> None:
    assert fcn(*TRAIN, "--out", "run", "--iterations", "2").exit_code == 0
    weights = tmp_path / "run/snapshot/train_iter_2.caffemodel"
    score = ("evaluate", "voc-fcn32s", "--weights", weights, "--data", "camvid:data", *NARROW)
    done = fcn(*score, "--json", "--out", "maps")
    result = json.loads(done.stdout)
    assert (result["split"], result["images"]) == ("test", 2)
    data = open_data("camvid", tmp_path / "data", "test")
    net = Net(load_net(tmp_path / "run/deploy.prototxt"), weights_of(tmp_path / "run", 2))
    right = total = 0
    losses = []
    for identity in data.ids:
        item = data.item(identity)
        scores = net(data=item["image"][np.newaxis])["score"].detach().numpy()[0].astype(np.float64)
        truth, found = item["label"][0], scores.argmax(0)
        right += int(((truth == found) & (truth != 255)).sum())
        total += int((truth != 255).sum())
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "maps" / f"{identity}.png")), found)
        log_sum = np.log(np.exp(scores).sum(0))
        rows, columns = np.nonzero(truth != 255)
        losses.append((log_sum[rows, columns] - scores[truth[rows, columns], rows, columns]).sum())
    (head,) = result["heads"]
    assert head["pixels"] == total
    assert head["pixel_accuracy"] == pytest.approx(right / total)
    assert result["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert [row["name"] for row in head["per_class"]][:2] == ["Sky", "Building"]
    assert "pixel accuracy" in fcn(*score).stdout
    refused(fcn(*score, "--out", "maps"), "the file exists")


def test_stopped_and_resumed_is_the_uninterrupted_run(fcn: Fcn, tmp_path: Path) -> None:
    settings = ("--set", "snapshot=2", "--mirror", "--jitter", "4")
    assert fcn(*TRAIN, "--out", "whole", "--iterations", "7", *settings).exit_code == 0
    assert fcn(*TRAIN, "--out", "parts", "--iterations", "3", *settings).exit_code == 0
    refused(
        fcn(*TRAIN, "--out", "parts", "--iterations", "7", *settings), "parts: a run is there", "--resume"
    )
    assert fcn(*TRAIN, "--out", "parts", "--iterations", "7", *settings, "--resume").exit_code == 0
    assert equal(weights_of(tmp_path / "whole", 7), weights_of(tmp_path / "parts", 7))
    kept = [[row["loss"] for row in read_log(tmp_path / out / "log.jsonl")] for out in ("whole", "parts")]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 7
    again = fcn(*TRAIN, "--out", "parts", "--iterations", "7", *settings, "--resume")
    assert "done at iteration 7" in again.stdout
    refused(fcn(*TRAIN, "--out", "parts", "--resume", "--iterations", "7"), "another net or data set")
    # the files say all of the run
    files = ("train", "--solver", "whole/solver.prototxt", "--from", "whole/snapshot/train_iter_2.caffemodel")
    assert fcn(*files, "--out", "other", "--iterations", "1", "--workers", "0").exit_code == 0
    assert (tmp_path / "other/snapshot/train_iter_1.caffemodel").exists()


def test_killed_in_the_middle_and_resumed(fcn: Fcn, tmp_path: Path) -> None:
    """kill -9 at several moments, with workers that decode ahead; the end is that of a run left alone."""
    command = [sys.executable, "-m", "reproduce", *TRAIN[:-2], "--workers", "1", "--keep", "1", "--set",
               "snapshot=3", "--set", "display=1", "--iterations", "14"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", "whole"], check=True, capture_output=True, env=environment)
    for kills in range(3):
        process = subprocess.Popen([*command, "--out", "killed", "--resume"], env=environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        log, begun = tmp_path / "killed/log.jsonl", len(read_log(tmp_path / "killed/log.jsonl"))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if len(read_log(log)) >= min(begun, 3 * (begun // 3)) + 3 + kills % 2:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(
        [*command, "--out", "killed", "--resume"], check=True, capture_output=True, env=environment
    )
    assert equal(weights_of(tmp_path / "whole", 14), weights_of(tmp_path / "killed", 14))
    losses = [[row["loss"] for row in read_log(tmp_path / out / "log.jsonl")] for out in ("whole", "killed")]
    assert losses[0] == losses[1]


def test_an_interrupt_ends_after_the_iteration_with_a_snapshot(fcn: Fcn, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reproduce", *TRAIN, "--out", "run", "--iterations", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(read_log(tmp_path / "run/log.jsonl")) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    words, remarks = process.communicate(timeout=60)
    assert process.returncode == 130, remarks
    assert "stopped at iteration" in words
    done = len(read_log(tmp_path / "run/log.jsonl"))
    assert weights_of(tmp_path / "run", done)


def test_a_recipe_trains_one_net_after_the_other(fcn: Fcn, tmp_path: Path) -> None:
    done = fcn("train", "--recipe", "voc-staged", *TRAIN[2:6], *NARROW, "--lr", "1e-8,1e-9,1e-10",
               "--iterations", "2", "--out", "run", "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert [run["net"] for run in runs] == ["voc-fcn32s", "voc-fcn16s", "voc-fcn8s"]
    last = weights_of(tmp_path / "run/voc-fcn8s", 2)
    assert last["score_pool3"][0].any()
    assert read_solver(tmp_path / "run/voc-fcn16s/solver.prototxt").base_lr == np.float32(1e-9)
    assert set(last) >= {"score_fr", "score_pool4", "score_pool3", "upscore8"}
    for names in (names for names in RECIPES.values() if names[0] in NETS):
        assert all(NETS[after].starts_from == (before,) for before, after in itertools.pairwise(names))


def test_training_starts_from_a_predecessor(fcn: Fcn, tmp_path: Path) -> None:
    form = Form(32, 8)
    net = make_net("vgg16", form=form)
    rng = np.random.default_rng(0)
    model = Net(net)
    blobs = {name: [rng.normal(0, 0.1, tuple(p.shape)).astype(np.float32) for p in params]
             for name, params in model.params.items()}  # fmt: skip
    write_weights(Weights(blobs), tmp_path / "vgg.caffemodel", net)
    start = ("train", "voc-fcn32s", "--data", "camvid:data", "--from", "vgg.caffemodel", *NARROW)
    done = fcn(*start, "--out", "run", "--iterations", "1", "--lr", "1e-12")
    assert done.exit_code == 0, done.stderr
    assert "voc-fcn32s: 30 blobs from vgg.caffemodel" in done.stderr
    trained = weights_of(tmp_path / "run", 1)
    np.testing.assert_allclose(trained["conv1_1"][0], blobs["conv1_1"][0], atol=1e-7)
    np.testing.assert_allclose(trained["fc6"][0].reshape(8, -1), blobs["fc6"][0], atol=1e-7)


@pytest.mark.parametrize(
    ("name", "kind", "make", "parts"),
    [
        ("siftflow-fcn32s", "siftflow", make_siftflow, ("sem", "geo")),
        ("nyud-fcn32s-color-d", "nyud", make_nyud, ("label",)),
        ("voc-fcn32s", "sbd", make_sbd, ("label",)),
    ],
)
def test_other_data_sets_train_and_score(
    fcn: Fcn, tmp_path: Path, name: str, kind: str, make: object, parts: tuple[str, ...]
) -> None:
    make(tmp_path / "set")  # type: ignore[operator]
    done = fcn("train", name, "--data", f"{kind}:set", "--init", "xavier", *NARROW, "--out", "run",
               "--iterations", "1", "--lr", "1e-9")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    split = open_data(kind, tmp_path / "set").split.name
    weights = "run/snapshot/train_iter_1.caffemodel"
    result = fcn("evaluate", name, "--weights", weights, "--data", f"{kind}:set", "--split", split, *NARROW,
                 "--json")  # fmt: skip
    assert [head["label"] for head in json.loads(result.stdout)["heads"]] == list(parts)


def test_what_is_trained_on_sbd_is_scored_on_voc(fcn: Fcn, tmp_path: Path) -> None:
    make_sbd(tmp_path / "sbd")
    make_voc(tmp_path / "voc", ("2007_000033",), "seg11valid")
    done = fcn("train", "voc-fcn32s", "--data", "sbd:sbd", "--init", "msra", *NARROW, "--out", "run",
               "--iterations", "1", "--lr", "1e-9", "--score-data", "voc:voc", "--json")  # fmt: skip
    (run,) = json.loads(done.stdout)["runs"]
    assert 0 <= run["scores"]["pixel_accuracy"] <= 1


def small(normalize: bool | None, zero: str = "") -> Net:
    text = """
      input: "data" input_shape { dim: 1 dim: 3 dim: 20 dim: 20 }
      input: "label" input_shape { dim: 1 dim: 1 dim: 20 dim: 20 }
      layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 2 weight_filler { type: "xavier" } } }
      layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
      layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
        convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xavier" } } }
      layer { name: "score" type: "Convolution" bottom: "conv2" top: "score"
        convolution_param { num_output: 2 kernel_size: 1 } }
      layer { name: "up" type: "Deconvolution" bottom: "score" top: "up" convolution_param {
        num_output: 2 kernel_size: 2 stride: 2 bias_term: false weight_filler { type: "bilinear" } } }
      layer { name: "loss" type: "SoftmaxWithLoss" bottom: "up" bottom: "label" top: "loss" LOSS }"""
    loss = "" if normalize is None else f"loss_param {{ normalize: {str(normalize).lower()} }}"
    net = Net(upgrade_net(parse_net(text.replace("LOSS", loss))), phase="TRAIN", seed=0)
    if zero:
        net.params[zero][0].data.zero_()
    return net


SHAPES = {"data": (1, 3, 500, 500), "label": (1, 1, 500, 500)}


@pytest.mark.parametrize(
    ("normalize", "zero", "rate", "momentum", "words"),
    [
        (False, "", 1e-10, 0.99, ""),  # the published ones
        (False, "", 1e-14, 0.99, ""),
        (True, "", 1e-4, 0.9, ""),
        (None, "", 1e-4, 0.9, ""),  # Caffe's default is a mean
        (False, "up", 1e-10, 0.99, "layer up: all weights are zero"),
        (False, "conv1", 1e-10, 0.99, "layer conv1: all weights are zero, so conv2 behind it learns nothing"),
        (False, "conv2", 1e-10, 0.99, "layer conv2: all weights are zero, so score behind it"),
        (False, "", 1e-4, 0.9, "loss is a sum over 250000 pixels, for which this is too large"),
        (True, "", 1e-10, 0.99, "loss is a mean over pixels, for which this is too small"),
    ],
)
def test_the_three_accidents(
    normalize: bool | None, zero: str, rate: float, momentum: float, words: str
) -> None:
    solver = SolverParameter(base_lr=rate, momentum=momentum)
    found = [f"{where}: {what}" for where, what, _ in preflight(small(normalize, zero), solver, SHAPES)]
    assert len(found) == bool(words), found
    assert not words or words in found[0]


def test_all_published_solvers_pass_and_a_zero_trunk_does_not() -> None:
    for name, entry in NETS.items():
        if entry.data is None or entry.recipe is None:
            continue
        net = make_net(name, entry.splits[0])
        solver = SolverParameter(base_lr=entry.recipe.base_lr, momentum=entry.recipe.momentum)
        shapes = dict.fromkeys(entry.data.tops, (1, 1, 375, 500))
        assert not list(_wrong_rate(net, solver, shapes)), name
    form = Form(32, 8)
    weights = interpolation("voc-fcn32s", form)
    empty = Net(make_net("voc-fcn32s", "train", form=form), weights, strict=False, phase="TRAIN",
                input_shapes={"data": (1, 3, 24, 32), "label": (1, 1, 24, 32)})  # fmt: skip
    problems = preflight(empty, SolverParameter(base_lr=1e-10, momentum=0.99), SHAPES)
    assert problems[0].where == "layer conv1_1"
    assert len(problems) == 15  # all but score_fr, which may be zero


def test_batch_normalisation_of_a_loss_counts() -> None:
    net = small(False)
    net.definition.layer[-1].loss_param.normalization = LossParameter.NONE
    solver = SolverParameter(base_lr=1e-8, momentum=0.99)
    assert not preflight(net, solver, SHAPES)
    assert preflight(net, solver, {name: (8, *shape[1:]) for name, shape in SHAPES.items()})


def test_train_refuses(fcn: Fcn, tmp_path: Path) -> None:
    base = ("train", "voc-fcn32s", "--out", "run", *NARROW)
    (tmp_path / "file").write_text('net: "none.prototxt" base_lr: 0.1 max_iter: 3')
    for out in ("file", "file/run"):  # before net and data are read
        refused(fcn("train", "--solver", "file", "--out", out), "file", "wanted a folder")
        refused(fcn(*base[:2], "--out", out, "--data", "camvid:none", "--init", "msra"), "wanted a folder")
    refused(fcn("train", "--out", "run"), "nothing to train; wanted NAME, --recipe or --solver")
    refused(fcn(*base), "no data set; wanted --data KIND:DIR")
    refused(fcn(*base, "--data", "camvid:data"), "no start; wanted --from WEIGHTS")
    expanded = fcn(*base, "--data", "camvid:data", "--init", "msra", "--expand-score")
    refused(expanded, "--expand-score: given without --from; wanted both")
    refused(fcn(*base, "--data", "camvid:none", "--init", "msra"), "none: no such folder")
    refused(fcn(*base, "--data", "siftflow:data", "--init", "msra"), "no SemanticLabels")
    refused(fcn(*TRAIN, "--out", "run", "--set", "base_rl=1"), "--set: 'base_rl=1'")
    refused(fcn(*TRAIN, "--out", "run", "--set", "base_lr=fast"), "a value of base_lr")
    refused(
        fcn(*TRAIN, "--out", "run", "--set", "base_lr=1"), "before training", "too large", "--no-preflight"
    )
    refused(fcn(*TRAIN, "--out", "run", "--lr", "1,2"), "--lr: 2 rates; wanted 1")
    refused(fcn("train", "vgg16", *TRAIN[2:], "--out", "run"), "vgg16: a classifier; wanted an FCN")
    refused(fcn("train", "--solver", "s.prototxt", "--data", "camvid:data", "--out", "run"),
            "--data: given with --solver")  # fmt: skip
    nan = fcn(*TRAIN, "--out", "nan", "--iterations", "40", "--set", "base_lr=1e3", "--no-preflight")
    refused(nan, "the loss is", "lower base_lr")


def test_a_net_without_data_layers_is_refused(tmp_path: Path) -> None:
    net = parse_net('layer { name: "in" type: "WindowData" top: "x" }')
    with pytest.raises(NetError, match="layer in: the type WindowData, which brings no data here"):
        net_source(net, tmp_path)


def test_solver_fields_are_set_from_text() -> None:
    solver = changed(SolverParameter(stepvalue=[5]), ["stepvalue=10, 20", "type=Adam", "lr_policy=multistep",
                                                      "snapshot_format=HDF5", "momentum=0.5"])  # fmt: skip
    assert list(solver.stepvalue) == [10, 20]
    assert (solver.type, solver.lr_policy, solver.momentum) == ("Adam", "multistep", 0.5)
    assert solver.snapshot_format == SolverParameter.HDF5
    with pytest.raises(InputError, match="FIELD=VALUE"):
        changed(solver, ["momentum"])


def test_classes_are_the_data_sets() -> None:
    assert form_for("voc-fcn8s", "camvid").classes == 11
    assert form_for("voc-fcn8s", "sbd").classes is None
    assert form_for("voc-fcn8s", "camvid", classes=12).classes == 12


def test_processes_share_the_passes() -> None:
    asked = [[next(numbers) for _ in range(4)] for numbers in (part_of(rank, 2, 4)(0) for rank in (0, 1))]
    assert asked == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_a_train_net_says_where_its_data_is(fcn: Fcn, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere.png", np.zeros((2, 2, 3), np.uint8))
    assert fcn(*TRAIN, "--out", "run", "--iterations", "1", "--jitter", "3", "--seed", "5").exit_code == 0
    layer = read_net(tmp_path / "run/train.prototxt").layer[0]
    assert (layer.python_param.module, layer.python_param.layer) == ("reproduce.data", "camvid")
    source = net_source(read_net(tmp_path / "run/train.prototxt"))
    feed = source.feeds["data"]
    assert isinstance(feed, Feed) and feed.order(0) == RandomOrder(3, 5)(0)
