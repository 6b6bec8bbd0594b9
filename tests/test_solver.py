"""The solver: steps worked out in numpy, accumulation, test nets, snapshots, bad solvers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caffe_weights.errors import InputError
from caffe_weights.prototxt import parse_net, parse_solver
from caffe_weights.solverstate import read_solverstate
from caffe_weights.weights import Weights
from reproduce.snapshots import latest_snapshot
from reproduce.solver import Batch, Solver

LINEAR = """
name: "linear"
layer { name: "data" type: "Input" top: "data" top: "target"
  input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 0.5 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "target" top: "loss" }
"""
DROPOUT = """
layer { name: "data" type: "Input" top: "data" top: "target"
  input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } } }
layer { name: "ip1" type: "InnerProduct" bottom: "data" top: "ip1"
  inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "ip1" top: "bn" }
layer { name: "drop" type: "Dropout" bottom: "bn" top: "bn" }
layer { name: "ip2" type: "InnerProduct" bottom: "bn" top: "ip2"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip2" bottom: "target" top: "loss" }
"""
RATE = 'base_lr: 0.125 lr_policy: "fixed" random_seed: 3 '


def make(text: str, net: str = LINEAR, **options: Any) -> Solver:
    solver = parse_solver(RATE + text)
    if not any(solver.HasField(name) for name in ("net", "net_param", "train_net", "train_net_param")):
        solver.net_param.CopyFrom(parse_net(net))
    return Solver(solver, **options)


def linear_data(number: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(number)
    return {"data": draw.normal(size=(4, 3)), "target": draw.normal(size=(4, 2))}


def values(solver: Solver) -> dict[str, list[np.ndarray]]:
    return {name: [p.detach().numpy().copy() for p in ps] for name, ps in solver.net.params.items()}


def assert_same(one: Solver, other: Solver) -> None:
    for name, arrays in values(one).items():
        for a, b in zip(arrays, values(other)[name], strict=True):
            np.testing.assert_array_equal(a, b)


# ---- steps ----


def test_step_is_the_analytic_least_squares_step() -> None:
    solver = make("momentum: 0.75 weight_decay: 0.0078125")  # numbers that float32 holds
    solver.net.double()
    (w, b), velocity = values(solver)["ip"], [0.0, 0.0]
    for number in range(5):
        batch = linear_data(number)
        apart = batch["data"] @ w.T + b - batch["target"]
        loss = solver.step(batch)
        assert loss == pytest.approx((apart**2).sum() / 2 / 4, rel=1e-12)
        velocity[0] = 0.75 * velocity[0] + 0.125 * (apart.T @ batch["data"] / 4 + 0.0078125 * w)
        velocity[1] = 0.75 * velocity[1] + 0.25 * apart.sum(0) / 4  # lr_mult 2, no decay
        w, b = w - velocity[0], b - velocity[1]
        np.testing.assert_allclose(values(solver)["ip"][0], w, 1e-12)
        np.testing.assert_allclose(values(solver)["ip"][1], b, 1e-12)
    assert (solver.iteration, solver.passes) == (5, 5)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdaDelta"])
def test_accumulation_is_the_large_batch(kind: str) -> None:
    settings = f'type: "{kind}" momentum: 0.9 weight_decay: 0.01'
    one, parts = make(settings), make(settings + " iter_size: 3")
    one.net.double(), parts.net.double()
    for number in range(4):
        batches = [linear_data(number * 3 + i) for i in range(3)]
        whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        assert parts.step(batches) == pytest.approx(one.step(whole), rel=1e-12)
    for a, b in zip(values(one)["ip"], values(parts)["ip"], strict=True):
        np.testing.assert_allclose(a, b, 1e-10)
    assert parts.passes == 12


def test_multiplier_0_never_moves_but_keeps_its_history() -> None:
    net = LINEAR.replace("param { lr_mult: 1 }", "param { lr_mult: 0 }")
    solver = make('type: "Adam" momentum: 0.9 weight_decay: 0.1', net)
    before = values(solver)["ip"]
    for number in range(3):
        solver.step(linear_data(number))
    after = values(solver)["ip"]
    np.testing.assert_array_equal(before[0], after[0])
    assert (before[1] != after[1]).all()
    mean = solver.optimizer.state[solver.net.params["ip"][0]]["history"]
    # the decay alone: 0.1 w, three times into an average of 0.9
    np.testing.assert_allclose(mean.numpy(), 0.1 * before[0] * (1 - 0.9**3), rtol=1e-6)


def test_statistics_are_not_trained() -> None:
    solver = make("weight_decay: 0.1", DROPOUT)
    batch = linear_data(0)
    before = values(solver)["ip1"]
    ip1 = batch["data"] @ before[0].T + before[1]
    solver.step(batch)
    mean, _, factor = values(solver)["bn"]
    np.testing.assert_allclose(mean, ip1.mean(0), rtol=1e-5, atol=1e-6)
    assert factor == 1.0


def test_smoothed_loss_is_the_mean_of_the_last_losses() -> None:
    solver = make("average_loss: 3")
    losses = []
    for number in range(8):
        losses.append(solver.step(linear_data(number)))
        assert solver.smoothed_loss == pytest.approx(np.mean(losses[-3:]), rel=1e-12)


def test_display(caplog: pytest.LogCaptureFixture) -> None:
    solver = make("display: 2")
    with caplog.at_level(logging.INFO, "reproduce.solver"):
        losses = [solver.step(linear_data(number)) for number in range(4)]
    shown = [re.sub(r" \(.*?\)", "", message) for message in caplog.messages]
    assert shown == [f"Iteration 0, loss = {losses[0]:.6g}", "Iteration 0, lr = 0.125",
                     f"Iteration 2, loss = {losses[2]:.6g}", "Iteration 2, lr = 0.125"]  # fmt: skip


def test_seed_decides_the_start() -> None:
    assert_same(make(""), make(""))
    other = parse_solver('base_lr: 1 lr_policy: "fixed" random_seed: 4')
    other.net_param.CopyFrom(parse_net(LINEAR))
    assert (values(Solver(other))["ip"][0] != values(make(""))["ip"][0]).any()


def test_net_without_inputs_needs_no_batch() -> None:
    data = 'layer { name: "d" type: "DummyData" top: "data" top: "target" dummy_data_param {' + (
        ' shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } data_filler { type: "constant" value: 1 } } }'
    )
    solver = make("iter_size: 2", data + LINEAR[LINEAR.index('layer { name: "ip"') :])
    losses = [solver.step() for _ in range(20)]
    assert losses[-1] < 0.01 * losses[0]


# ---- files and nets ----


def test_files_are_found_beside_the_solver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "net.prototxt").write_text(LINEAR)
    (folder / "solver.prototxt").write_text(RATE + 'net: "net.prototxt"')
    (tmp_path / "s.prototxt").write_text(RATE + 'net: "model/net.prototxt" type: "Adam"')
    for place in (tmp_path, folder):
        monkeypatch.chdir(place)
        Solver.from_prototxt(folder / "solver.prototxt").step(linear_data(0))
    monkeypatch.chdir(tmp_path)
    assert Solver.from_prototxt("s.prototxt").param.type == "Adam"


def test_weights_by_layer_name() -> None:
    w, b = np.ones((2, 3), np.float32), np.ones(2, np.float32)
    solver = make("", weights=Weights({"ip": [w, b], "elsewhere": [b]}))
    np.testing.assert_array_equal(values(solver)["ip"][0], w)
    with pytest.raises(InputError, match="none of the net's layers ip; wanted at least one"):
        make("", weights=Weights({"fc": [w, b]}))
    with pytest.raises(InputError, match="layer ip: weight: shape 3x3; wanted 2x3"):
        make("", weights=Weights({"ip": [np.ones((3, 3), np.float32), b]}))


def test_states_merge_by_caffes_precedence() -> None:
    # the phase is the solver's, the net's own state counts more, train_state most; stages add up
    only = "\n".join(
        f'layer {{ name: "{name}" type: "Silence" bottom: "data" include {{ {rule} }} }}'
        for name, rule in {"train": "phase: TRAIN", "test": "phase: TEST", "both": 'stage: "a" stage: "b"',
                           "level": "min_level: 2", "third": 'stage: "c"'}.items()
    )  # fmt: skip
    net = 'state { level: 1 stage: "a" }' + LINEAR + only
    solver = make('train_state { level: 2 stage: "b" } test_iter: 1 test_interval: 5 '
                  'test_state { stage: "c" }', net)  # fmt: skip

    def kept(part: Any) -> set[str]:
        return {layer.name for layer in part.definition.layer if layer.type == "Silence"}

    assert kept(solver.net) == {"train", "both", "level"}
    assert kept(solver.test_nets[0]) == {"test", "third"}
    assert (solver.net.phase, solver.test_nets[0].phase) == ("TRAIN", "TEST")


def test_test_nets_share_weights_and_average(caplog: pytest.LogCaptureFixture) -> None:
    solver = make("test_iter: 3 test_interval: 2 test_compute_loss: true")
    assert solver.test_nets[0].params["ip"][0] is solver.net.params["ip"][0]
    solver.test_data = [lambda number: linear_data(100 + number)]
    with caplog.at_level(logging.INFO, "reproduce.solver"):
        for number in range(3):
            solver.step(linear_data(number))
    w, b = values(solver)["ip"]
    losses = [
        (((d := linear_data(100 + i))["data"] @ w.T + b - d["target"]) ** 2).sum() / 8 for i in range(3)
    ]
    found = solver.test(0, solver.test_data[0])
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert found["total_loss"] == found["loss"]
    tests = [message for message in caplog.messages if "Testing" in message]
    assert tests == ["Iteration 0, Testing net (#0)", "Iteration 2, Testing net (#0)"]


def test_test_initialization_false(caplog: pytest.LogCaptureFixture) -> None:
    solver = make("test_iter: 1 test_interval: 1 test_initialization: false")
    solver.test_data = [linear_data]
    with caplog.at_level(logging.INFO, "reproduce.solver"):
        for number in range(3):
            solver.step(linear_data(number))
    tests = [message for message in caplog.messages if "Testing" in message]
    assert tests == ["Iteration 1, Testing net (#0)", "Iteration 2, Testing net (#0)"]


def test_order_of_test_nets() -> None:
    text = "test_iter: 1 test_iter: 2 test_iter: 3 test_interval: 1 "
    solver = parse_solver(RATE + text)
    for name in ("net_param", "test_net_param"):
        net = parse_net(LINEAR.replace('"linear"', f'"{name}"'))
        (solver.net_param if name == "net_param" else solver.test_net_param.add()).CopyFrom(net)
    nets = Solver(solver).test_nets
    assert [net.definition.name for net in nets] == ["test_net_param", "net_param", "net_param"]


# ---- snapshots ----

SETTINGS = [
    'momentum: 0.9 weight_decay: 0.01 average_loss: 3 lr_policy: "multistep" gamma: 0.5 stepvalue: [2, 6]',
    'type: "Adam" momentum: 0.9 iter_size: 2 snapshot_format: HDF5',
    'type: "AdaDelta" momentum: 0.9',
]


def _solver(text: str, folder: Path) -> Solver:
    rate = "" if "lr_policy" in text else 'lr_policy: "fixed" '
    solver = parse_solver(f'base_lr: 0.1 random_seed: 3 snapshot_prefix: "{folder}/s" {rate}' + text)
    solver.net_param.CopyFrom(parse_net(DROPOUT))
    return Solver(solver)


@pytest.mark.parametrize("text", SETTINGS)
def test_resumed_is_uninterrupted_bit_for_bit(text: str, tmp_path: Path) -> None:
    whole = _solver(text, tmp_path)
    losses = [whole.step(whole.pull(linear_data)) for _ in range(4)]
    path = whole.snapshot()
    losses = [whole.step(whole.pull(linear_data)) for _ in range(5)]
    torch.manual_seed(99)
    resumed = _solver(text, tmp_path)
    resumed.restore(path)
    assert (resumed.iteration, latest_snapshot(tmp_path / "s")) == (4, path)
    assert [resumed.step(resumed.pull(linear_data)) for _ in range(5)] == losses
    assert (resumed.smoothed_loss, resumed.passes) == (whole.smoothed_loss, whole.passes)
    assert_same(resumed, whole)


def test_snapshot_interval_and_solve(tmp_path: Path) -> None:
    solver = _solver("snapshot: 2 max_iter: 5", tmp_path / "made")
    solver.solve(linear_data)
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
    solver.step(linear_data(0))
    path = solver.snapshot()
    (tmp_path / "before").rename(tmp_path / "after")
    resumed = _solver("", tmp_path)
    resumed.restore(tmp_path / "after" / path.name)
    assert_same(resumed, solver)


def test_random_state_of_another_run_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    solver = _solver("", tmp_path)
    path = solver.snapshot()
    solver.step(linear_data(0))
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
    solver.step(linear_data(0))
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
        make("").restore(path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


# ---- bad solvers ----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('type: "LARS"', "solver: type: 'LARS'; wanted one of SGD, Nesterov"),
        ('type: "AdaGrad" momentum: 0.9', "solver: momentum: 0.9; wanted none with AdaGrad; remove it"),
        ('type: "RMSProp" rms_decay: 1', "solver: rms_decay: 1; wanted at least 0 and below 1"),
        ('regularization_type: "L0"', "solver: regularization_type: 'L0'; wanted L2 or L1"),
        ("iter_size: 0", "solver: iter_size: 0; wanted at least 1"),
        ("average_loss: 0", "solver: average_loss: 0; wanted at least 1"),
        ("display: -1", "solver: display: -1; wanted at least 0"),
        ("snapshot: 5", "solver: no snapshot_prefix"),
        ("snapshot_diff: true", "solver: snapshot_diff: true; wanted false"),
        ('net: "nowhere.prototxt"', "nowhere.prototxt: no such file"),
        ('train_net: "a" net: "b"', "solver: train_net and net; wanted one of"),
        ("test_iter: 1", "solver: test_interval: 0; wanted at least 1, as there are test nets"),
        ("test_iter: 0 test_interval: 1", "solver: test_iter: 0; wanted at least 1"),
        (
            "test_iter: 1 test_interval: 1 test_state {} test_state {}",
            "solver: test_state: 2 of them; wanted",
        ),
        ('test_net: "a" test_interval: 1', "solver: test_iter: 0 of them; wanted 1, one for each test net"),
        ('weights: "nowhere.caffemodel"', "nowhere.caffemodel: no such file"),
    ],
)
def test_bad_solver(text: str, message: str) -> None:
    with pytest.raises(InputError, match="^" + message) as caught:
        make(text)
    assert "\n" not in str(caught.value)


def test_bad_solver_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "solver.prototxt"
    bad = {RATE: ": solver: no net to train", 'net: "x"': ": solver: no lr_policy", RATE + "foo: 1": ":1:"}
    for text, message in bad.items():
        path.write_text(text)
        with pytest.raises(InputError, match="^" + re.escape(f"{path}{message}")):
            Solver.from_prototxt(path)


def test_too_many_test_iter_without_a_general_net() -> None:
    solver = parse_solver(RATE + "test_iter: 1 test_interval: 1")
    solver.train_net_param.CopyFrom(parse_net(LINEAR))
    with pytest.raises(InputError, match="test_iter: 1 of them; wanted 0, one for each test net; correct"):
        Solver(solver)


def test_net_without_loss() -> None:
    with pytest.raises(InputError, match="net to train: no loss"):
        make("", LINEAR[: LINEAR.index('layer { name: "loss"')])


def test_snapshots_that_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: snapshots cannot be written here"):
        make(f'snapshot: 5 snapshot_prefix: "{tmp_path}/file/s"')
    with pytest.raises(InputError, match="HDF5, which cannot hold the layer name 'a/ip'"):
        make(
            f'snapshot: 5 snapshot_format: HDF5 snapshot_prefix: "{tmp_path}/s"',
            LINEAR.replace('"ip"', '"a/ip"'),
        )


def test_solve_needs_max_iter() -> None:
    with pytest.raises(InputError, match="solver: no max_iter"):
        make("").solve(linear_data)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (None, "batch: a NoneType; wanted a dict of data, target"),
        ([linear_data(0)] * 2, "batch: 2 of them; wanted 1, for iter_size 1"),
        ({"data": linear_data(0)["data"]}, "it depends on target, not given"),
        ({**linear_data(0), "label": [1]}, "input label: the net has no input of this name"),
        (3, "batch: a int; wanted a dict of data, target"),
    ],
)
def test_bad_batches(batch: Any, message: str) -> None:
    solver = make("")
    with pytest.raises(InputError, match=message):
        solver.step(batch)
    assert solver.iteration == 0


def test_batches_may_be_lists_of_numbers() -> None:
    batch: Batch = {name: array.tolist() for name, array in linear_data(0).items()}
    assert make("").step(batch) == make("").step(linear_data(0))
