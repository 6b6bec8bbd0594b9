"""The training benchmarks run and judge themselves rightly at a small size; timings are not looked at."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import digits  # noqa: E402
import training  # noqa: E402

from reproduce.nets import Form  # noqa: E402

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
SMALL = Form(16, fc=12)


@LINUX
@pytest.mark.slow
def test_training_is_measured_next_to_the_usual_port() -> None:
    words = ["--nets", "voc-fcn32s", "--ways", "usual", "ours", "--size", "40x50", "--narrow", "16",
             "--repeats", "1", "--turns", "1", "--threads", "1"]  # fmt: skip
    result = training.run(training.parse(words))
    net = result["nets"]["voc-fcn32s"]
    assert net["compare"]["size"] == "40x50" and net["compare"]["loss"] < 1e-5
    assert net["judge"]["ours_float64"]["worst_gradient"] < 1e-9
    assert set(net["ways"]) == {"usual", "ours"}
    assert net["ways"]["ours"]["peak_mb"] > 50
    assert {"usual_over_ours", "memory_ours_over_usual"} <= set(net)
    assert result["size"] == "40x50"


@pytest.mark.parametrize("name", training.NETS)
def test_loss_and_gradients_of_both_are_the_same(name: str) -> None:
    found = training.compare(name, (40, 50), SMALL, "cpu")
    assert found["loss"] < 1e-6
    assert found["median_gradient"] < 1e-5
    assert found["worst_gradient"] < 1e-3
    judged = training.judge(name, SMALL, "cpu")
    assert judged["ours_float64"]["worst_gradient"] < 1e-12


def test_another_gradient_is_no_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.gradients

    def wrong(way: str, *rest: Any) -> tuple[float, training.Gradients]:
        loss, found = real(way, *rest)
        if way == "ours":
            bias = found["conv1_1"][1]
            assert bias is not None
            bias.view(-1)[0] += 1e-6 * bias.abs().max()
        return loss, found

    monkeypatch.setattr(training, "gradients", wrong)
    with pytest.raises(AssertionError, match="apart in float64"):
        training.judge("voc-fcn32s", SMALL, "cpu")


def test_the_solver_leaves_large_gradients_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reproduce.layers.product.LARGE_WEIGHTS", 12 * 12)
    solver = training.make_solver("ours", "voc-fcn32s", (40, 50), SMALL, "cpu")
    (first, *_), (large, *_) = solver.net.params["conv1_1"], solver.net.params["fc6"]
    without: list[bool] = []
    first.register_post_accumulate_grad_hook(lambda _: without.append(large.grad is None))
    solver.step({"data": training.picture((40, 50)), "label": training.truth((40, 50))})
    assert without == [True]
    assert large.grad is not None and large.grad.any()


@pytest.mark.parametrize("way", training.WAYS)
def test_every_way_trains_by_the_published_solver(way: str) -> None:
    torch.manual_seed(0)
    step = training.make_step(way, "voc-fcn16s", (40, 50), SMALL, "cpu")
    first, second = step(), step()
    assert 0 < first < 40 * 50 * 87
    assert first != second  # Dropout, and an update


def test_a_missed_limit_of_time_or_memory_is_named() -> None:
    good = {"usual_over_ours": 1.3, "memory_ours_over_usual": 0.8}
    assert training.missed({"nets": {"voc-fcn8s": good}}) == []
    bad = {"usual_over_ours": 1.2, "memory_ours_over_usual": 0.9}
    assert training.missed({"nets": {"voc-fcn8s": bad}}) == [
        "voc-fcn8s: 1.2 times faster, limit 1.3", "voc-fcn8s: 0.9 of the memory, limit 0.8",
    ]  # fmt: skip


def test_ratios_are_those_of_the_chosen_clock() -> None:
    def one(wall: float, cpu: float, peak: int) -> dict[str, object]:
        return {"wall_seconds": {"median_ms": wall}, "cpu_seconds": {"median_ms": cpu}, "peak_mb": peak}

    ways = {"usual": one(90, 160, 1000), "ours": one(60, 80, 700)}
    assert training.ratios(ways, "wall_seconds") == {"usual_over_ours": 1.5, "memory_ours_over_usual": 0.7}
    assert training.ratios(ways, "cpu_seconds")["usual_over_ours"] == 2.0


def test_the_classifier_is_vgg16_to_the_fcns(tmp_path: Path) -> None:
    digits.write_classifier(tmp_path, tmp_path / "data", seed=5, iterations=7)
    from caffe_weights.upgrade import load_net, load_solver
    from reproduce.recognition import layer_names

    net, solver = load_net(tmp_path / "train.prototxt"), load_solver(tmp_path / "solver.prototxt")
    weighted = {layer.name for layer in net.layer if layer.type == "Convolution"}
    assert weighted == layer_names("vgg16")
    assert (solver.type, solver.max_iter, solver.random_seed) == ("Adam", 7, 5)
    fillers = {layer.name: layer.convolution_param.weight_filler.type for layer in net.layer}
    assert (fillers["conv3_2"], fillers["fc8"]) == ("msra", "constant")
    assert "'seed': 5" in net.layer[0].python_param.param_str


def result(found: float, wall: float, cpu: float) -> dict[str, object]:
    stages = {"voc-fcn8s": {"test": {"mean_iu": found}}}
    return {"seeds": [{"seed": 1, "wall_seconds": wall, "cpu_seconds": cpu, "stages": stages}]}


def test_digits_are_judged_by_mean_iu_and_seconds() -> None:
    assert digits.missed(result(0.81, 500, 900)) == []  # on two cores
    assert digits.missed(result(0.81, 2000, 590)) == []  # on a machine that others used
    assert digits.missed(result(0.79, 700, 650)) == [
        "seed 1: mean IU 0.79, limit 0.8", "seed 1: 650 seconds, limit 600",
    ]  # fmt: skip


def test_curves_are_drawn_stage_after_stage(tmp_path: Path) -> None:
    from PIL import Image

    one = {"iterations": 40, "cpu_seconds": 9.0, "loss": [[0, 2.3], [20, 1.0]], "mean_iu": [[20, 0.1]]}
    seed = {"seed": 1, "stages": dict.fromkeys(("classifier", *digits.NETS), one)}
    digits.draw({"seeds": [seed, seed]}, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width > 600


def test_committed_results_are_what_the_scripts_write() -> None:
    for name, keys in {"digits": {"seeds", "missed"}, "training": {"nets", "missed"}}.items():
        path = ROOT / f"reproduce/published/results/{name}.json"
        if path.exists():
            assert keys <= set(json.loads(path.read_text()))


def test_the_page_of_digits_says_what_was_measured() -> None:
    result = json.loads((ROOT / "reproduce/published/results/digits.json").read_text())
    page = (ROOT / "docs/digits.md").read_text()
    for seed in result["seeds"]:
        found = [seed["stages"][name]["test"]["mean_iu"] for name in digits.NETS]
        row = " | ".join(f"{value:.3f}" for value in found)
        assert f"| {seed['seed']} | {row} | {seed['cpu_seconds']:.0f} |" in page
    assert f"--iterations {seed['stages'][digits.NETS[0]]['iterations']}" in page
