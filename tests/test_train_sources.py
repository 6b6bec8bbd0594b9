"""`fcn train --solver` on Caffe's own data layers: a small LeNet on HDF5, LMDB, pictures; also resumed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cli_helpers import Fcn, refused, run_in
from PIL import Image

from caffe_weights.caffe_pb2 import Datum
from caffe_weights.export import read_weights, write_weights
from caffe_weights.prototxt import parse_net
from caffe_weights.upgrade import load_net
from caffe_weights.weights import Weights
from reproduce.data.reading import ReaderFeed
from reproduce.run_log import read_log
from reproduce.solver import Solver
from reproduce.tolerances import NET, worst_difference

LENET = """
name: "LeNet"
DATA
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1"
  inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "drop1" type: "Dropout" bottom: "ip1" top: "ip1" dropout_param { dropout_ratio: RATIO } }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy"
  include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" test_iter: 2 test_interval: 4 base_lr: 0.05 momentum: 0.9 weight_decay: 0.0005
lr_policy: "inv" gamma: 0.0001 power: 0.75 display: 4 max_iter: 8 snapshot: 2
snapshot_prefix: "lenet" random_seed: 5
"""
RUN = ("train", "--solver", "model/solver.prototxt", "--workers", "0")


def digits(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (count, 1, 10, 10) with a bright quarter, which is the class."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, count)
    data = rng.uniform(0, 0.3, (count, 1, 10, 10)).astype(np.float32)
    for picture, number in zip(data, label, strict=True):
        y, x = divmod(int(number), 2)
        picture[0, 5 * y : 5 * y + 5, 5 * x : 5 * x + 5] += 0.7
    return data, label


def write_hdf5(path: Path, seed: int, count: int) -> None:
    data, label = digits(seed, count)
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = data, label.astype(np.float32)


def data_layers(kind: str, train: str, test: str) -> str:
    tops = 'top: "data" top: "label"'
    return "\n".join(f'layer {{ name: "d" type: "{kind}" {tops} include {{ phase: {phase} }} {param} }}'
                     for phase, param in (("TRAIN", train), ("TEST", test)))  # fmt: skip


def write_model(folder: Path, layers: str, ratio: float = 0.5, solver: str = SOLVER) -> None:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/net.prototxt").write_text(LENET.replace("DATA", layers).replace("RATIO", str(ratio)))
    (folder / "model/solver.prototxt").write_text(solver)


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    """In a folder with a model on HDF5: files of 7 and 5 rows to train on, batches of 4; all beside it."""
    torch.set_num_threads(1)
    model = tmp_path / "model"
    model.mkdir()
    for name, seed, count in (("a.h5", 0, 7), ("b.h5", 1, 5), ("t.h5", 2, 8)):
        write_hdf5(model / name, seed, count)
    (model / "train.txt").write_text("a.h5\nb.h5\n")
    (model / "test.txt").write_text("t.h5\n")
    write_model(tmp_path, hdf5(""))
    return run_in(tmp_path, monkeypatch)


def hdf5(more: str) -> str:
    return data_layers("HDF5Data", f'hdf5_data_param {{ source: "train.txt" batch_size: 4 {more} }}',
                       'hdf5_data_param { source: "test.txt" batch_size: 4 }')  # fmt: skip


def weights_of(out: Path, iteration: int) -> Weights:
    return read_weights(out / f"snapshot/train_iter_{iteration}.caffemodel")


def same(one: Weights, other: Weights) -> bool:
    return list(one) == list(other) and all(
        np.array_equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)
    )


def test_the_files_are_read_row_by_row_and_tested(fcn: Fcn, tmp_path: Path) -> None:
    """The weights are those of a solver that is handed the rows, as numpy cuts them from the files."""
    write_model(tmp_path, hdf5(""), ratio=0)
    done = fcn(*RUN, "--out", "run", "--json")
    assert done.exit_code == 0, (done.stderr, done.exception)
    (run,) = json.loads(done.stdout)["runs"]
    rows = [np.concatenate(parts) for parts in zip(digits(0, 7), digits(1, 5), strict=True)]
    solver = Solver.from_prototxt(tmp_path / "model/solver.prototxt",
                                  input_shapes={"data": (4, 1, 10, 10), "label": (4,)})  # fmt: skip
    solver.param.snapshot = 0
    losses = []
    for number in range(8):
        index = np.arange(4 * number, 4 * number + 4) % 12
        losses.append(solver.step({"data": rows[0][index], "label": rows[1][index]}))
    log = read_log(tmp_path / "run/log.jsonl")
    assert [row["loss"] for row in log if "loss" in row] == losses
    assert same(weights_of(tmp_path / "run", 8), Weights(solver.net.weights()))
    tests = [row for row in log if "test" in row]
    assert [row["iteration"] for row in tests] == [0, 4, 8]
    data, label = digits(2, 8)
    scores = solver.test_nets[0](data=data, label=label, keep=["ip2"])["ip2"].detach().numpy()
    assert tests[-1]["test"]["accuracy"] == pytest.approx((scores.argmax(1) == label).mean())
    assert run["tests"] == [tests[-1]["test"]]
    assert losses[-1] < losses[0]
    words = fcn(*RUN, "--out", "words")
    assert "test 0 accuracy" in words.stdout and "test/0/accuracy" in words.stderr


@pytest.mark.parametrize("more", ["", "shuffle: true"])
def test_stopped_and_resumed_is_the_uninterrupted_run(fcn: Fcn, tmp_path: Path, more: str) -> None:
    write_model(tmp_path, hdf5(more))
    assert fcn(*RUN, "--out", "whole", "--iterations", "7").exit_code == 0
    assert fcn(*RUN, "--out", "parts", "--iterations", "3").exit_code == 0
    done = fcn(*RUN, "--out", "parts", "--iterations", "7", "--resume")
    assert done.exit_code == 0, done.stderr
    assert same(weights_of(tmp_path / "whole", 7), weights_of(tmp_path / "parts", 7))
    logs = [read_log(tmp_path / out / "log.jsonl") for out in ("whole", "parts")]
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in log] for log in logs]
    assert strip[0] == strip[1]


def test_a_shuffled_pass_sees_each_row_once_whatever_the_net_draws(fcn: Fcn, tmp_path: Path) -> None:
    write_model(tmp_path, hdf5("shuffle: true"))
    layer = parse_net(hdf5("shuffle: true")).layer[0]
    feed = ReaderFeed(layer, tmp_path / "model", "TRAIN", seed=5)
    batches = []
    for number in range(6):
        torch.rand(number)  # what the net draws
        batches.append(feed(number)["data"])
    rows = torch.cat(batches[:3]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 12
    before = torch.get_rng_state()
    again = ReaderFeed(layer, tmp_path / "model", "TRAIN", seed=5)
    assert torch.equal(again(4)["data"], batches[4])  # another process skips what is not its own
    assert torch.equal(again(1)["data"], batches[1])  # and going back reads anew
    assert torch.equal(before, torch.get_rng_state())
    other = ReaderFeed(layer, tmp_path / "model", "TRAIN", seed=6)
    assert any(not torch.equal(other(number)["data"], batches[number]) for number in range(6))


def write_lmdb(path: Path, seed: int, count: int) -> None:
    lmdb = pytest.importorskip("lmdb")
    data, label = digits(seed, count)
    with lmdb.open(str(path), map_size=1 << 20) as base, base.begin(write=True) as transaction:
        for number, (picture, value) in enumerate(zip(data, label, strict=True)):
            datum = Datum(channels=1, height=10, width=10, label=int(value),
                          data=np.rint(picture * 255).astype(np.uint8).tobytes())  # fmt: skip
            transaction.put(b"%08d" % number, datum.SerializeToString())


def test_an_lmdb_with_random_crops_is_resumed(fcn: Fcn, tmp_path: Path) -> None:
    for name, seed in (("train", 0), ("test", 2)):
        write_lmdb(tmp_path / f"model/{name}_lmdb", seed, 10)
    change = "transform_param { scale: 0.00390625 crop_size: 8 mirror: true }"
    param = 'data_param { source: "SET_lmdb" batch_size: 4 backend: LMDB } ' + change
    write_model(tmp_path, data_layers("Data", param.replace("SET", "train"), param.replace("SET", "test")))
    for out, steps in (("whole", (7,)), ("parts", (3, 7))):
        for last in steps:
            done = fcn(*RUN, "--out", out, "--iterations", last, "--resume")
            assert done.exit_code == 0, (done.stderr, done.exception)
    assert same(weights_of(tmp_path / "whole", 7), weights_of(tmp_path / "parts", 7))


def test_pictures_by_a_list_beside_the_net(fcn: Fcn, tmp_path: Path) -> None:
    data, label = digits(0, 6)
    lines = []
    for number, (picture, value) in enumerate(zip(data, label, strict=True)):
        Image.fromarray(np.rint(picture[0] * 255).astype(np.uint8)).save(tmp_path / f"model/{number}.png")
        lines.append(f"{number}.png {value}")
    (tmp_path / "model/list.txt").write_text("\n".join(lines))
    param = 'image_data_param { source: "list.txt" batch_size: 3 is_color: false shuffle: true }'
    write_model(tmp_path, data_layers("ImageData", param, param))
    done = fcn(*RUN, "--out", "run", "--iterations", "2")
    assert done.exit_code == 0, (done.stderr, done.exception)


def test_a_net_that_makes_its_data_up(fcn: Fcn, tmp_path: Path) -> None:
    dummy = """dummy_data_param { shape { dim: 4 dim: 1 dim: 10 dim: 10 } shape { dim: 4 }
               data_filler { type: "gaussian" } data_filler { type: "constant" } }"""
    write_model(tmp_path, data_layers("DummyData", dummy, dummy))
    for out, steps in (("whole", (5,)), ("parts", (2, 5))):
        for last in steps:
            done = fcn(*RUN, "--out", out, "--iterations", last, "--resume")
            assert done.exit_code == 0, (done.stderr, done.exception)
    assert same(weights_of(tmp_path / "whole", 5), weights_of(tmp_path / "parts", 5))


def test_tests_that_never_come_due_need_no_data(fcn: Fcn, tmp_path: Path) -> None:
    (tmp_path / "model/test.txt").unlink()
    never = SOLVER.replace("test_interval: 4", "test_interval: 999999999 test_initialization: false")
    write_model(tmp_path, hdf5(""), solver=never)
    assert fcn(*RUN, "--out", "run").exit_code == 0
    assert not any("test" in row for row in read_log(tmp_path / "run/log.jsonl"))


def test_what_cannot_be_read_is_refused(fcn: Fcn, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "test.txt").rename(model / "gone.txt")
    refused(fcn(*RUN, "--out", "x"), "layer d (HDF5Data): nothing to read: test.txt does not exist")
    (model / "gone.txt").rename(model / "test.txt")
    (model / "train.txt").write_text("a.h5\nmissing.h5\n")
    refused(fcn(*RUN, "--out", "x"), "missing.h5: no such file")
    (model / "train.txt").write_text("")
    refused(fcn(*RUN, "--out", "x"), "train.txt: no file in this list")
    with h5py.File(model / "a.h5", "w") as file:
        file["data"] = np.zeros((3, 1, 10, 10))
    (model / "train.txt").write_text("a.h5\n")
    refused(fcn(*RUN, "--out", "x"), "a.h5: dataset label: the file has none of this name; wanted data")
    level = 'data_param { source: "train.txt" batch_size: 1 backend: LEVELDB }'
    write_model(tmp_path, data_layers("Data", level, level))
    refused(fcn(*RUN, "--out", "x"), "LEVELDB, which is not read here")
    memory = "memory_data_param { batch_size: 1 channels: 1 height: 10 width: 10 }"
    write_model(tmp_path, data_layers("MemoryData", memory, memory))
    refused(fcn(*RUN, "--out", "x"), "nothing has been handed over", "train from Python with Solver.solve")
    shape = "input_param { shape { dim: 1 dim: 1 dim: 10 dim: 10 } }"
    write_model(tmp_path, data_layers("Input", shape, shape))
    refused(fcn(*RUN, "--out", "x"), "the type Input, which brings no data here")


def test_files_that_changed_under_a_run(fcn: Fcn, tmp_path: Path) -> None:
    assert fcn(*RUN, "--out", "run", "--iterations", "2").exit_code == 0
    write_hdf5(tmp_path / "model/b.h5", 1, 9)
    refused(fcn(*RUN, "--out", "run", "--resume"), "b.h5: 9 rows; wanted 5, as it had")


def test_a_source_is_looked_for_beside_the_net_first(fcn: Fcn, tmp_path: Path) -> None:
    net = load_net(tmp_path / "model/net.prototxt")
    (tmp_path / "train.txt").write_text("model/t.h5\n")
    feed = ReaderFeed(net.layer[0], tmp_path / "model", "TRAIN", 0)
    np.testing.assert_array_equal(feed(0)["data"].numpy(), digits(0, 7)[0][:4])
    far = ReaderFeed(net.layer[0], tmp_path / "elsewhere", "TRAIN", 0)
    np.testing.assert_array_equal(far(0)["data"].numpy(), digits(2, 8)[0][:4])


@pytest.mark.slow
def test_two_processes_share_the_rows_of_a_shuffled_source(fcn: Fcn, tmp_path: Path) -> None:
    """torchrun's part of the environment, by hand: the update is that of one process with both passes."""
    write_model(tmp_path, hdf5("shuffle: true"), ratio=0, solver=SOLVER + "iter_size: 2")
    assert fcn(*RUN, "--out", "alone", "--iterations", "5").exit_code == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "reproduce", *RUN, "--out", "both", "--resume", "--keep", "1"]
    for last in ("2", "5"):  # stopped and resumed on the way
        processes = [
            subprocess.Popen([*command, "--iterations", last], env={**os.environ, **place, "RANK": rank})
            for rank in ("0", "1")
        ]
        assert [process.wait(120) for process in processes] == [0, 0]
    one, other = weights_of(tmp_path / "alone", 5), weights_of(tmp_path / "both", 5)
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            assert worst_difference(b, a, channels=False)[0] <= NET, name


CAFFE = """
import sys, numpy as np, caffe
solver = caffe.get_solver("solver.prototxt")
solver.net.copy_from("start.caffemodel")
losses = []
for _ in range(8):
    solver.step(1)
    losses.append(float(solver.net.blobs["loss"].data))
solver.net.save("caffe.caffemodel")
np.save("losses.npy", losses)
"""


def test_caffe_reads_the_same_rows(fcn: Fcn, tmp_path: Path) -> None:
    """The losses and weights of real Caffe on the same files from the same start."""
    python = os.environ.get("CAFFE_PYTHON")
    if not python:
        pytest.skip("CAFFE_PYTHON names no interpreter that has Caffe")
    model = tmp_path / "model"
    never = SOLVER.replace("test_interval: 4", "test_interval: 1000 test_initialization: false")
    write_model(tmp_path, hdf5(""), ratio=0, solver=never.replace("snapshot: 2", "snapshot: 0"))
    start = Solver.from_prototxt(
        model / "solver.prototxt", input_shapes={"data": (4, 1, 10, 10), "label": (4,)}
    )
    write_weights(start.net.weights(), model / "start.caffemodel", start.net.definition)
    for name in ("train.txt", "test.txt"):  # Caffe looks from the working directory
        (tmp_path / name).write_text((model / name).read_text())
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([python, "-c", CAFFE], cwd=model, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    run = fcn(*RUN, "--from", "model/start.caffemodel", "--out", "run")
    assert run.exit_code == 0, run.stderr
    losses = [row["loss"] for row in read_log(tmp_path / "run/log.jsonl") if "loss" in row]
    np.testing.assert_allclose(losses, np.load(model / "losses.npy"), rtol=1e-5)
    got, want = weights_of(tmp_path / "run", 8), read_weights(model / "caffe.caffemodel")
    for name, blobs in want.items():
        for a, b in zip(got[name], blobs, strict=True):
            assert worst_difference(a, b, channels=False)[0] <= NET, name
