"""Folding of BN against the same arithmetic in float64 numpy, and against the net before it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import InputError, NetError, WeightsError
from caffe_weights.export import read_weights, write_weights
from caffe_weights.prototxt import parse_net, read_net
from caffe_weights.weights import Weights
from reproduce.cli import cli
from reproduce.folding import arrays_source, deploy_form, fold, gather
from reproduce.net import Net
from reproduce.nets import Form, make_net
from reproduce.tolerances import FOLDED, worst_difference
from surgery.folding import Statistics, fold_into_convolutions, fold_statistics, inference_net

SMALL = Form(32, fc=6, classes=3)
GAUSSIAN = "{ type: 'gaussian' std: 1 }"
CONV = f"weight_filler {GAUSSIAN} bias_filler {GAUSSIAN}"
BN = f"bn_param {{ scale_filler {GAUSSIAN} shift_filler {GAUSSIAN} {{}} }}"
TWO = f"""
layer {{ name: "d" type: "Input" top: "d" input_param {{ shape {{ dim: 4 dim: 2 dim: 5 dim: 6 }} }} }}
layer {{ name: "c1" type: "Convolution" bottom: "d" top: "c1"
         convolution_param {{ num_output: 3 kernel_size: 1 {CONV} }} }}
layer {{ name: "n1" type: "BN" bottom: "c1" top: "c1" {BN.replace("{}", "")} }}
layer {{ name: "r1" type: "ReLU" bottom: "c1" top: "c1" }}
layer {{ name: "c2" type: "Convolution" bottom: "c1" top: "c2"
         convolution_param {{ num_output: 2 kernel_size: 1 {CONV} }} }}
layer {{ name: "n2" type: "BN" bottom: "c2" top: "y" {BN.replace("{}", "")} }}
"""
run = CliRunner()


def batches(count: int, items: int, *shape: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.normal(rng.normal(), rng.uniform(0.5, 3), (items, *shape)).astype(np.float32)
        for _ in range(count)
    ]


def loaded(net: NetParameter, weights: Weights) -> Net:
    """The net with these weights in float64, of which none are rounded."""
    model = Net(net).double()
    for name, blobs in model.params.items():
        for blob, values in zip(blobs, weights[name], strict=True):
            blob.data.copy_(torch.from_numpy(values))
    return model


def test_statistics_that_are_no_numbers_are_refused() -> None:
    net, (first, second) = parse_net(TWO), batches(2, 4, 2, 5, 6)
    second[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="layer n1: NaN or infinite statistics in batch 1; wanted numbers"):
        gather(net, Net(net, seed=1).weights(), lambda number: {"d": (first, second)[number]}, 2)


def test_learn_on_a_batch_is_inference_with_its_statistics_folded() -> None:
    """In float64: 29 normalisations after each other enlarge what rounding leaves."""
    net = make_net("deconvnet", "statistics", (64, 64), SMALL)
    deploy = deploy_form(net, 64)
    learned = Net(deploy, seed=3)
    for name, blobs in learned.params.items():  # released fillers leave the convolutions zero
        if len(blobs) == 2 and not name.startswith(("de", "fc6-")):
            torch.nn.init.normal_(blobs[0], std=0.3)
    learned.double()
    weights, x = learned.weights(), batches(1, 4, 3, 64, 64)[0]
    done = fold(deploy, weights, lambda number: {"data": x}, batches=1, dtype=torch.float64)
    assert len(done.report.layers) == 29 and done.net == inference_net(deploy)
    with torch.no_grad():
        (wanted,), (found,) = learned(data=x).values(), loaded(done.net, done.weights)(data=x).values()
    assert worst_difference(found.numpy(), wanted.numpy())[0] < 1e-9
    assert all(a is b for a, b in zip(done.weights["conv1_1"], weights["conv1_1"], strict=True))


def by_numpy(weights: Weights, data: list[np.ndarray], bessel: bool) -> dict[str, list[np.ndarray]]:
    """The released script on the net TWO, in float64: averages over batches, then scale and shift."""
    w = {name: [b.astype(np.float64) for b in blobs] for name, blobs in weights.items()}
    sums: dict[str, list[np.ndarray]] = {"n1": [np.zeros(3), np.zeros(3)], "n2": [np.zeros(2), np.zeros(2)]}
    for x in data:
        h = x.astype(np.float64)
        for conv, norm in (("c1", "n1"), ("c2", "n2")):
            h = np.einsum("oi,nihw->nohw", w[conv][0][:, :, 0, 0], h) + w[conv][1].reshape(1, -1, 1, 1)
            mean, variance = h.mean((0, 2, 3)), (h**2).mean((0, 2, 3)) - h.mean((0, 2, 3)) ** 2
            sums[norm][0] += mean
            sums[norm][1] += variance
            h = (h - mean.reshape(1, -1, 1, 1)) / np.sqrt(variance.reshape(1, -1, 1, 1) + 1e-9)
            h = np.maximum(0, h * w[norm][0] + w[norm][1])
    folded, m = {}, data[0].shape[0] * 30
    for norm, (mean, variance) in sums.items():
        mean, variance = mean / len(data), variance / len(data) * (m / (m - 1) if bessel else 1)
        scale, shift = (b.ravel() for b in w[norm])
        folded[norm] = [scale / np.sqrt(variance + 1e-9), shift - scale * mean / np.sqrt(variance + 1e-9)]
    return folded


@pytest.mark.parametrize("bessel", [False, True])
def test_many_batches_are_averaged_as_in_float64(bessel: bool) -> None:
    net = parse_net(TWO)
    weights, data = Net(net, seed=1).weights(), batches(7, 4, 2, 5, 6)
    done = fold(net, weights, lambda number: {"d": data[number]}, len(data), bessel)
    wanted = by_numpy(weights, data, bessel)
    for name, blobs in wanted.items():
        for found, want in zip(done.weights[name], blobs, strict=True):
            assert found.shape == (1, want.size, 1, 1) and found.dtype == np.float32
            np.testing.assert_allclose(found.ravel(), want, rtol=5e-7, atol=5e-7)
    assert done.report.batches == 7 and done.report.bessel == bessel


def test_the_correction_is_m_over_m_minus_1() -> None:
    weights = Weights({"n": [np.full((1, 1, 1, 1), 6.0), np.full((1, 1, 1, 1), 1.0)]})
    found = {"n": Statistics(np.array([2.0]), np.array([3.0]), 4)}
    scale, shift = fold_statistics(weights, found, bessel=True)["n"]
    assert float(scale[0, 0, 0, 0]) == pytest.approx(3) and float(shift[0, 0, 0, 0]) == pytest.approx(-5)
    with pytest.raises(WeightsError, match="layer n: one value a channel in a batch; wanted two or more"):
        fold_statistics(weights, {"n": Statistics(np.array([2.0]), np.array([3.0]), 1)}, bessel=True)


def test_statistics_hold_the_mean_the_variance_and_the_count() -> None:
    net, x = parse_net(TWO), batches(1, 4, 2, 5, 6)[0]
    model = Net(net, seed=1)
    found = gather(net, model.weights(), lambda number: {"d": x}, 1)
    assert {name: entry.count for name, entry in found.items()} == {"n1": 120, "n2": 120}
    assert found["n1"].mean.shape == found["n1"].variance.shape == (3,)


MERGED = f"""
layer {{ name: "d" type: "Input" top: "d" input_param {{ shape {{ dim: 2 dim: 4 dim: 7 dim: 6 }} }} }}
layer {{ name: "c1" type: "Convolution" bottom: "d" top: "c1" param {{ lr_mult: 3 }}
         convolution_param {{ num_output: 4 kernel_size: 3 group: 2 bias_term: false
                              weight_filler {GAUSSIAN} }} }}
layer {{ name: "n1" type: "BN" bottom: "c1" top: "n1" {BN.replace("{}", "bn_mode: INFERENCE")} }}
layer {{ name: "r1" type: "ReLU" bottom: "n1" top: "n1" }}
layer {{ name: "u" type: "Deconvolution" bottom: "n1" top: "u"
         convolution_param {{ num_output: 6 kernel_size: 3 stride: 2 group: 2 {CONV} }} }}
layer {{ name: "n2" type: "BN" bottom: "u" top: "u" {BN.replace("{}", "bn_mode: INFERENCE")} }}
layer {{ name: "p" type: "Pooling" bottom: "u" top: "p" pooling_param {{ kernel_size: 2 stride: 2 }} }}
layer {{ name: "n3" type: "BN" bottom: "p" top: "p" {BN.replace("{}", "bn_mode: INFERENCE")} }}
layer {{ name: "c4" type: "Convolution" bottom: "p" top: "c4"
         convolution_param {{ num_output: 2 kernel_size: 1 {CONV} }} }}
layer {{ name: "n4" type: "BN" bottom: "c4" top: "n4" {BN.replace("{}", "bn_mode: INFERENCE")} }}
layer {{ name: "e" type: "Eltwise" bottom: "c4" bottom: "n4" top: "e" }}
layer {{ name: "c5" type: "Convolution" bottom: "e" top: "c5"
         convolution_param {{ num_output: 2 kernel_size: 1 {CONV} }} }}
layer {{ name: "n5" type: "BN" bottom: "c5" top: "n5" {BN.replace("{}", "")} }}
"""


def test_bn_goes_into_the_convolution_it_alone_reads() -> None:
    net = parse_net(MERGED)
    model = Net(net, seed=2).double()
    weights, x = model.weights(), batches(1, 2, 4, 7, 6)[0]
    merged = fold_into_convolutions(net, weights)
    assert merged.into == {"n1": "c1", "n2": "u"}
    assert merged.kept == {"n3": "it reads p, a Pooling", "n4": "e reads c4 too",
                           "n5": "it takes the batch's statistics"}  # fmt: skip
    assert [layer.name for layer in merged.net.layer] == [
        "d",
        "c1",
        "r1",
        "u",
        "p",
        "n3",
        "c4",
        "n4",
        "e",
        "c5",
        "n5",
    ]
    with torch.no_grad():
        (wanted,), (found,) = model(d=x).values(), loaded(merged.net, merged.weights)(d=x).values()
    assert worst_difference(found.numpy(), wanted.numpy())[0] < 1e-12
    assert len(net.layer) == 13 and "n1" in weights  # the originals are as they were


def test_rounding_in_float32_is_no_fault_of_the_merging() -> None:
    """Were these two nets compared in float32, 29 layers would make 1.1e-4 of it."""
    form, shapes = Form(32, fc=6, classes=3), {"data": (2, 3, 32, 32), "seg-label": (2, 1, 32, 32)}
    model = Net(make_net("deconvnet", "stage2", (32, 32), form), phase="TRAIN", seed=0, input_shapes=shapes)
    draw = torch.Generator().manual_seed(0)
    for blobs in model.params.values():
        if blobs[0].dim() == 4 and blobs[0].shape[0] > 1:
            torch.nn.init.normal_(blobs[0], std=0.4, generator=draw)
    weights = model.weights()
    assert weights.net is not None
    data = [50 * batch for batch in batches(3, 4, 3, 32, 32, seed=1100)]
    done = fold(deploy_form(weights.net, 32), weights, lambda number: {"data": data[number]}, 3, merge=True)
    assert done.report.worst is not None and done.report.worst < FOLDED


def test_what_cannot_be_folded_is_said() -> None:
    net = parse_net(TWO)
    weights = Net(net, seed=1).weights()
    with pytest.raises(InputError, match="2 BN layers in mode LEARN and no data; wanted --data or --arrays"):
        fold(net, weights, None, 1)
    with pytest.raises(NetError, match="no BN in mode LEARN; wanted one at least"):
        fold(inference_net(net), weights, None, 1)
    bad = weights.copy()
    bad["n1"] = weights["n2"]
    wanted = "layer n1: 1x2x1x1, 1x2x1x1; wanted a scale and a shift of 3 channels"
    with pytest.raises(WeightsError, match=wanted):
        fold_statistics(bad, {"n1": Statistics(np.zeros(3), np.ones(3), 9)})
    with pytest.raises(InputError, match="arrays: 4 of a, 5 of b; wanted as many items"):
        arrays_source({"a": np.zeros((4, 1)), "b": np.zeros((5, 1))}, 2, 9)
    with pytest.raises(InputError, match="arrays: 4 items; wanted a batch of 5"):
        arrays_source({"a": np.zeros((4, 1))}, 5, 9)


# ---- the command ----


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A narrow stage-2 net's caffemodel, its convolutions drawn."""
    net = make_net("deconvnet", "stage2", (32, 32), SMALL)
    shapes = {"data": (2, 3, 32, 32), "seg-label": (2, 1, 32, 32)}
    model = Net(net, phase="TRAIN", seed=5, input_shapes=shapes)
    for name, blobs in model.params.items():
        if blobs[0].dim() == 4 and blobs[0].shape[0] > 1:
            torch.nn.init.normal_(blobs[0], std=0.4, generator=torch.Generator().manual_seed(len(name)))
    weights = model.weights()
    write_weights(weights, tmp_path / "stage2.caffemodel", weights.net)
    return tmp_path / "stage2.caffemodel"


def crops(folder: Path) -> Path:
    """Six pictures with label maps and the list of stage 2's windows, as `fcn data deconvnet` has them."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(rng.integers(0, 3, (40, 50), np.uint8)).save(folder / f"{i}l.png")
        lines.append(f"/{i}.png /{i}l.png {i - 4} -2 {i + 30} 41")
    (folder / "stage_2_train_imgset").mkdir()
    (folder / "stage_2_train_imgset" / "train.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_the_command_folds_over_crops_and_arrays(trained: Path, tmp_path: Path) -> None:
    folder = crops(tmp_path)
    common = [str(trained), "--batches", "3", "--batch", "4", "--json"]
    done = run.invoke(
        cli,
        [
            "fold-bn",
            *common,
            "--data",
            str(folder),
            "--out",
            str(tmp_path / "a.caffemodel"),
            "--out-net",
            str(tmp_path / "a.prototxt"),
        ],
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["batches"], report["batch"], len(report["layers"]), report["worst"]) == (3, 4, 29, None)
    net = read_net(tmp_path / "a.prototxt")
    assert list(net.layer[0].input_param.shape[0].dim) == [1, 3, 32, 32]
    wanted = make_net("deconvnet", "deploy", (32, 32), SMALL)
    assert [x for x in net.layer if x.type == "BN"] == [x for x in wanted.layer if x.type == "BN"]
    x = batches(1, 1, 3, 32, 32)[0]
    out = Net(wanted, read_weights(tmp_path / "a.caffemodel"))(data=x)
    assert out["seg-score"].shape == (1, 3, 32, 32)

    np.save(tmp_path / "x.npy", batches(1, 13, 3, 32, 32)[0])
    again = run.invoke(cli, ["fold-bn", *common, "--arrays", str(tmp_path / "x.npy"), "--bessel",
                             "--into-convolutions", "--out", str(tmp_path / "b.safetensors")])  # fmt: skip
    assert again.exit_code == 0, again.output
    report = json.loads(again.stdout)
    assert (report["batches"], len(report["merged"]), report["kept"]) == (3, 29, {})
    assert report["worst"] < FOLDED and report["out_net"] == str(tmp_path / "b.prototxt")
    assert not any(x.type == "BN" for x in read_net(tmp_path / "b.prototxt").layer)
    assert not any("bn" in name for name in read_weights(tmp_path / "b.safetensors"))


def test_a_file_in_deconvnets_dialect_stays_in_it(tmp_path: Path) -> None:
    from test_dialects import BN_PARAM, DECONVNET

    learning = DECONVNET.replace(BN_PARAM, BN_PARAM[:-2] + b"\x18\x00")  # bn_mode LEARN
    (tmp_path / "a.caffemodel").write_bytes(learning)
    np.save(tmp_path / "x.npy", np.arange(64, dtype=np.float32).reshape(4, 1, 4, 4))
    done = run.invoke(cli, ["fold-bn", str(tmp_path / "a.caffemodel"), "--arrays", str(tmp_path / "x.npy"),
                            "--batch", "2", "--out", str(tmp_path / "b.caffemodel")])  # fmt: skip
    assert (
        done.exit_code == 0
        and "1 BN layers folded over 2 batches of 2 (variance not corrected" in done.stdout
    )
    written = (tmp_path / "b.caffemodel").read_bytes()
    assert len(written) == len(learning)
    changed = [i for i, (a, b) in enumerate(zip(written, learning, strict=True)) if a != b]
    assert len(changed) <= 8  # a float32 of scale and one of shift
    # conv makes 2 v + 0.5 of v: variance 4 * 1023 / 12 - hundredths, mean 2 * 15.5 + 0.5 and 2 * 47.5 + 0.5
    variance, mean = 4 * (32**2 - 1) / 12, (31.5 + 95.5) / 2
    scale, shift = (float(b.ravel()[0]) for b in read_weights(tmp_path / "b.caffemodel")["bn"])
    assert scale == pytest.approx(3 / variance**0.5, rel=1e-6)
    assert shift == pytest.approx(-1 - 3 * mean / variance**0.5, rel=1e-6)


def test_the_command_refuses_in_one_line(trained: Path, tmp_path: Path) -> None:
    def refused(*more: str) -> str:
        done = run.invoke(cli, ["fold-bn", str(trained), *more])
        assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
        return done.stderr

    out = ["--out", str(tmp_path / "b.caffemodel")]
    assert "29 BN layers in mode LEARN and no data" in refused(*out)
    assert "--data and --arrays; wanted one of them" in refused(*out, "--data", "d", "--arrays", "a.npy")
    assert "no such file" in refused(*out, "--arrays", str(tmp_path / "no.npy"))
    assert "it would be replaced" in refused("--out", str(trained), "--force")
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    for content in (b"no array", b""):
        (tmp_path / "bad.npy").write_bytes(content)
        assert "bad.npy: not a readable .npy" in refused(*out, "--arrays", str(tmp_path / "bad.npy"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.npy", "stage2.caffemodel"]
    bare = tmp_path / "w.npz"
    write_weights(read_weights(trained), bare)
    done = run.invoke(cli, ["fold-bn", str(bare), *out])
    assert done.exit_code == 2 and "no net definition in this format" in done.stderr


def test_nothing_learned_is_left_in_place() -> None:
    """`inference_net` and `deploy_form` leave what they are given alone."""
    net = make_net("deconvnet", "statistics")
    before = NetParameter()
    before.CopyFrom(net)
    assert deploy_form(net, 224).layer[0].type == "Input" and net == before
