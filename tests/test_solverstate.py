"""Solver states: literal bytes, both forms of Caffe's own files, and files that are none."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest

from caffe_weights.errors import FileError, FormatError
from caffe_weights.solverstate import SolverState, read_solverstate, write_solverstate

# iter 3, learned_net "w", history: data (field 5) 1.0 2.0, shape (field 7) { dim: [2] }; current_step 1
BYTES = bytes.fromhex("0803 120177 1a0f 2a08 0000803f 00000040 3a03 0a0102 2001")
ENDINGS = (".solverstate", ".solverstate.h5")


def state() -> SolverState:
    return SolverState(3, "w", 1, [np.array([1, 2], np.float32)])


def test_writes_the_bytes_of_caffes_schema(tmp_path: Path) -> None:
    path = tmp_path / "a.solverstate"
    write_solverstate(state(), path)
    assert path.read_bytes() == BYTES


def test_reads_the_bytes_of_caffes_schema(tmp_path: Path) -> None:
    path = tmp_path / "a.solverstate"
    path.write_bytes(BYTES)
    assert_equal(read_solverstate(path), state())


@pytest.mark.goldens("solvers/*/*/*.solverstate*")
def test_golden_solver_state_round_trip(golden: Path, tmp_path: Path) -> None:
    found = read_solverstate(golden)
    copy = tmp_path / golden.name
    write_solverstate(found, copy)
    assert_equal(read_solverstate(copy), found)
    if copy.suffix != ".h5":
        assert copy.read_bytes() == golden.read_bytes()


@pytest.mark.goldens("solvers/*/*/*.solverstate")
def test_golden_solver_state_is_the_same_in_both_forms(golden: Path) -> None:
    binary = read_solverstate(golden)
    other = golden.parents[1] / "hdf5" / (golden.name + ".h5")
    found = read_solverstate(other)
    found.learned_net = binary.learned_net  # each names the weights of its own form
    assert_equal(found, binary)


@pytest.mark.parametrize("ending", ENDINGS)
def test_round_trip(ending: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    history = [draw.normal(size=shape).astype(kind) for shape, kind in
               (((), "f4"), ((2, 3), "f8"), ((1, 1, 4, 4), "f4"), ((300,), "f4"))]  # fmt: skip
    history += [history[1].T, np.array([0.5], np.float16), history[3].astype(">f4")]
    written = SolverState(2**31 - 1, "snapshot/ä_iter_5.caffemodel", 0, history)
    path = tmp_path / f"x{ending}"
    write_solverstate(written, path)
    found = read_solverstate(path)
    assert [a.dtype.str for a in found.history] == ["<f4", "<f8", "<f4", "<f4", "<f8", "<f4", "<f4"]
    assert_equal(found, written)
    again = tmp_path / f"y{ending}"
    write_solverstate(found, again)
    assert again.read_bytes() == path.read_bytes()


def test_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.solverstate"
    path.write_bytes(b"mine")
    with pytest.raises(FileError, match="the file exists"):
        write_solverstate(state(), path)
    assert path.read_bytes() == b"mine"


def test_extension_says_the_form(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"wanted \.solverstate or \.solverstate\.h5"):
        write_solverstate(state(), tmp_path / "a.caffemodel")


def test_a_binary_state_caffe_could_not_read(tmp_path: Path) -> None:
    large = np.broadcast_to(np.zeros(1, np.float32), (2**29,))
    with pytest.raises(FileError, match="over 2 GiB; wanted less; set snapshot_format: HDF5"):
        write_solverstate(SolverState(1, "", 0, [large]), tmp_path / "a.solverstate")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\x12\x01w", "no iteration; wanted a solver state; is it a caffemodel"),
        (b"\x08" + b"\xff" * 9 + b"\x01", "iter -1; wanted 0 or more"),
        (
            BYTES.replace(b"\x0a\x01\x02", b"\x0a\x01\x03"),
            "history 0: shape 3 with 2 values; wanted 3 values",
        ),
        (BYTES.replace(b"w", b"\xff"), "damaged|no text"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "a broken HDF5 file"),
    ],
)
def test_no_state(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.solverstate"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_solverstate(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        read_solverstate(tmp_path / "a.solverstate")


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.solverstate"
    for length in range(1, len(BYTES)):
        path.write_bytes(BYTES[:length])
        if length in (2, 5, 22):  # whole fields: protobuf cannot know that more was meant
            assert read_solverstate(path).iter == 3
        else:
            with pytest.raises(FormatError):
                read_solverstate(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("iter", None, "no dataset iter; wanted a solver state; is it a caffemodel"),
        ("iter", np.array([1, 2], np.int32), "iter of 2 values"),
        ("iter", np.array([1.5]), "iter of 1 values of float64; wanted one whole number"),
        ("current_step", np.array([-1], np.int32), "current_step -1"),
        ("learned_net", np.array([1], np.int32), "learned_net of int32; wanted a string"),
        ("history", None, "no group history"),
        ("history", np.zeros(3), "no group history"),
        ("history/0", None, "history/0"),
        ("history/x", np.zeros(3), "blobs named 0, 1, x"),
        ("history/0", np.zeros(3, np.int64), "values of int64; wanted float32 or float64"),
    ],
)
def test_no_hdf5_state(name: str, value: np.ndarray | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.solverstate.h5"
    both = SolverState(3, "w", 1, [np.ones(2, np.float32), np.ones(3, np.float32)])
    write_solverstate(both, path)
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value
    with pytest.raises(FormatError, match=re.escape(message)):
        read_solverstate(path)


def test_hdf5_link_out_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.solverstate.h5"
    write_solverstate(state(), path)
    with h5py.File(path, "r+") as file:
        del file["iter"]
        file["iter"] = h5py.ExternalLink("elsewhere.h5", "iter")
    with pytest.raises(FormatError, match="no dataset iter"):
        read_solverstate(path)


def assert_equal(found: SolverState, wanted: SolverState) -> None:
    assert (found.iter, found.learned_net, found.current_step) == (
        wanted.iter, wanted.learned_net, wanted.current_step)  # fmt: skip
    for a, b in zip(found.history, wanted.history, strict=True):
        np.testing.assert_array_equal(a, b, strict=False)
        assert a.shape == b.shape


def test_an_hdf5_state_that_grows_over_the_limit(tmp_path: Path) -> None:
    state = SolverState(1, "x", 0, [np.ones((50, 100), np.float32)] * 20)
    path, old = tmp_path / "a.solverstate.h5", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, old[1]))
    try:
        with pytest.raises(FileError, match="the file grows over the limit"):
            write_solverstate(state, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(tmp_path.iterdir()) == []
