"""docs/training.md: each command runs, on small data made here and in narrow widths, and its Python too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import Fcn, run_in
from made_data import make_camvid, make_nyud, make_sbd, make_voc
from made_weights import made_weights
from test_run_options import onnx_file

from caffe_weights.export import read_weights, write_weights
from reproduce.nets import Form, make_net
from reproduce.run_log import read_log

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "training.md").read_text()
FORM = Form(32, 8)
SMALL = ("--narrow", "32", "--fc", "8", "--workers", "0")
LENET = """
layer { name: "d" type: "DummyData" top: "data" top: "label" dummy_data_param {
  shape { dim: 4 dim: 3 } shape { dim: 4 }
  data_filler { type: "gaussian" } data_filler { type: "constant" } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }"""


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("") for line in block.splitlines() if line.startswith("fcn ")]
    return [shlex.split(line)[1:] for line in lines]


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    """A folder with what the page names."""
    torch.set_num_threads(1)
    make_sbd(tmp_path / "SBD")
    make_voc(tmp_path / "VOC2011", ("2007_000033", "2007_000042"), "seg11valid")
    make_camvid(tmp_path / "camvid", size=(24, 32))
    write_weights(made_weights("vgg16", FORM), tmp_path / "VGG16.caffemodel", make_net("vgg16", form=FORM))
    onnx_file(tmp_path / "vgg16.onnx")
    (tmp_path / "lenet.prototxt").write_text(LENET)
    (tmp_path / "lenet_solver.prototxt").write_text('net: "lenet.prototxt" base_lr: 0.1 lr_policy: "fixed"')
    return run_in(tmp_path, monkeypatch)


def shortened(command: list[str]) -> list[str]:
    """The command on a CPU, for two iterations; where it names a snapshot of a long run, the short one's."""
    short = [word.replace("cuda", "cpu").replace("tf32", "bf16") for word in command]
    short = [re.sub(r"train_iter_\d+", "train_iter_2", word) for word in short]
    if short[0] == "train":
        named = [] if "--solver" in short else list(SMALL)
        short += ["--iterations", "2", *named]
    return short + list(SMALL) if short[0] == "evaluate" else short


@pytest.mark.slow
def test_each_command_and_then_the_python(fcn: Fcn, tmp_path: Path) -> None:
    for command in commands():
        done = fcn(*shortened(command))
        allowed = (
            (0, 1) if command[:2] == ["data", "check"] else (0,)
        )  # the made set is not the published one
        assert done.exit_code in allowed, (command, done.stderr, done.exception)
        if "--out" in command:
            out = tmp_path / command[command.index("--out") + 1]
            assert [row["iteration"] for row in read_log(out / "log.jsonl") if "loss" in row] == [0, 1]
    assert len(commands()) > 9
    names: dict[str, Any] = {}
    examples = [re.sub(r"train_iter_\d+", "train_iter_2", code) for code in blocks("python")]
    assert len(examples) == 2 and all(len(code.strip().splitlines()) <= 22 for code in examples)
    exec(examples[0], names)
    tuned, before = read_weights("tuned.caffemodel"), read_weights(names["weights"])
    moved = {
        name for name in tuned if any((a != b).any() for a, b in zip(tuned[name], before[name], strict=True))
    }
    assert moved == {"score_fr", "score_pool4", "score_pool3"}
    assert np.isfinite(float(names["loss"].detach()))
    exec(examples[1], names)
    assert float(next(iter(names["module"].parameters())).detach().abs().max()) < 1


def test_the_python_of_the_page_on_data(fcn: Fcn, tmp_path: Path) -> None:
    make_nyud(tmp_path / "nyud")
    names: dict[str, Any] = {}
    for code in blocks("python", (DOCS / "data.md").read_text()):
        exec(code, names)
    assert {name: tuple(blob.shape) for name, blob in names["batch"].items()} == {
        "color": (1, 3, 5, 7), "hha": (1, 3, 5, 7), "label": (1, 1, 5, 7)}  # fmt: skip
    names["feed"].close()


def test_our_sgd_on_a_foreign_module_is_pytorchs() -> None:
    """At one rate both define the same: torch's own optimizer is the judge."""
    from reproduce.optimizers import SGD

    def module() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))

    ours, theirs = module(), module()
    settings: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
    pairs = [
        (ours, SGD(ours.parameters(), **settings)),
        (theirs, torch.optim.SGD(theirs.parameters(), **settings)),
    ]
    x, target = torch.randn(2, 3, 6, 6), torch.randint(0, 2, (2, 4, 4))
    for _ in range(10):
        for each, optimizer in pairs:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(each(x), target).backward()
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=2e-7)
