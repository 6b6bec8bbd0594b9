"""The solver beside other processes: killed and resumed, several at once, and a running Caffe.

For Caffe set CAFFE_PYTHON to a Python that imports it. Each side goes on from the other's snapshot, and the
weights must be those of the side that ran alone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_weights.export import read_weights
from caffe_weights.weights import Weights
from reproduce.snapshots import latest_snapshot, write_net_weights
from reproduce.solver import Solver
from reproduce.tolerances import NET, worst_difference

NET_TEXT = """
name: "small"
layer { name: "data" type: "Input" top: "data" top: "label"
  input_param { shape { dim: 4 dim: 2 dim: 6 dim: 6 } shape { dim: 4 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 5 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
DROP
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
DROP = 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }'
KINDS = {
    "SGD": 'base_lr: 0.05 momentum: 0.9 lr_policy: "multistep" gamma: 0.5 stepvalue: [2, 7] '
    "clip_gradients: 2",
    "Nesterov": 'base_lr: 0.05 momentum: 0.9 lr_policy: "step" gamma: 0.5 stepsize: 3',
    "AdaGrad": 'base_lr: 0.02 lr_policy: "fixed"',
    "RMSProp": 'base_lr: 0.003 rms_decay: 0.9 lr_policy: "fixed"',
    "AdaDelta": 'base_lr: 1 momentum: 0.95 delta: 1e-6 lr_policy: "fixed"',
    "Adam": 'base_lr: 0.01 momentum: 0.9 lr_policy: "inv" gamma: 0.1 power: 0.5',
}

# What the child processes run; each is given its working directory.
TRAIN = """
import sys, torch
torch.set_num_threads(1)
from test_solver_processes import data
from reproduce.snapshots import latest_snapshot
from reproduce.solver import Solver
solver = Solver.from_prototxt("solver.prototxt")
found = latest_snapshot("s")
if found is not None:
    solver.restore(found)
print("training", flush=True)
solver.solve(data)
"""
PART = """
import torch
from torch import distributed
torch.set_num_threads(1)
distributed.init_process_group("gloo")
from test_solver_processes import data
from reproduce.solver import Solver
solver = Solver.from_prototxt("solver.prototxt")
losses = []
while solver.iteration < 4:
    losses.append(solver.step(solver.pull(data)))
path = solver.snapshot()
solver.restore(path)
if distributed.get_rank() == 0:
    print(losses)
distributed.destroy_process_group()
"""
CAFFE = """
import json, os, sys
os.environ["GLOG_minloglevel"] = "2"
import caffe, numpy
start, stop, load = json.loads(sys.argv[1])
caffe.set_mode_cpu()
solver = caffe.get_solver("solver.prototxt")
if start: solver.restore(load)
else: solver.net.copy_from(load)
pool = numpy.load("data.npz")
for i in range(start, stop):
    for name in ("data", "label"): solver.net.blobs[name].data[...] = pool[name][i]
    solver.step(1)
solver.net.save("caffe_%d.caffemodel" % stop)
"""


def data(number: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(number)
    return {"data": draw.normal(size=(4, 2, 6, 6)).astype(np.float32), "label": draw.integers(0, 3, 4)}


def write_solver(folder: Path, text: str, drop: str = "") -> None:
    (folder / "net.prototxt").write_text(NET_TEXT.replace("DROP", drop))
    (folder / "solver.prototxt").write_text(f'net: "net.prototxt" random_seed: 5 snapshot_prefix: "s" {text}')


def start(folder: Path, code: str, **more: str) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}", **more}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


# ---- killed ----


def test_killed_again_and_again_is_uninterrupted(tmp_path: Path) -> None:
    runs = [tmp_path / "whole", tmp_path / "killed"]
    for folder in runs:
        folder.mkdir()
        write_solver(folder, KINDS["Adam"] + " snapshot: 3 max_iter: 200", DROP)
    finish(start(runs[0], TRAIN))
    for delay in (0.0, 0.1):
        process = start(runs[1], TRAIN)
        assert process.stdout is not None and process.stdout.readline() == "training\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (runs[1] / "s_iter_200.solverstate").exists(), "killed too late to mean anything"
    finish(start(runs[1], TRAIN))
    for ending in ("caffemodel", "solverstate"):
        name = f"s_iter_200.{ending}"
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes()


@pytest.mark.parametrize("step", range(1, 7))
def test_killed_while_writing_a_snapshot(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process ends at the `step`-th operation that puts a file in place: three are made and renamed."""
    write_solver(tmp_path, KINDS["SGD"], DROP)
    monkeypatch.chdir(tmp_path)
    solver = Solver.from_prototxt("solver.prototxt")
    solver.step(data(0))
    first = solver.snapshot()
    solver.step(data(1))
    child = os.fork()
    if not child:
        _die_at(step)
        solver.snapshot()
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert latest_snapshot("s") == first
    resumed = Solver.from_prototxt("solver.prototxt")
    resumed.restore(first)
    resumed.step(data(1))
    for name, tensors in solver.net.params.items():
        for a, b in zip(tensors, resumed.net.params[name], strict=True):
            np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


def _die_at(step: int) -> None:
    left = [step]

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        return call

    os.replace, os.open = dying(os.replace), dying(os.open)


# ---- several processes ----


def test_two_processes_with_half_of_the_passes(tmp_path: Path) -> None:
    write_solver(tmp_path, "iter_size: 4 " + KINDS["SGD"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [start(tmp_path, PART, RANK=str(rank), **place) for rank in range(2)]
    losses = json.loads("".join([finish(process) for process in processes]))
    alone = Solver.from_prototxt(tmp_path / "solver.prototxt")
    want = [alone.step(alone.pull(data)) for _ in range(4)]
    assert losses == pytest.approx(want, rel=NET)
    assert_weights(read_weights(tmp_path / "s_iter_4.caffemodel"), alone.net.weights())


# ---- Caffe ----


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
@pytest.mark.parametrize("kind", KINDS)
def test_goes_on_in_caffe_and_from_caffe(kind: str, form: str, tmp_path: Path) -> None:
    python = os.environ.get("CAFFE_PYTHON")
    if not python:
        pytest.skip("CAFFE_PYTHON names no interpreter that has Caffe")
    write_solver(tmp_path, f'type: "{kind}" snapshot: 5 snapshot_format: {form} {KINDS[kind]} max_iter: 10')
    batches = [data(i) for i in range(10)]
    arrays: Any = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    np.savez(tmp_path / "data.npz", **arrays)
    folders = {name: tmp_path / name for name in ("ours", "caffe")}
    for folder in folders.values():
        folder.mkdir()
        for path in tmp_path.glob("*.*"):
            (folder / path.name).write_bytes(path.read_bytes())
    whole = run_ours(folders["ours"], 10)
    ending = ".solverstate" + (".h5" if form == "HDF5" else "")
    run_caffe(python, folders["ours"], 5, 10, "s_iter_5" + ending)  # from ours
    assert_weights(read_weights(folders["ours"] / "caffe_10.caffemodel"), whole.net.weights())
    start_weights = folders["ours"] / "start.caffemodel"
    run_caffe(python, folders["caffe"], 0, 10, str(start_weights))  # snapshots at 5
    resumed = Solver.from_prototxt(folders["caffe"] / "solver.prototxt")
    resumed.param.snapshot = 0
    resumed.restore(folders["caffe"] / ("s_iter_5" + ending))
    for i in range(5, 10):
        resumed.step(data(i))
    assert_weights(resumed.net.weights(), read_weights(folders["caffe"] / "caffe_10.caffemodel"))


def run_ours(folder: Path, stop: int) -> Solver:
    before = Path.cwd()
    os.chdir(folder)
    try:
        solver = Solver.from_prototxt("solver.prototxt")
        write_net_weights(solver.net, "start.caffemodel")
        for i in range(stop):
            solver.step(data(i))
    finally:
        os.chdir(before)
    return solver


def run_caffe(python: str, folder: Path, first: int, stop: int, load: str) -> None:
    arguments = [python, "-c", CAFFE, json.dumps([first, stop, load])]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-1500:]


def assert_weights(got: Weights, want: Weights) -> None:
    assert list(got) == list(want)
    for name, blobs in want.items():
        for i, blob in enumerate(blobs):
            worst, place = worst_difference(got[name][i], blob, channels=False)
            assert worst <= NET, f"{name} blob {i}: {worst:.2g} at {place}"
