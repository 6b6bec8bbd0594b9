"""Whole training runs against Caffe's: losses, rates, updates, parameters, snapshots, resuming."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.export import read_weights
from caffe_weights.solverstate import read_solverstate
from reproduce.optimizers import CaffeOptimizer
from reproduce.solver import Solver
from reproduce.tolerances import NET, worst_difference

Trajectory = Mapping[str, np.ndarray]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.goldens("solvers/*/trajectory.npz")
def test_golden_solver_trajectory(golden: Path) -> None:
    want = np.load(golden)
    solver = make_solver(golden)
    updates = record_updates(solver)
    data = batches(golden)
    check_parameters(solver, want, 0)
    for iteration, loss in enumerate(want["loss"]):
        updates.clear()
        assert abs(solver.step(solver.pull(data)) - loss) <= NET * abs(want["loss"][0]), iteration
        assert_rate(solver, want, iteration)
        check_norms(solver, want, iteration)
        check_parameters(solver, want, iteration + 1)
        for key, value in stored(want, f"update/{iteration + 1}/"):
            assert_close(updates[key], value, f"update of {key} in iteration {iteration + 1}")


@pytest.mark.goldens("solvers/*/trajectory.npz")
def test_golden_solver_losses_of_each_pass(golden: Path) -> None:
    want = np.load(golden)["loss_each"]
    solver = make_solver(golden)
    data = batches(golden)
    for iteration, losses in enumerate(want[:5]):
        found = [float(solver.net.total_loss(solver.net(**item)).detach()) for item in solver.pull(data)]
        assert np.abs(np.array(found) - losses).max() <= NET * abs(want[0, 0]), iteration
        solver.step(solver.pull(data))


@pytest.mark.goldens("solvers/*/*/*.solverstate*")
def test_golden_solver_resumes_from_caffes_snapshot(golden: Path) -> None:
    setting = golden.parents[1] / "trajectory.npz"
    want = np.load(setting)
    solver = make_solver(setting)
    solver.restore(golden)
    check_parameters(solver, want, solver.iteration)
    data = batches(setting)
    for iteration in range(solver.iteration, len(want["loss"])):
        loss = want["loss"][iteration]
        assert abs(solver.step(solver.pull(data)) - loss) <= NET * abs(want["loss"][0]), iteration
        assert_rate(solver, want, iteration)
    check_parameters(solver, want, len(want["loss"]))


@pytest.mark.goldens("solvers/*/solver_binaryproto.prototxt")
def test_golden_solver_writes_binary_snapshots_as_caffe(golden: Path, tmp_path: Path) -> None:
    ours, theirs = snapshots_of(golden, tmp_path)
    assert without_values(ours) == without_values(theirs)
    assert NetParameter.FromString(blank(ours)) == NetParameter.FromString(blank(theirs))
    compare_values(ours, theirs)


@pytest.mark.goldens("solvers/*/solver_hdf5.prototxt")
def test_golden_solver_writes_hdf5_snapshots_as_caffe(golden: Path, tmp_path: Path) -> None:
    ours, theirs = snapshots_of(golden, tmp_path)
    for ending in (".caffemodel.h5", ".solverstate.h5"):
        assert hdf5_layout(ours + ending) == hdf5_layout(theirs + ending)
    compare_values(ours, theirs)


@pytest.mark.goldens("solvers/*/*/*.solverstate")
def test_golden_solver_rewrites_caffes_snapshot_byte_for_byte(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = make_solver(golden.parents[1] / "trajectory.npz")
    solver.restore(golden)
    monkeypatch.chdir(tmp_path)  # the state says where it lies, from the working directory
    solver.param.snapshot_prefix = read_solverstate(golden).learned_net.split("_iter_")[0]
    path = solver.snapshot()
    assert path.read_bytes() == golden.read_bytes()
    assert path.with_suffix(".caffemodel").read_bytes() == golden.with_suffix(".caffemodel").read_bytes()


@pytest.mark.goldens("formats/*_solver.prototxt")
def test_golden_format_training_with_shared_parameters(golden: Path, goldens: Path) -> None:
    model = goldens / "formats" / golden.name.replace("_solver.prototxt", "")
    want = np.load(model.with_suffix(".npz"))
    solver = Solver.from_prototxt(golden, model.with_suffix(".caffemodel"))
    batch = {key[3:]: want[key] for key in want.files if key.startswith("in/")}
    losses = sorted(int(key[5:]) for key in want.files if key.startswith("loss/"))
    for iteration in losses:
        loss = solver.step(batch)
        assert abs(loss - want[f"loss/{iteration}"]) <= NET * abs(want[f"loss/{losses[0]}"])
        for key, value in stored(want, f"step/{iteration}/"):
            layer, index = key.rsplit(":", 1)
            assert_close(solver.net.params[layer][int(index)], value, f"{key} after {iteration}")


def make_solver(golden: Path) -> Solver:
    return Solver.from_prototxt(golden.parent / "solver.prototxt", golden.parents[1] / "init.caffemodel")


def batches(golden: Path) -> Callable[[int], dict[str, np.ndarray]]:
    pool = np.load(golden.parents[1] / "inputs.npz")
    names = [name for name in pool.files if name != "meta"]
    arrays = {name: pool[name] for name in names}
    return lambda number: {name: array[number % len(array)] for name, array in arrays.items()}


def record_updates(solver: Solver) -> dict[str, torch.Tensor]:
    """What the optimizer subtracts, by the keys of the goldens."""
    optimizer, updates = solver.optimizer, {}
    names = [f"{slot.layer}/{slot.index}" for slot in solver.net.learnable()]
    original: Any = optimizer.update

    def update(grad: torch.Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> torch.Tensor:
        value = original(grad, state, group)
        place = next(i for i, item in enumerate(optimizer.param_groups) if item is group)
        updates[names[place]] = value.clone()
        return value

    assert isinstance(optimizer, CaffeOptimizer)
    optimizer.update = update  # type: ignore[method-assign]
    return updates


def stored(want: Any, prefix: str) -> list[tuple[str, np.ndarray]]:
    return [(key[len(prefix) :], want[key]) for key in want.files if key.startswith(prefix)]


def check_parameters(solver: Solver, want: Trajectory, iteration: int) -> None:
    for key, value in stored(want, f"param/{iteration}/"):
        layer, index = key.rsplit("/", 1)
        assert_close(solver.net.params[layer][int(index)], value, f"{key} after {iteration}")


def check_norms(solver: Solver, want: Trajectory, iteration: int) -> None:
    for key, norms in stored(want, "norm/"):
        layer, index = key.rsplit("/", 1)
        norm = float(solver.net.params[layer][int(index)].detach().double().norm())
        assert abs(norm - norms[iteration]) <= NET * max(norms[iteration], 1e-7), f"{key} after {iteration}"


def assert_rate(solver: Solver, want: Any, iteration: int) -> None:
    if "lr" in want.files and solver.param.type == "SGD":
        assert solver.optimizer.param_groups[0]["lr"] == pytest.approx(want["lr"][iteration], rel=1e-6)


def assert_close(got: torch.Tensor, want: np.ndarray, what: str) -> None:
    worst, place = worst_difference(got.detach().numpy(), want, channels=False)
    assert worst <= NET, f"{what}: {worst:.2g} at {place}"


def snapshots_of(golden: Path, folder: Path) -> tuple[str, str]:
    """Our snapshot and Caffe's at the iteration of Caffe's, as paths without extension."""
    theirs = next((golden.parent / golden.stem.removeprefix("solver_")).glob("*.solverstate*"))
    stem = theirs.name.split(".solverstate")[0]
    solver = Solver.from_prototxt(golden, golden.parents[1] / "init.caffemodel")
    meta = json.loads(str(np.load(golden.parent / "trajectory.npz")["meta"]))
    solver.param.snapshot_prefix = str(folder / stem.split("_iter_")[0])
    data = batches(golden.parent / "trajectory.npz")
    for _ in range(meta["snapshot"]["at"]):
        solver.step(solver.pull(data))
    return str(folder / stem), str(theirs.parent / stem)


def compare_values(ours: str, theirs: str) -> None:
    got, want = read_solverstate(find(ours, "solverstate")), read_solverstate(find(theirs, "solverstate"))
    assert (got.iter, got.current_step) == (want.iter, want.current_step)
    assert Path(got.learned_net).name == Path(want.learned_net).name
    for i, (mine, caffes) in enumerate(zip(got.history, want.history, strict=True)):
        worst, _ = worst_difference(mine, caffes, channels=False)
        assert worst <= NET, f"history {i}: {worst:.2g}"
    weights, wanted = read_weights(find(ours, "caffemodel")), read_weights(find(theirs, "caffemodel"))
    assert list(weights) == list(wanted)
    for name in wanted:
        for mine, caffes in zip(weights[name], wanted[name], strict=True):
            assert worst_difference(mine, caffes, channels=False)[0] <= NET, name


def find(stem: str, kind: str) -> Path:
    return next(path for end in ("", ".h5") if (path := Path(f"{stem}.{kind}{end}")).exists())


def without_values(stem: str) -> tuple[Any, ...]:
    """All of a binary solver state but its values and the folder of its weights."""
    state = read_solverstate(f"{stem}.solverstate")
    shapes = tuple((array.shape, array.dtype) for array in state.history)
    return state.iter, state.current_step, Path(state.learned_net).name, shapes


def blank(stem: str) -> bytes:
    """A caffemodel with zeros for its values."""
    net = NetParameter.FromString(Path(f"{stem}.caffemodel").read_bytes())
    for layer in net.layer:
        for blob in layer.blobs:
            blob.data[:] = [0.0] * len(blob.data)
    return net.SerializeToString(deterministic=True)


def hdf5_layout(path: str) -> list[tuple[str, ...]]:
    """Every group and dataset: name, shape, type (for a string its kind), attributes."""
    found: list[tuple[str, ...]] = []

    def visit(name: str, item: Any) -> None:
        row = [name, str(list(item.attrs))]
        if isinstance(item, h5py.Dataset):
            text = item.dtype.kind == "S"
            row += [str(item.shape), item.dtype.kind if text else item.dtype.str]
        found.append(tuple(row))

    with h5py.File(path) as file:
        file.visititems(visit)
    return sorted(found)
