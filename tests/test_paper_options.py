"""What the papers tried: momentum by arithmetic, balancing and sampling against float64, learning rates."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import Fcn, refused, run_in
from made_data import make_camvid, make_siftflow, write, write_list

from caffe_weights.caffe_pb2 import BlobProto, LossParameter, NetParameter, SolverParameter
from caffe_weights.errors import FormatError, InputError
from caffe_weights.export import read_weights
from caffe_weights.prototxt import format_net, read_net, read_solver
from caffe_weights.upgrade import load_net
from reproduce.balance import class_weights, count_classes, gain_matrix, inverse, median_frequency
from reproduce.data import open_data
from reproduce.data.net_source import net_source
from reproduce.data.transforms import Augment
from reproduce.net import Net
from reproduce.nets import NETS, Form, make_net
from reproduce.paper_options import (
    PaperOptions,
    balance_losses,
    equivalent_momentum,
    fix_all_but_scores,
    parse_momentum,
    scale_sums,
    set_interpolation,
)
from surgery.interpolation import bilinear_weights

NARROW = ("--narrow", "32", "--fc", "8", "--workers", "0")
TRAIN = ("train", "voc-fcn32s", "--data", "camvid:data", "--init", "msra", "--lr", "1e-8", *NARROW)


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    torch.set_num_threads(1)
    make_camvid(tmp_path / "data", size=(24, 32))
    return run_in(tmp_path, monkeypatch)


def test_momentum_of_another_batch() -> None:
    # 20 updates of batches of 1 must fade what one update of a batch of 20 fades
    single = equivalent_momentum(0.9, 20, 1)
    assert round(single, 4) == 0.9947  # the repository's 0.99, in the paper's words
    product = 1.0
    for _ in range(20):
        product *= single
    assert product == pytest.approx(0.9, rel=1e-12)
    assert equivalent_momentum(0.99, 1, 20) == pytest.approx(0.8179069, abs=1e-7)  # 0.99^20
    assert parse_momentum("0.9@20", 1) == single
    assert parse_momentum("0.9", 7) == 0.9
    assert equivalent_momentum(0.0, 20, 1) == 0
    for text in ("fast", "1", "-0.1", "0.9@0", "0.9@x", "@20"):
        with pytest.raises(InputError):
            parse_momentum(text, 1)


def test_the_gradients_of_a_batch_fade_as_one_by_one() -> None:
    """Velocity after n pictures, one by one with p^(1/k) or k at a time with p: equal at the ends of batches
    but for the order within a batch, so up to a factor for pictures that are alike within one."""
    k, p, gradients = 4, 0.8, np.repeat(np.random.default_rng(0).normal(size=6), 4)
    one_by_one = batched = 0.0
    for start in range(0, len(gradients), k):
        batched = p * batched + 1.0 * gradients[start : start + k].sum()
        for gradient in gradients[start : start + k]:
            one_by_one = equivalent_momentum(p, k, 1) * one_by_one + gradient
    q = p ** (1 / k)
    within = (1 + q + q**2 + q**3) / 4  # the same factor for each batch
    assert one_by_one == pytest.approx(within * batched, rel=1e-12)


def test_interpolation_between_skips_learns_as_in_the_paper() -> None:
    net = make_net("voc-fcn8s", "train")
    set_interpolation(net, True)
    assert net == make_net("voc-fcn8s-learned", "train")
    set_interpolation(net, False)
    assert net == make_net("voc-fcn8s", "train")
    nested = make_net("voc-fcn-googlenet-8s", "train")  # its doubled maps are cropped
    set_interpolation(nested, True)
    assert [x.param[0].lr_mult for x in nested.layer if x.type == "Deconvolution"] == [1, 1, 0]
    with pytest.raises(InputError, match="no up-sampling but the last"):
        set_interpolation(make_net("voc-fcn32s", "train"), True)


def test_only_the_score_layers_learn() -> None:
    net = make_net("voc-fcn32s", "train")
    fix_all_but_scores(net)
    assert net == make_net("voc-fcn32s-fixed", "train")  # FCN-32s-fixed of Table 2
    for name, entry in NETS.items():
        if entry.data is None or entry.recipe is None or "voc" not in name:
            continue
        net = make_net(name, entry.splits[0], form=Form(64, 4))
        fix_all_but_scores(net)
        shapes = {"data": (1, 3, 64, 64), "label": (1, 1, 64, 64)}
        model = Net(net, phase="TRAIN", input_shapes=shapes)
        learn = {slot.layer for slot in model.learnable() if slot.lr_mult and slot.parameter().requires_grad}
        assert learn == {x.name for x in net.layer if x.name.startswith("score") and x.type == "Convolution"}


def naive_loss(scores: np.ndarray, label: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """The weighted sum of -log softmax over pixels that are not void, and its gradient, pixel by pixel."""
    total, gradient = 0.0, np.zeros_like(scores)
    for n, y, x in np.ndindex(label.shape):
        truth = int(label[n, y, x])
        if truth == 255:
            continue
        e = np.exp(scores[n, :, y, x] - scores[n, :, y, x].max())
        p = e / e.sum()
        total -= weights[truth] * np.log(p[truth])
        gradient[n, :, y, x] = weights[truth] * (p - np.eye(len(p))[truth])
    return total, gradient


def loss_net(normalize: bool) -> NetParameter:
    from caffe_weights.prototxt import parse_net

    return parse_net(f"""
      layer {{ name: "score" type: "Input" top: "score"
        input_param {{ shape {{ dim: 2 dim: 4 dim: 5 dim: 6 }} }} }}
      layer {{ name: "label" type: "Input" top: "label"
        input_param {{ shape {{ dim: 2 dim: 1 dim: 5 dim: 6 }} }} }}
      layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss"
        loss_param {{ ignore_label: 255 normalize: {str(normalize).lower()} }} }}""")


@pytest.mark.parametrize("normalize", [False, True])
def test_balanced_loss_and_gradient_are_the_weighted_sum(tmp_path: Path, normalize: bool) -> None:
    rng = np.random.default_rng(3)
    weights = np.array([0.25, 1.0, 3.5, 0.0])
    (tmp_path / "gain.binaryproto").write_bytes(gain_matrix(weights))
    net = loss_net(normalize)
    balance_losses(net, {"label": tmp_path / "gain.binaryproto"})
    assert net.layer[-1].type == "InfogainLoss"  # Caffe's own
    assert not net.layer[-1].loss_param.HasField("normalize")  # which Caffe refuses there
    scores = rng.normal(size=(2, 4, 5, 6))
    label = rng.integers(0, 4, (2, 5, 6))
    label[rng.random(label.shape) < 0.2] = 255
    x = torch.tensor(scores, dtype=torch.float32, requires_grad=True)
    loss = Net(net, phase="TRAIN")(score=x, label=label[:, None])["loss"]
    loss.sum().backward()
    total, gradient = naive_loss(scores, label, weights)
    divisor = (label != 255).sum() if normalize else 2  # normalize: false is divided by the batch
    assert float(loss.detach()) == pytest.approx(total / divisor, rel=1e-5)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), gradient / divisor, atol=1e-6 * np.abs(gradient).max())


def test_weights_by_frequency() -> None:
    """Three pictures of 10 pixels: class 0 in all (6, 5, 9), 1 in two (4, 5), 2 in one (1), 3 in none."""
    pixels, among = np.array([20, 9, 1, 0]), np.array([30, 20, 10, 0])
    # Eigen and Fergus: frequencies 20/30, 9/20, 1/10; their median is 0.45
    np.testing.assert_allclose(median_frequency(pixels, among), [0.45 / (20 / 30), 1.0, 4.5, 0.0])
    found = inverse(pixels, among)
    np.testing.assert_allclose(found, [30 / (3 * 20), 30 / (3 * 9), 30 / 3, 0])
    assert (found * pixels).sum() == pytest.approx(30)  # the loss keeps its size


def test_classes_are_counted_picture_by_picture(tmp_path: Path) -> None:
    truth = [np.full((2, 5), 0, np.uint8), np.full((2, 5), 0, np.uint8), np.full((2, 5), 0, np.uint8)]
    truth[0][0, :4], truth[1][:, 0], truth[2][0, 0] = 1, 11, 2
    for i, labels in enumerate(truth):
        write(tmp_path / f"labels/t{i}.png", labels)
        write(tmp_path / f"images/t{i}.jpg", np.zeros((2, 5, 3), np.uint8))
    write_list(tmp_path / "train.txt", ["t0", "t1", "t2"])
    pixels, among = count_classes(open_data("camvid", tmp_path), "label")
    assert pixels.tolist() == [6 + 8 + 9, 4, 1, *[0] * 8]
    assert among.tolist() == [10 + 8 + 10, 10, 10, *[0] * 8]


def test_class_weights_of_a_file(tmp_path: Path) -> None:
    make_camvid(tmp_path / "data")
    data = open_data("camvid", tmp_path / "data")
    path = tmp_path / "weights.txt"
    path.write_text("".join(f"{i / 2} class {i}\n" for i in range(11)))
    assert class_weights(str(path), data, "label").tolist() == [i / 2 for i in range(11)]
    for text, words in (("1\n2\n", "2 weights; wanted 11"), ("much\n" * 11, "line 1: 'much'"),
                        ("-1\n" * 11, "'-1'"), ("nan\n" * 11, "'nan'")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(FormatError, match=words):
            class_weights(str(path), data, "label")


def test_a_balanced_run(fcn: Fcn, tmp_path: Path) -> None:
    run = (*TRAIN, "--balance", "median-frequency", "--out", "run")
    done = fcn(*run, "--iterations", "2", "--score-every", "2", "--json")
    assert done.exit_code == 0, (done.stderr, done.exception)
    net = read_net(tmp_path / "run/train.prototxt")
    assert net.layer[-1].type == "InfogainLoss"
    assert net.layer[-1].loss_param.normalization == LossParameter.BATCH_SIZE
    blob = BlobProto.FromString(Path(net.layer[-1].infogain_loss_param.source).read_bytes())
    data = open_data("camvid", tmp_path / "data")
    weights = median_frequency(*count_classes(data, "label"))
    np.testing.assert_allclose(np.array(blob.data).reshape(11, 11), np.diag(weights), rtol=1e-6)
    # all scores are zero before the first update: each pixel costs its weight times log(11)
    first = json.loads((tmp_path / "run/log.jsonl").read_text().split("\n")[0])
    label = data.label(net_source(net).feeds["data"].ids(0)[0])  # type: ignore[attr-defined]
    assert first["loss"] == pytest.approx(np.log(11) * weights[label[label != 255]].sum(), rel=1e-5)
    assert fcn(*run, "--iterations", "4", "--resume").exit_code == 0
    assert fcn("train", "--solver", "run/solver.prototxt", "--from", "run/snapshot/train_iter_2.caffemodel",
               "--out", "again", "--iterations", "1", "--workers", "0").exit_code == 0  # fmt: skip
    text = tmp_path / "run/balance-median-frequency-label.txt"
    by_file = (*TRAIN, "--balance", text, "--out", "file", "--iterations", "2")
    assert fcn(*by_file).exit_code == 0
    same = [
        read_weights(tmp_path / out / "snapshot/train_iter_2.caffemodel")["score_fr"][0]
        for out in ("run", "file")
    ]
    np.testing.assert_array_equal(same[0], same[1])
    text.write_text("1\n" * 11)
    refused(fcn(*by_file, "--resume"), "other class weights")
    refused(fcn(*TRAIN, "--balance", "inverse", "--out", "run", "--resume"), "another net or data set")
    refused(fcn(*TRAIN, "--balance", "no.txt", "--out", "none"), "no.txt: no such file")


def test_both_heads_are_balanced_by_their_own_classes(fcn: Fcn, tmp_path: Path) -> None:
    make_siftflow(tmp_path / "sift")
    done = fcn("train", "siftflow-fcn32s", "--data", "siftflow:sift", "--init", "xavier", *NARROW, "--out",
               "run", "--iterations", "1", "--lr", "1e-9", "--balance", "inverse")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    sizes = [
        len((tmp_path / f"run/balance-inverse-{label}.txt").read_text().splitlines())
        for label in ("sem", "geo")
    ]
    assert sizes == [33, 3]


def test_sampling_keeps_squares_of_the_labels() -> None:
    blobs: dict[str, np.ndarray] = {
        "data": np.ones((3, 64, 97), np.float32),
        "label": np.ones((1, 64, 97), np.uint8),
    }
    shares = []
    for number in range(60):
        found = Augment(sample=0.25, cell=8)(blobs, number)
        np.testing.assert_array_equal(found["data"], blobs["data"])
        kept = found["label"][0] == 1
        assert set(np.unique(found["label"])) <= {1, 255}
        for y, x in np.ndindex(8, 13):
            square = kept[8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            assert square.all() or not square.any()
        shares.append(kept[::8, ::8].mean())
    # 104 squares of 60 pictures: the mean lies within 5 standard deviations of 1/4
    assert abs(np.mean(shares) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / (104 * 60))
    again = Augment(sample=0.25, cell=8)(blobs, 7)
    np.testing.assert_array_equal(again["label"], Augment(sample=0.25, cell=8)(blobs, 7)["label"])
    assert (again["label"] != Augment(sample=0.25, cell=8)(blobs, 8)["label"]).any()


def test_sampling_changes_neither_mirroring_nor_jitter() -> None:
    data = np.random.default_rng(0).normal(size=(3, 9, 9)).astype(np.float32)
    blobs: dict[str, np.ndarray] = {"data": data, "label": np.zeros((1, 9, 9), np.uint8)}
    plain, sampled = (Augment(True, 3, sample=p)(blobs, 4) for p in (1.0, 0.5))
    np.testing.assert_array_equal(plain["data"], sampled["data"])
    assert ((sampled["label"] == plain["label"]) | (sampled["label"] == 255)).all()


def test_a_sampled_sum_has_the_whole_one_as_its_mean() -> None:
    """Over all masks of three cells, each by its probability: 1/p makes up for what is left out."""
    rng = np.random.default_rng(5)
    scores, label, p = rng.normal(size=(1, 4, 1, 3)), np.array([[[2, 0, 3]]]), 0.3
    expected, ones = 0.0, np.ones(4)
    for mask in np.ndindex(2, 2, 2):
        chance = np.prod([p if kept else 1 - p for kept in mask])
        expected += float(chance) * naive_loss(scores, np.where(mask, label, 255), ones)[0] / p
    assert expected == pytest.approx(naive_loss(scores, label, ones)[0], rel=1e-12)
    net, mean = loss_net(False), loss_net(True)
    for each in (net, mean):
        scale_sums(each, 1 / p)
    assert list(net.layer[-1].loss_weight) == [np.float32(1 / p)]
    assert not mean.layer[-1].loss_weight  # a mean over what counts is the right size by itself


def test_a_sampled_run(fcn: Fcn, tmp_path: Path) -> None:
    done = fcn(*TRAIN, "--sample", "0.25", "--sample-cell", "4", "--momentum", "0.9@20", "--out", "run",
               "--iterations", "1", "--set", "iter_size=2")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    solver, net = (read(tmp_path / f"run/{name}.prototxt") for read, name in
                   ((read_solver, "solver"), (read_net, "train")))  # fmt: skip
    assert isinstance(solver, SolverParameter) and isinstance(net, NetParameter)
    assert solver.iter_size == 8
    assert solver.momentum == pytest.approx(
        0.9 ** (2 / 20), rel=1e-6
    )  # two pictures an iteration before sampling
    assert list(net.layer[-1].loss_weight) == [4.0]
    source = net_source(net)
    labelled = sum(int((source(number)["label"] != 255).sum()) for number in range(8))
    first = json.loads((tmp_path / "run/log.jsonl").read_text().split("\n")[0])
    assert first["loss"] == pytest.approx(4 * labelled * np.log(11) / 8, rel=1e-5)
    for sample in ("0", "1.5", "nan"):
        refused(fcn(*TRAIN, "--sample", sample, "--out", "other"), "--sample", "a probability")
    with pytest.raises(InputError):
        PaperOptions(sample=-1)


def test_learned_interpolation_goes_from_stage_to_stage(fcn: Fcn, tmp_path: Path) -> None:
    common = ("--data", "camvid:data", *NARROW, "--iterations", "3")
    base = fcn(*TRAIN, "--iterations", "3", "--out", "run32")
    assert base.exit_code == 0
    last = "run32/snapshot/train_iter_3.caffemodel"
    for name, out in (("voc-fcn16s", "run16"), ("voc-fcn8s", "run8")):
        done = fcn(
            "train", name, *common, "--learn-interpolation", "--from", last, "--out", out, "--lr", "1e-8"
        )
        assert done.exit_code == 0, done.stderr
        before, last = last, f"{out}/snapshot/train_iter_3.caffemodel"
    learned = [read_weights(tmp_path / path)["upscore2"][0] for path in (before, last)]
    start = bilinear_weights((11, 11, 4, 4))
    assert not np.array_equal(learned[0], start)
    assert np.abs(learned[1] - start).max() >= np.abs(learned[0] - start).max() / 2  # not made anew
    np.testing.assert_array_equal(
        read_weights(tmp_path / last)["upscore8"][0], bilinear_weights((11, 11, 16, 16))
    )


def test_a_recipe_learns_interpolation_where_there_is_any(fcn: Fcn, tmp_path: Path) -> None:
    done = fcn("train", "--recipe", "voc-staged", *TRAIN[2:6], *NARROW, "--lr", "1e-8,1e-8,1e-8",
               "--iterations", "2", "--out", "run", "--learn-interpolation")  # fmt: skip
    assert done.exit_code == 0, (done.stderr, done.exception)
    found = {}
    for name in ("voc-fcn32s", "voc-fcn16s", "voc-fcn8s"):
        net = read_net(tmp_path / f"run/{name}/train.prototxt")
        found[name] = [x.name for x in net.layer if x.type == "Deconvolution" and x.param[0].lr_mult]
    assert found == {"voc-fcn32s": [], "voc-fcn16s": ["upscore2"], "voc-fcn8s": ["upscore2", "upscore_pool4"]}
    alone = fcn(*TRAIN, "--out", "alone", "--learn-interpolation")
    refused(alone, "--learn-interpolation: no up-sampling but the last")


def test_a_run_of_the_last_layer(fcn: Fcn, tmp_path: Path) -> None:
    done = fcn(*TRAIN, "--only-last", "--iterations", "3", "--set", "snapshot=1", "--out", "run")
    assert done.exit_code == 0, done.stderr
    first, last = (read_weights(tmp_path / f"run/snapshot/train_iter_{i}.caffemodel") for i in (1, 3))
    moved = {
        name
        for name in first
        if any(not np.array_equal(a, b) for a, b in zip(first[name], last[name], strict=True))
    }
    assert moved == {"score_fr"}
    assert load_net(tmp_path / "run/train.prototxt").layer[1].param[0].lr_mult == 0
    for option, more in (("--only-last", ()), ("--sample-cell", ("2",)), ("--narrow", ("2",))):
        done = fcn("train", "--solver", "run/solver.prototxt", option, *more, "--out", "x")
        refused(done, f"{option}: given with --solver; wanted nothing")


CAFFE = """
import numpy as np, caffe
arrays = np.load("arrays.npz")
net = caffe.Net("net.prototxt", caffe.TRAIN)
for name in ("score", "label"):
    net.blobs[name].data[...] = arrays[name]
net.forward()
net.backward()
np.savez("result.npz", loss=net.blobs["loss"].data, diff=net.blobs["score"].diff)
"""


@pytest.mark.parametrize("normalize", [False, True])
def test_caffe_balances_so_too(tmp_path: Path, normalize: bool) -> None:
    python = os.environ.get("CAFFE_PYTHON")
    if not python:
        pytest.skip("CAFFE_PYTHON names no interpreter that has Caffe")
    rng = np.random.default_rng(3)
    (tmp_path / "gain.binaryproto").write_bytes(gain_matrix(np.array([0.25, 1.0, 3.5, 0.0])))
    net = loss_net(normalize)
    net.force_backward = True
    balance_losses(net, {"label": tmp_path / "gain.binaryproto"})
    (tmp_path / "net.prototxt").write_text(format_net(net))
    label = rng.integers(0, 4, (2, 1, 5, 6)).astype(np.float32)
    label[rng.random(label.shape) < 0.2] = 255
    score = rng.normal(size=(2, 4, 5, 6)).astype(np.float32)
    np.savez(tmp_path / "arrays.npz", score=score, label=label)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", CAFFE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-1500:]
    result = np.load(tmp_path / "result.npz")
    x = torch.tensor(score, requires_grad=True)
    loss = Net(net, phase="TRAIN")(score=x, label=label)["loss"]
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(float(result["loss"]), rel=1e-5)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), result["diff"], atol=1e-6 * np.abs(result["diff"]).max())


def test_a_run_with_another_dropout(fcn: Fcn, tmp_path: Path) -> None:
    done = fcn(*TRAIN, "--dropout", "0.05", "--iterations", "1", "--out", "run")
    assert done.exit_code == 0, done.stderr
    net = read_net(tmp_path / "run/train.prototxt")
    ratios = {x.name: x.dropout_param.dropout_ratio for x in net.layer if x.type == "Dropout"}
    assert ratios == {"drop6": pytest.approx(0.05), "drop7": pytest.approx(0.05)}
    for wrong in ("0", "1", "-0.5"):
        refused(
            fcn(*TRAIN, "--dropout", wrong, "--out", "x"), "--dropout", "a probability above 0 and below 1"
        )
    with pytest.raises(InputError, match="no Dropout layer; wanted a net that has one"):
        PaperOptions(dropout=0.1).change(NetParameter())
