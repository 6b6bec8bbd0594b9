"""Snapshots: resumed is uninterrupted, moved and damaged files, what belongs together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from solver_nets import DROPOUT, LINEAR, assert_same, data, values

from caffe_weights.errors import InputError
from caffe_weights.prototxt import parse_net, parse_solver
from caffe_weights.solverstate import read_solverstate
from reproduce.snapshots import latest_snapshot
from reproduce.solver import Solver

SETTINGS = [
    'momentum: 0.9 weight_decay: 0.01 average_loss: 3 lr_policy: "multistep" gamma: 0.5 stepvalue: [2, 6]',
    'type: "Adam" momentum: 0.9 iter_size: 2 snapshot_format: HDF5',
    'type: "AdaDelta" momentum: 0.9',
]


def _solver(text: str, folder: Path, net: str = DROPOUT) -> Solver:
    rate = "" if "lr_policy" in text else 'lr_policy: "fixed" '
    solver = parse_solver(f'base_lr: 0.1 random_seed: 3 snapshot_prefix: "{folder}/s" {rate}' + text)
    solver.net_param.CopyFrom(parse_net(net))
    return Solver(solver)


@pytest.mark.parametrize("text", SETTINGS)
def test_resumed_is_uninterrupted_bit_for_bit(text: str, tmp_path: Path) -> None:
    whole = _solver(text, tmp_path)
    losses = [whole.step(whole.pull(data)) for _ in range(4)]
    path = whole.snapshot()
    losses = [whole.step(whole.pull(data)) for _ in range(5)]
    torch.manual_seed(99)
    resumed = _solver(text, tmp_path)
    resumed.restore(path)
    assert (resumed.iteration, latest_snapshot(tmp_path / "s")) == (4, path)
    assert [resumed.step(resumed.pull(data)) for _ in range(5)] == losses
    assert (resumed.smoothed_loss, resumed.passes) == (whole.smoothed_loss, whole.passes)
    assert_same(resumed, whole)


def test_snapshot_interval_and_solve(tmp_path: Path) -> None:
    solver = _solver("snapshot: 2 max_iter: 5", tmp_path / "made")
    solver.solve(data)
    states = sorted(path.name for path in (tmp_path / "made").glob("*.solverstate"))
    assert states == ["s_iter_2.solverstate", "s_iter_4.solverstate", "s_iter_5.solverstate"]
    assert latest_snapshot(tmp_path / "made" / "s") == tmp_path / "made" / "s_iter_5.solverstate"
    assert latest_snapshot(tmp_path / "made" / "t") is None
    assert latest_snapshot(tmp_path / "nowhere" / "t") is None
    assert read_solverstate(tmp_path / "made" / "s_iter_4.solverstate").iter == 4


def test_states_of_others_go_along(tmp_path: Path) -> None:
    class Counter:
        count = 0

        def state_dict(self) -> dict[str, int]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.count = state["count"]

    solver = _solver("", tmp_path)
    solver.states["data"] = Counter()
    solver.states["data"].count = 17
    path = solver.snapshot()
    resumed = _solver("", tmp_path)
    resumed.states["data"] = Counter()
    resumed.restore(path)
    assert resumed.states["data"].count == 17


def test_restore_of_a_moved_snapshot(tmp_path: Path) -> None:
    solver = _solver("", tmp_path / "before")
    solver.step(data(0))
    path = solver.snapshot()
    (tmp_path / "before").rename(tmp_path / "after")
    resumed = _solver("", tmp_path)
    resumed.restore(tmp_path / "after" / path.name)
    assert_same(resumed, solver)


def test_random_state_of_another_run_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    solver = _solver("", tmp_path)
    path = solver.snapshot()
    solver.step(data(0))
    other = solver.snapshot()
    other.with_suffix(".resume.pt").replace(path.with_suffix(".resume.pt"))
    solver.restore(path)
    assert "no random state and data position" in caplog.text
    assert (solver.iteration, solver.passes) == (0, 0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "s_iter_1.caffemodel").unlink(),
            r"s_iter_1.caffemodel are missing; wanted",
        ),
        (lambda folder: (folder / "s_iter_1.resume.pt").write_bytes(b"PK junk"), r"resume.pt: damaged"),
        (lambda folder: (folder / "s_iter_1.solverstate").unlink(), r"solverstate: no such file"),
        (lambda folder: _cut(folder / "s_iter_1.caffemodel"), r"caffemodel: byte"),
    ],
)
def test_damaged_snapshot(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    solver = _solver("", tmp_path)
    solver.step(data(0))
    path = solver.snapshot()
    damage(tmp_path)
    before = values(solver)
    with pytest.raises(InputError, match=message) as caught:
        solver.restore(path)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(before["ip2"][0], values(solver)["ip2"][0])


def test_snapshot_of_another_solver(tmp_path: Path) -> None:
    path = _solver("", tmp_path).snapshot()
    with pytest.raises(InputError, match="a history of 7 blobs; wanted 14, of Adam with 7 parameters"):
        _solver('type: "Adam"', tmp_path).restore(path)
    with pytest.raises(InputError, match="a history of 7 blobs; wanted 2, of SGD"):
        _solver("", tmp_path, LINEAR).restore(path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])
