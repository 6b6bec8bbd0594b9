"""Caffe's solver states: `.solverstate` (a SolverState message) and `.solverstate.h5`.

Follows `SGDSolver::SnapshotSolverStateToBinaryProto`, `...ToHDF5` and their restoring counterparts in
`src/caffe/solvers/sgd_solver.cpp` of BVLC/caffe at 9b891540. The HDF5 form holds `iter` and `current_step`
(int32, one value), `learned_net` (a string) and `history/<i>`. Departures: a state is written whole or not at
all, and one that names no iteration is refused (Caffe starts from 0).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from google.protobuf.message import DecodeError

from caffe_weights import caffe_pb2, wire
from caffe_weights.caffemodel import blob_proto_array, check_text, encode_blob
from caffe_weights.errors import FileError, FormatError
from caffe_weights.files import PathLike, replace_file
from caffe_weights.hdf5 import MOST_INFLATED_BYTES, check_room, read_blobs
from caffe_weights.mapped import CAFFE_MOST_BYTES, MappedFile, open_mapped
from caffe_weights.weights import is_absent

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
EXTENSIONS = (".solverstate", ".solverstate.h5")
HISTORY = 3  # field of SolverState
MOST_NAME_BYTES = 1 << 16


@dataclass
class SolverState:
    """What a solver needs to go on, besides the weights.

    `iter` counts the updates made; `learned_net` is the path of the weights as it was when they were written,
    "" if there is none; `history` holds float32 or float64 arrays in the order of the learnable parameters,
    all of one kind before all of the next.
    """

    iter: int
    learned_net: str
    current_step: int
    history: list[np.ndarray]


def read_solverstate(path: PathLike) -> SolverState:
    """A solver state in either form, by its first bytes; the history are read-only views of the file.

    FileError or FormatError where it is missing, damaged or of another kind.
    """
    mapped = open_mapped(path)
    read = _read_hdf5 if mapped[: len(HDF5_MAGIC)] == HDF5_MAGIC else _read_binary
    state = read(path, mapped)
    for name in ("iter", "current_step"):
        if getattr(state, name) < 0:
            raise FormatError(str(path), f"{name} {getattr(state, name)}", "0 or more", "the file is damaged")
    return state


def write_solverstate(state: SolverState, path: PathLike, force: bool = False) -> None:
    """Write a state as Caffe would, in the form its extension says, whole or not at all.

    FileError for another extension, a state over Caffe's 2 GiB of a binary file, a file that exists
    without `force` or cannot be written.
    """
    if not str(path).endswith(EXTENSIONS):
        raise FileError(str(path), "an extension of no solver state", " or ".join(EXTENSIONS), "rename it")
    binary = str(path).endswith(EXTENSIONS[0])
    if binary and sum(array.nbytes for array in state.history) > CAFFE_MOST_BYTES - (1 << 20):
        raise FileError(str(path), "a state of over 2 GiB", "less", "set snapshot_format: HDF5")
    with replace_file(path, force) as temporary:
        (_write_binary if binary else _write_hdf5)(state, temporary)


def _read_binary(path: PathLike, mapped: MappedFile) -> SolverState:
    where = str(path)
    stripped = wire.strip(mapped, 0, len(mapped), wire.SOLVER_STATE, where)
    try:
        message = caffe_pb2.SolverState.FromString(stripped.rest)
    except (DecodeError, UnicodeDecodeError, ValueError) as error:
        raise FormatError(where, f"no solver state ({error})", do="the file is damaged") from None
    if not message.HasField("iter"):
        raise FormatError(where, "no iteration", "a solver state", "is it a caffemodel?")
    check_text(message.learned_net, where)
    history = [
        blob_proto_array(blob, payload, mapped, f"{where}: history {i}")
        for i, (blob, payload) in enumerate(zip(message.history, stripped.blobs, strict=True))
    ]
    return SolverState(message.iter, message.learned_net, message.current_step, history)


def _write_binary(state: SolverState, path: Path) -> None:
    head = caffe_pb2.SolverState(iter=state.iter, learned_net=state.learned_net)
    with open(path, "r+b", buffering=0) as out:
        out.write(head.SerializeToString(deterministic=True))
        for array in _plain(state.history):
            blob = encode_blob(array, HISTORY)
            blob.write(out)
        out.write(caffe_pb2.SolverState(current_step=state.current_step).SerializeToString())


def _read_hdf5(path: PathLike, mapped: MappedFile) -> SolverState:
    where = str(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            group = _member(file, "history", h5py.Group, where)
            history = read_blobs(group, f"{where}: history", mapped, [len(mapped) + MOST_INFLATED_BYTES])
            state = SolverState(_number(file, "iter", where), _name(file, where),
                                _number(file, "current_step", where), history)  # fmt: skip
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        detail = str(error).split("\n")[0]
        raise FormatError(where, f"a broken HDF5 file ({detail})", do="copy it again") from None
    for i, array in enumerate(history):
        if is_absent(array):
            raise FormatError(where, f"no history/{i}", f"all up to history/{len(history) - 1}")
    return state


def _number(file: h5py.File, name: str, where: str) -> int:
    dataset = _member(file, name, h5py.Dataset, where)
    if dataset.size != 1 or dataset.dtype.kind not in "iu":
        raise FormatError(where, f"{name} of {dataset.size} values of {dataset.dtype}", "one whole number")
    return int(np.asarray(dataset[()]).reshape(()))


def _name(file: h5py.File, where: str) -> str:
    if "learned_net" not in file:
        return ""
    dataset = _member(file, "learned_net", h5py.Dataset, where)
    if dataset.shape != () or dataset.dtype.kind not in "SO" or dataset.dtype.itemsize > MOST_NAME_BYTES:
        raise FormatError(where, f"learned_net of {dataset.dtype}", "a string")
    value = dataset[()]
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _member(file: h5py.File, name: str, kind: type, where: str) -> Any:
    found = file.get(name, getlink=True)
    if not isinstance(found, h5py.HardLink) or not isinstance(file[name], kind):
        raise FormatError(
            where, f"no {kind.__name__.lower()} {name}", "a solver state", "is it a caffemodel?"
        )
    return file[name]


def _write_hdf5(state: SolverState, path: Path) -> None:
    check_room(path, {"history": state.history})
    with h5py.File(path, "w", libver="earliest") as file:
        for name in ("iter", "current_step"):
            values = np.array([getattr(state, name)], np.int32)
            file.create_dataset(name, data=values, track_times=False)
        text = state.learned_net.encode("utf-8", "surrogateescape")
        kind = h5py.h5t.C_S1.copy()  # a string that ends in 0, as H5LTmake_dataset_string makes it
        kind.set_size(len(text) + 1)
        dataset = h5py.h5d.create(file.id, b"learned_net", kind, h5py.h5s.create(h5py.h5s.SCALAR))
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(text, f"S{len(text) + 1}"), kind)
        group = file.create_group("history")
        for i, array in enumerate(_plain(state.history)):
            group.create_dataset(str(i), data=array, track_times=False)


def _plain(arrays: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """Native float64 as it is, all else as float32."""
    for array in arrays:
        yield np.asarray(array, np.float64 if array.dtype == np.float64 else np.float32, order="C")
