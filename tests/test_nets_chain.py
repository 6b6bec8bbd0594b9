"""`fcn start`: from a classifier to 8s, step by step, and what is refused.

What must be equal is stated without the code under test: blobs of Caffe's data flow for the same picture,
weights by name, the two-step interpolation as numpy convolutions. The goldens' surgery (a classifier's
InnerProducts as convolutions) is Caffe's own word on the first step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_weights import NARROW, made_weights

from caffe_weights.errors import WeightsError
from caffe_weights.export import read_weights, write_weights
from caffe_weights.prototxt import read_net
from caffe_weights.weights import Weights
from reproduce.cli import cli
from reproduce.net import Net
from reproduce.nets import NETS, Form, find, make_net
from reproduce.start_check import check_start
from reproduce.starting import Start, start
from reproduce.tolerances import FULL, worst_difference
from surgery.interpolation import bilinear_kernel
from surgery.shapes import infer_shapes

CHAINS = [name for name, entry in NETS.items() if entry.starts_from]
PICTURE = np.random.default_rng(3).uniform(-120, 130, (1, 3, 70, 53)).astype(np.float32)


def sources_of(name: str) -> list[Weights]:
    return [made_weights(other, seed=i) for i, other in enumerate(find(name).starts_from)]


def blobs_of(
    name: str, weights: Weights, keep: list[str], form: Form = NARROW, **inputs: Any
) -> dict[str, Any]:
    net = Net(make_net(name, size=PICTURE.shape[2:], form=form), weights)
    with torch.no_grad():
        return {k: v.numpy() for k, v in net(keep=keep, **(inputs or {"data": PICTURE})).items()}


@pytest.mark.parametrize("name", CHAINS)
def test_every_net_starts_from_its_predecessor(name: str) -> None:
    sources = sources_of(name)
    made = start(name, sources, NARROW)
    checks = check_start(made, sources)
    assert checks and all(check.good for check in checks)
    layers = infer_shapes(make_net(name, form=NARROW)).layers
    wanted = {key: list(layer.params) for key, layer in layers.items() if layer.params}
    assert {k: [b.shape for b in blobs] for k, blobs in made.weights.items()} == wanted
    for key in made.report.new:
        layer, blob = key.rsplit(".", 1)
        if layer.startswith("score"):
            assert not made.weights[layer][blob == "bias"].any()


def test_16s_has_the_scores_of_32s_and_interpolates_them_in_two_steps() -> None:
    """The coarse scores are equal; pixel scores are those of upscore2 then upscore16, not of upscore."""
    source = made_weights("voc-fcn32s")
    made = start("voc-fcn16s", [source], NARROW)
    old = blobs_of("voc-fcn32s", source, ["score_fr", "score"])
    new = blobs_of("voc-fcn16s", made.weights, ["score_fr", "fuse_pool4", "score"])
    assert np.array_equal(old["score_fr"], new["score_fr"])
    for channel in (0, 7, 20):
        coarse = old["score_fr"][0, channel]
        doubled = spread(coarse, bilinear_kernel(4), 2)
        assert np.abs(doubled - new["fuse_pool4"][0, channel]).max() <= 1e-5 * np.abs(doubled).max()
        fine = spread(doubled, bilinear_kernel(32), 16)[27:, 27:][:70, :53]
        assert np.abs(fine - new["score"][0, channel]).max() <= 1e-5 * np.abs(fine).max()
    assert worst_difference(new["score"], old["score"], channels=False)[0] > 0.01


def test_two_steps_and_one_agree_where_scores_are_affine_and_with_odd_kernels_always() -> None:
    ramp = np.add.outer(np.arange(8) * 2.0, np.arange(8) * -3.0)
    inside = slice(96, 160)
    one, two = steps(ramp, 64, 4, 32)
    assert np.allclose(one[inside, inside], two[inside, inside])
    rough = np.random.default_rng(0).normal(size=(5, 6))
    one, two = steps(rough, 64, 4, 32)
    assert np.abs(one - two).max() > 0.01
    one, two = steps(rough, 63, 3, 31)
    assert np.allclose(one, two)


def steps(coarse: np.ndarray, whole: int, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """By one kernel of stride 32 and by two of 2 and 16, on one grid."""
    one = spread(coarse, bilinear_kernel(whole), 32)
    two = spread(spread(coarse, bilinear_kernel(first), 2), bilinear_kernel(second), 16)
    before = ((first - 1) / 2 * 16 + (second - 1) / 2) - (whole - 1) / 2
    at = int(before)
    assert at == before
    low, high = max(0, at), max(0, -at)
    two, one = two[low:, low:], one[high:, high:]
    size = min(one.shape[0], two.shape[0]), min(one.shape[1], two.shape[1])
    return one[: size[0], : size[1]], two[: size[0], : size[1]]


def spread(coarse: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """A transposed convolution, pixel by pixel."""
    k = len(kernel)
    fine = np.zeros([stride * (n - 1) + k for n in coarse.shape])
    for (y, x), value in np.ndenumerate(coarse):
        fine[y * stride : y * stride + k, x * stride : x * stride + k] += value * kernel
    return fine


@pytest.mark.parametrize("stem", ["vgg16", "caffenet"])
def test_caffes_classifier_becomes_the_trunk(stem: str, own_goldens: Path) -> None:
    """The golden classifier's weights in the FCN, at the classifier's size: Caffe's own features."""
    weights = read_weights(own_goldens / "nets" / f"{stem}.caffemodel.gz")
    name = {"vgg16": "voc-fcn32s", "caffenet": "voc-fcn-alexnet"}[stem]
    made = start(name, [weights], Form(16, fc=256))
    full = read_net(own_goldens / "nets" / f"{stem}-fullconv.prototxt")
    cut = Weights({**{k: v for k, v in made.weights.items() if "score" not in k}, "fc8": weights["fc8"]})
    cut["fc8"] = [cut["fc8"][0].reshape(100, 256, 1, 1), cut["fc8"][1]]
    stored = np.load(own_goldens / "nets" / f"{stem}-fullconv.npz")
    with torch.no_grad():
        got = Net(full, cut)(keep=["fc8"], data=stored["in/data_large"])["fc8"].numpy()
    assert worst_difference(got, stored["out/conv_fc8_large"])[0] <= FULL


def test_color_and_depth() -> None:
    source = made_weights("vgg16")
    made = start("nyud-fcn32s-color-d", [source], NARROW)
    wide, narrow = made.weights["conv1_1_bgrd"][0], source["conv1_1"][0]
    assert np.array_equal(wide[:, :3], narrow)
    assert np.allclose(wide[:, 3], narrow.astype(np.float64).mean(1), rtol=1e-6)
    assert np.array_equal(made.weights["conv1_1_bgrd"][1], source["conv1_1"][1])
    assert made.report.changed == {
        "conv1_1_bgrd.weight": "conv1_1, and as the fourth channel the mean of its three"
    }


def test_two_streams_are_averaged() -> None:
    sources = sources_of("nyud-fcn32s-color-hha")
    made = start("nyud-fcn32s-color-hha", sources, NARROW)
    other = -PICTURE[:, ::-1].copy()
    got = blobs_of("nyud-fcn32s-color-hha", made.weights, ["score"], color=PICTURE, hha=other)["score"]
    color = blobs_of("nyud-fcn32s-color", sources[0], ["score"])["score"]
    hha = blobs_of("nyud-fcn32s-hha", sources[1], ["score"], data=other)["score"]
    assert worst_difference(got, (color + hha) / 2)[0] <= FULL


def test_more_classes() -> None:
    few = made_weights("voc-fcn32s", Form(16, fc=12, classes=6))
    made = start("voc-fcn16s", [few], NARROW, expand=True)
    assert made.report.changed["score_fr.weight"] == "6 classes kept, 15 new ones zero"
    weight, bias = made.weights["score_fr"]
    assert np.array_equal(weight[:6], few["score_fr"][0]) and not weight[6:].any() and not bias[6:].any()
    assert all(check.good for check in check_start(made, [few]))
    itself = start("voc-fcn32s", [few], NARROW, expand=True)
    assert itself.report.predecessors == ("voc-fcn32s",)
    old = blobs_of("voc-fcn32s", few, ["score"], Form(16, fc=12, classes=6))["score"]
    new = blobs_of("voc-fcn32s", itself.weights, ["score"])["score"]
    assert worst_difference(new[:, :6], old)[0] <= FULL and not new[:, 6:].any()


def test_interpolation_that_never_learns_is_bilinear_whatever_the_source() -> None:
    source = made_weights("voc-fcn16s")
    source["upscore2"] = [np.zeros_like(source["upscore2"][0])]
    fixed = start("voc-fcn8s", [source], NARROW)
    assert fixed.report.notes == [
        "upscore2.weight: not bilinear in the predecessor; replaced, as this net never learns it"
    ]
    assert np.array_equal(fixed.weights["upscore2"][0][4, 4], bilinear_kernel(4).astype(np.float32))
    assert not all(check.good for check in check_start(fixed, [source]))
    learned = start("voc-fcn8s-learned", [source], NARROW)
    assert not learned.weights["upscore2"][0].any()


def test_a_v1_style_classifier_with_blobs_of_four_axes(tmp_path: Path) -> None:
    source = made_weights("vgg16")
    source["fc7"] = [source["fc7"][0].reshape(1, 1, 12, 12), source["fc7"][1].reshape(1, 1, 1, 12)]
    made = start("voc-fcn32s", [source], NARROW)
    assert made.weights["fc7"][0].shape == (12, 12, 1, 1) and made.weights["fc7"][1].shape == (12,)


def _without(name: str, layer: str) -> Weights:
    weights = made_weights(name)
    del weights[layer]
    return weights


def _with(name: str, layer: str, *shapes: tuple[int, ...]) -> Weights:
    weights = made_weights(name)
    weights[layer] = [np.zeros(shape, np.float32) for shape in shapes]
    return weights


@pytest.mark.parametrize(
    ("name", "sources", "message"),
    [
        ("vgg16", [], "net vgg16: a classifier, which starts from nothing"),
        ("deconvnet", [], "net deconvnet: a net that fcn train --recipe deconvnet starts by itself"),
        ("voc-fcn8s", [], "net voc-fcn8s: 0 weight files; wanted 1: voc-fcn16s"),
        ("nyud-fcn32s-color-hha", [made_weights("nyud-fcn32s-color")],
         "1 weight files; wanted 2: nyud-fcn32s-color and then nyud-fcn32s-hha"),
        ("voc-fcn16s", [made_weights("vgg16")],
         "the weights of vgg16; wanted those of voc-fcn32s, which voc-fcn16s starts from; make"),
        ("voc-fcn8s", [made_weights("voc-fcn32s")], "the weights of voc-fcn32s; wanted those of voc-fcn16s"),
        ("voc-fcn8s", [made_weights("voc-fcn8s")], "pass --expand-score if it has fewer classes"),
        ("voc-fcn32s", [made_weights("caffenet")], "wanted those of vgg16, which voc-fcn32s starts from"),
        ("voc-fcn-alexnet", [made_weights("alexnet")], "the weights of alexnet, as its definition says"),
        ("voc-fcn32s", [_without("vgg16", "conv3_2")],
         "layer conv3_2: not in the file; wanted all layers of vgg16"),
        ("voc-fcn32s", [_with("vgg16", "extra", (3,))], "layer extra: no layer of vgg16"),
        ("voc-fcn16s", [made_weights("pascalcontext-fcn32s")],
         "layer score_fr: 60 classes; wanted 21; pass --classes 60"),
        ("pascalcontext-fcn16s", [made_weights("voc-fcn32s")],
         "layer score_fr: 21 classes; wanted 60; pass --classes 21, or --expand-score"),
        ("voc-fcn32s", [_with("vgg16", "fc6", (12, 1500), (12,))],
         "layer fc6: shape 12x1500; wanted 12x1568, as in vgg16"),
        ("voc-fcn32s", [_with("vgg16", "conv1_2", (4, 4, 1, 9), (4,))],
         "layer conv1_2: shape 4x4x1x9; wanted 4x4x3x3, as in vgg16"),
        ("voc-fcn32s", [made_weights("vgg16", Form(32, fc=12))], "blob conv1_1.weight: shape 2x3x3x3"),
        ("nyud-fcn32s-color-hha", [made_weights("nyud-fcn32s-hha"), made_weights("nyud-fcn32s-color")],
         "the weights of nyud-fcn32s-hha, as its data layer says; wanted those of nyud-fcn32s-color"),
    ],
)  # fmt: skip
def test_errors(name: str, sources: list[Weights], message: str) -> None:
    with pytest.raises(WeightsError) as error:
        start(name, sources, NARROW)
    assert message in str(error.value)


def test_fewer_classes_are_never_cut_off() -> None:
    with pytest.raises(WeightsError, match="layer score_fr: 21 classes; wanted 6; pass --classes 21"):
        start("voc-fcn16s", [made_weights("voc-fcn32s")], Form(16, fc=12, classes=6), expand=True)


def test_the_command(tmp_path: Path) -> None:
    paths = {name: str(tmp_path / f"{name}.caffemodel") for name in ("vgg", "32s", "16s")}
    vgg = made_weights("vgg16")
    write_weights(vgg, paths["vgg"], vgg.net)
    narrow = ["--narrow", "16", "--fc", "12"]
    run = CliRunner()
    first = ["start", "voc-fcn32s", "--from", paths["vgg"], "--out", paths["32s"], *narrow]
    result = run.invoke(cli, first)
    assert result.exit_code == 0, result.output
    assert "coerced  fc6.weight: 12x1568 to 12x32x7x7" in result.stdout
    assert "new      score_fr.weight: zero" in result.stdout and "wrote" in result.stderr
    again = run.invoke(cli, first)
    assert again.exit_code == 2 and "the file exists" in again.stderr
    result = run.invoke(
        cli, ["start", "voc-fcn16s", "--from", paths["32s"], "--out", paths["16s"], *narrow, "--json"]
    )
    report = json.loads(result.stdout)
    assert report["predecessors"] == ["voc-fcn32s"] and report["dropped"] == ["upscore.weight"]
    assert [check["good"] for check in report["checks"]] == [True] * 3
    assert "this says nothing" in report["checks"][0]["what"]
    saved = read_weights(paths["16s"])
    assert saved.net is not None and saved.net.layer[0].python_param.module == "voc_layers"
    onto = run.invoke(cli, ["start", "voc-fcn16s", "--from", paths["32s"], "--out", paths["32s"], "--force"])
    assert onto.exit_code == 2 and "the source itself would be replaced" in onto.stderr


def test_a_failed_check_writes_nothing(tmp_path: Path) -> None:
    source = made_weights("voc-fcn16s")
    source["upscore2"] = [source["upscore2"][0] * 2]
    write_weights(source, tmp_path / "16s.caffemodel", source.net)
    arguments = ["start", "voc-fcn8s", "--from", str(tmp_path / "16s.caffemodel"), "--out",
                 str(tmp_path / "8s.npz"), "--narrow", "16", "--fc", "12"]  # fmt: skip
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1 and "check failed" in result.stderr
    assert not (tmp_path / "8s.npz").exists()
    assert CliRunner().invoke(cli, [*arguments, "--no-check"]).exit_code == 0
    assert (tmp_path / "8s.npz").exists()


@pytest.mark.slow
def test_the_chain_at_full_width(tmp_path: Path) -> None:
    """VGG16 with InnerProducts, 138 million values, to 32s, 16s and 8s; score layers get values between."""
    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    weights = made_weights("vgg16", Form())
    for name in ("voc-fcn32s", "voc-fcn16s", "voc-fcn8s"):
        made: Start = start(name, [weights])
        checks = check_start(made, [weights])
        assert all(check.good for check in checks), list(map(str, checks))
        weights = made.weights
        for layer in [x for x in weights if x.startswith("score") and not weights[x][0].any()]:
            weights[layer] = [rng.normal(0, 0.01, blob.shape).astype(np.float32) for blob in weights[layer]]
    assert weights.count() == 134_489_759
