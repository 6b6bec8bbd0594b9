"""The solver: steps worked out in numpy, accumulation, test nets, snapshots, bad solvers."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from solver_nets import DROPOUT, LINEAR, assert_same, data, values

from caffe_weights.errors import InputError
from caffe_weights.prototxt import parse_net, parse_solver
from caffe_weights.weights import Weights
from reproduce.solver import Batch, Solver

RATE = 'base_lr: 0.125 lr_policy: "fixed" random_seed: 3 '


def make(text: str, net: str = LINEAR, **options: Any) -> Solver:
    solver = parse_solver(RATE + text)
    if not any(solver.HasField(name) for name in ("net", "net_param", "train_net", "train_net_param")):
        solver.net_param.CopyFrom(parse_net(net))
    return Solver(solver, **options)


# ---- steps ----


def test_step_is_the_analytic_least_squares_step() -> None:
    solver = make("momentum: 0.75 weight_decay: 0.0078125")  # numbers that float32 holds
    solver.net.double()
    (w, b), velocity = values(solver)["ip"], [0.0, 0.0]
    for number in range(5):
        batch = data(number)
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
        batches = [data(number * 3 + i) for i in range(3)]
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
        solver.step(data(number))
    after = values(solver)["ip"]
    np.testing.assert_array_equal(before[0], after[0])
    assert (before[1] != after[1]).all()
    mean = solver.optimizer.state[solver.net.params["ip"][0]]["history"]
    # the decay alone: 0.1 w, three times into an average of 0.9
    np.testing.assert_allclose(mean.numpy(), 0.1 * before[0] * (1 - 0.9**3), rtol=1e-6)


def test_statistics_are_not_trained() -> None:
    solver = make("weight_decay: 0.1", DROPOUT)
    batch = data(0)
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
        losses.append(solver.step(data(number)))
        assert solver.smoothed_loss == pytest.approx(np.mean(losses[-3:]), rel=1e-12)


def test_display(caplog: pytest.LogCaptureFixture) -> None:
    solver = make("display: 2")
    with caplog.at_level(logging.INFO, "reproduce.solver"):
        losses = [solver.step(data(number)) for number in range(4)]
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


def test_data_layers_are_inputs() -> None:
    layer = 'layer {{ name: "{0}" type: "Python" top: "data" top: "target" include {{ phase: {0} }} }}'
    net = layer.format("TRAIN") + layer.format("TEST") + LINEAR[LINEAR.index('layer { name: "ip"') :]
    shapes = {"data": (1, 3), "target": (1, 2)}
    solver = make("test_iter: 2 test_interval: 1", net, input_shapes=shapes)
    assert solver.step(data(0)) == pytest.approx(make("").step(data(0)))  # of another batch size
    assert solver.test(0, data)["loss"].shape == ()
    with pytest.raises(InputError, match="blob data"):
        make("", net)


# ---- files and nets ----


def test_files_are_found_beside_the_solver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "net.prototxt").write_text(LINEAR)
    (folder / "solver.prototxt").write_text(RATE + 'net: "net.prototxt"')
    (tmp_path / "s.prototxt").write_text(RATE + 'net: "model/net.prototxt" type: "Adam"')
    for place in (tmp_path, folder):
        monkeypatch.chdir(place)
        Solver.from_prototxt(folder / "solver.prototxt").step(data(0))
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
    solver.test_data = [lambda number: data(100 + number)]
    with caplog.at_level(logging.INFO, "reproduce.solver"):
        for number in range(3):
            solver.step(data(number))
    w, b = values(solver)["ip"]
    losses = [(((d := data(100 + i))["data"] @ w.T + b - d["target"]) ** 2).sum() / 8 for i in range(3)]
    found = solver.test(0, solver.test_data[0])
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert found["total_loss"] == found["loss"]
    tests = [message for message in caplog.messages if "Testing" in message]
    assert tests == ["Iteration 0, Testing net (#0)", "Iteration 2, Testing net (#0)"]


def test_test_initialization_false(caplog: pytest.LogCaptureFixture) -> None:
    solver = make("test_iter: 1 test_interval: 1 test_initialization: false")
    solver.test_data = [data]
    with caplog.at_level(logging.INFO, "reproduce.solver"):
        for number in range(3):
            solver.step(data(number))
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


def test_bad_net_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(LINEAR.replace("num_output: 2", "num_output: 0"))
    (tmp_path / "solver.prototxt").write_text(RATE + 'net: "net.prototxt"')
    with pytest.raises(InputError, match="^" + re.escape(f"{tmp_path / 'net.prototxt'}: layer ip ")):
        Solver.from_prototxt(tmp_path / "solver.prototxt")


def test_too_many_test_iter_without_a_general_net() -> None:
    solver = parse_solver(RATE + "test_iter: 1 test_interval: 1")
    solver.train_net_param.CopyFrom(parse_net(LINEAR))
    with pytest.raises(InputError, match="test_iter: 1 of them; wanted 0, one for each test net"):
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
        make("").solve(data)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (None, "batch: a NoneType; wanted a dict of data, target"),
        ([data(0)] * 2, "batch: 2 of them; wanted 1, for iter_size 1"),
        ({"data": data(0)["data"]}, "it depends on target, not given"),
        ({**data(0), "label": [1]}, "input label: the net has no input of this name"),
        (3, "batch: a int; wanted a dict of data, target"),
    ],
)
def test_bad_batches(batch: Any, message: str) -> None:
    solver = make("")
    with pytest.raises(InputError, match=message):
        solver.step(batch)
    assert solver.iteration == 0


def test_batches_may_be_lists_of_numbers() -> None:
    batch: Batch = {name: array.tolist() for name, array in data(0).items()}
    assert make("").step(batch) == make("").step(data(0))
