"""What a snapshot holds, and how it comes to lie on the disk.

Caffe's part follows `Solver::Snapshot` in `src/caffe/solver.cpp`, `Net::ToProto` and `ToHDF5` in `net.cpp` of
BVLC/caffe at 9b891540: PREFIX_iter_N.caffemodel and .solverstate, or both with .h5. Ours is a third file,
PREFIX_iter_N.resume.pt, which holds what Caffe forgets: random states, the position in the data, the losses
that are averaged, the states carried by recurrent layers. With it a run that was killed goes on bit for bit.

Each file appears whole or not at all, the solver state last: where it lies, the others do.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffe_weights.caffe_pb2 import TEST, TRAIN, NetParameter
from caffe_weights.errors import FileError, FormatError, InputError
from caffe_weights.export import write_weights
from caffe_weights.files import PathLike, as_file_error, open_input, replace_file
from caffe_weights.solverstate import EXTENSIONS, SolverState, write_solverstate
from caffe_weights.weights import ABSENT, Weights
from reproduce.layers.recurrent import Recurrent
from reproduce.net import Net

# snapshot_format -> extension of the weights, of the solver state
FORMATS = {"BINARYPROTO": (".caffemodel", EXTENSIONS[0]), "HDF5": (".caffemodel.h5", EXTENSIONS[1])}
RESUME = ".resume.pt"
_STATE = re.compile(r"(?P<stem>.*_iter_(?P<iter>[0-9]+))\.solverstate(\.h5)?")
_PART = re.compile(r"(?P<iter>[0-9]+)\.((solverstate|caffemodel)(\.h5)?|resume\.pt)")


def write_snapshot(stem: str, form: str, net: Net, state: SolverState, resume: dict[str, Any]) -> Path:
    """Write the three files STEM.*; the path of the solver state. Existing ones are replaced.

    `state.learned_net` is set to the path of the weights. FileError, WeightsError.
    """
    weights_extension, state_extension = FORMATS[form]
    target = Path(stem + state_extension)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # what is being replaced is no snapshot any more
    except OSError as error:
        raise as_file_error(target, error) from None
    state.learned_net = stem + weights_extension
    write_net_weights(net, state.learned_net)
    with replace_file(stem + RESUME, force=True) as temporary:
        torch.save({**resume, "fingerprint": fingerprint(state)}, temporary)
    write_solverstate(state, target, force=True)
    return target


def write_net_weights(net: Net, path: PathLike) -> None:
    """Write a net's parameters as Caffe's solver does: all layers with their phase."""
    weights = net.weights()
    assert weights.net is not None
    definition = saved_definition(weights.net, net.phase)
    if not str(path).endswith(".h5"):
        write_weights(Weights(weights), path, definition, force=True)
        return
    owned = {(slot.layer, slot.index) for slot in net.learnable()}
    blobs = {
        layer.name: [
            array if (layer.name, i) in owned else ABSENT
            for i, array in enumerate(weights.get(layer.name, ()))
        ]
        for layer in definition.layer
    }
    write_weights(Weights(blobs), path, force=True)


def saved_definition(net: NetParameter, phase: str) -> NetParameter:
    """A net with its splits as Caffe saves it: name and layers, each with what its set-up adds to it."""
    saved = NetParameter(layer=net.layer)
    if net.HasField("name"):
        saved.name = net.name
    for layer in saved.layer:
        layer.ClearField("blobs")
        if not layer.HasField("phase"):
            layer.phase = TRAIN if phase == "TRAIN" else TEST
        if layer.type.endswith("Loss") and not layer.loss_weight:
            layer.loss_weight.append(1)
        while layer.type == "BatchNorm" and len(layer.param) < 3:
            layer.param.add(lr_mult=0)
    return saved


def check_snapshots(prefix: str, form: str, net: Net) -> None:
    """InputError where a snapshot could not be written later, so that it is known before training."""
    if not prefix:
        raise InputError("solver", "no snapshot_prefix", "where snapshots go", "set it")
    folder = Path(f"{prefix}_iter_0").absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise FileError(str(folder), "snapshots cannot be written here", "a folder that can be written to",
                        "correct snapshot_prefix")  # fmt: skip
    slashed = next((layer.name for layer in net.definition.layer if "/" in layer.name), None)
    if form == "HDF5" and slashed is not None:
        raise InputError("solver: snapshot_format", f"HDF5, which cannot hold the layer name {slashed!r}",
                         "BINARYPROTO", "set it")  # fmt: skip


def latest_snapshot(prefix: PathLike) -> Path | None:
    """The solver state of the most updates among PREFIX_iter_N.*, or None; of two forms the newer file."""
    start = Path(f"{os.fspath(prefix)}_iter_")
    found = []
    for path in start.parent.glob("*.solverstate*") if start.parent.is_dir() else ():
        match = _STATE.fullmatch(path.name)
        if match and path.name == f"{start.name}{match['iter']}{path.name[match.end('iter') :]}":
            with suppress(FileNotFoundError):  # another process may remove old ones
                found.append((int(match["iter"]), path.stat().st_mtime_ns, path))
    return max(found)[2] if found else None


def prune_snapshots(prefix: PathLike, keep: int) -> list[Path]:
    """Remove all snapshots PREFIX_iter_N.* but the `keep` of the most updates; the files removed.

    A snapshot without its solver state is none, and goes too, if a complete one has more updates. Of each the
    solver state goes first, so that what is left of it, should this be cut short, is taken for no snapshot.
    FileError.
    """
    start = Path(f"{os.fspath(prefix)}_iter_")
    files: dict[int, list[Path]] = {}
    for path in sorted(start.parent.glob("*")) if start.parent.is_dir() else ():
        match = _PART.fullmatch(path.name.removeprefix(start.name))
        if match and path.name.startswith(start.name):
            files.setdefault(int(match["iter"]), []).append(path)
    complete = sorted(number for number, paths in files.items() if any(map(_is_state, paths)))
    if len(complete) < 1 or keep < 1:
        return []
    kept = complete[-keep:]
    old = [path for number, paths in files.items() if number not in kept and number < kept[-1]
           for path in sorted(paths, key=_is_state, reverse=True)]  # fmt: skip
    for path in old:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise as_file_error(path, error) from None
    return old


def _is_state(path: Path) -> bool:
    return _STATE.fullmatch(path.name) is not None


def find_learned_net(state: SolverState, path: PathLike) -> Path | None:
    """The weights that belong to a solver state: beside it, else where it says (from the working directory).

    None where it names none. FileError where they are missing.
    """
    if not state.learned_net:
        return None
    for candidate in (Path(path).parent / Path(state.learned_net).name, Path(state.learned_net)):
        if candidate.is_file():
            return candidate
    raise FileError(str(path), f"its weights {state.learned_net} are missing", "them beside the solver state",
                    "copy them there")  # fmt: skip


def read_resume(path: PathLike, state: SolverState) -> dict[str, Any] | None:
    """What our own part of a snapshot holds; None where there is none, or one of another run.

    FormatError for a damaged file.
    """
    match = _STATE.fullmatch(Path(path).name)
    side = Path(path).with_name((match["stem"] if match else Path(path).stem) + RESUME)
    if not side.exists():
        return None
    try:
        with open_input(side) as stream:
            resume = torch.load(stream, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        detail = str(error).split("\n")[0][:80]
        raise FormatError(str(side), f"damaged ({detail})", "the file as it was written",
                          "remove it to go on without random states and data position") from None  # fmt: skip
    same = isinstance(resume, dict) and resume.get("fingerprint") == fingerprint(state)
    return resume if same else None


def fingerprint(state: SolverState) -> int:
    """A number of a solver's iteration and history, to tell which files belong together."""
    code = zlib.crc32(f"{state.iter} {state.current_step}".encode())
    for array in state.history:
        code = zlib.crc32(np.ascontiguousarray(array).data, code)
    return code


def random_states() -> dict[str, Any]:
    """The states of all global generators: PyTorch's, on every device, Python's and numpy's."""
    name, keys, *rest = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate(),
            "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest]}  # fmt: skip


def set_random_states(states: dict[str, Any]) -> None:
    """Put the generators where `random_states` found them."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def carried_states(net: Net) -> dict[str, list[torch.Tensor]]:
    """What recurrent layers carry into the next pass, by layer."""
    return {layer.name: layer.state for layer in _recurrent(net)}


def set_carried_states(net: Net, states: dict[str, list[torch.Tensor]]) -> None:
    """Put back what `carried_states` found."""
    for layer in _recurrent(net):
        layer.state = list(states.get(layer.name, []))


def _recurrent(net: Net) -> Iterable[Recurrent]:
    return (layer for layer in net.layers if isinstance(layer, Recurrent))
