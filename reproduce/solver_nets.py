"""The nets that a solver trains and tests.

Follows `Solver::InitTrainNet`, `InitTestNets` and `LoadNetWeights` in `src/caffe/solver.cpp` and
`Net::ShareTrainedLayersWith` in `net.cpp` of BVLC/caffe at 9b891540. Departure: a file that a solver names is
looked for beside the solver first, then in the working directory, where Caffe only looks.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from caffe_weights.caffe_pb2 import TEST, TRAIN, NetParameter, NetState, SolverParameter
from caffe_weights.errors import FileError, InputError, NetError, WeightsError, in_net
from caffe_weights.export import read_weights
from caffe_weights.upgrade import load_net, upgrade_net
from caffe_weights.weights import Weights
from reproduce.net import Net

TRAIN_FIELDS = ("train_net_param", "train_net", "net_param", "net")  # in the order of Caffe's preference


class NetSource(NamedTuple):
    """A net definition and the file it came from."""

    net: NetParameter
    path: Path | None


def find_file(name: str, folder: Path) -> Path:
    """The file a solver in `folder` names: beside the solver, else in the working directory. FileError."""
    for path in (folder / name, Path(name)):
        if path.exists():
            return path
    where = "" if folder in (Path(), Path.cwd()) else f" or {folder}"
    raise FileError(name, "no such file", f"it in the working directory{where}", "correct the solver")


def train_definition(solver: SolverParameter, folder: Path) -> NetSource:
    """The net to train, in today's form, its `state` merged: phase TRAIN, then the net's own, train_state."""
    given = [name for name in TRAIN_FIELDS if solver.HasField(name)]
    if len(given) != 1:
        raise InputError("solver", " and ".join(given) or "no net to train",
                         "one of net, net_param, train_net, train_net_param", "correct it")  # fmt: skip
    source = _load(getattr(solver, given[0]), folder)
    more = [solver.train_state] if solver.HasField("train_state") else []
    _merge_state(source.net, NetState(phase=TRAIN), more)
    return source


def test_definitions(solver: SolverParameter, folder: Path) -> list[NetSource]:
    """The nets to test, one a test_iter: test_net_param, test_net, then the general net for the rest."""
    own: list[str | NetParameter] = [*solver.test_net_param, *solver.test_net]
    general = [getattr(solver, name) for name in ("net_param", "net") if solver.HasField(name)]
    count, wanted = len(solver.test_iter), f"{len(own)}, one for each test net"
    if count < len(own) or (count > len(own) and not general):
        wanted += ", or more for further tests of net" if general else ""
        raise InputError("solver: test_iter", f"{count} of them", wanted, "correct test_iter")
    if solver.test_state and len(solver.test_state) != count:
        raise InputError("solver: test_state", f"{len(solver.test_state)} of them", f"none or {count}")
    if count and solver.test_interval < 1:
        raise InputError(
            "solver: test_interval", f"{solver.test_interval}", "at least 1, as there are test nets"
        )
    if any(number < 1 for number in solver.test_iter):
        raise InputError("solver: test_iter", f"{min(solver.test_iter)}", "at least 1")
    sources = [_load(net, folder) for net in own + general * (count - len(own))]
    for i, source in enumerate(sources):
        _merge_state(source.net, NetState(phase=TEST), solver.test_state[i : i + 1])
    return sources


def make_test_net(source: NetSource, train: Net, options: dict[str, Any]) -> Net:
    """A net that shares the parameters of `train`, layer by layer of the same name; it fills the others."""
    shared = Weights({name: [t.detach().numpy() for t in tensors] for name, tensors in train.params.items()},
                     source="the train net")  # fmt: skip
    with in_net(source.path):
        net = Net(source.net, shared, phase=None, strict=False, **options)
        net.share_with(train)
    return net


def load_weights(net: Net, weights: str | Path | Weights) -> None:
    """Copy weights in by layer name, as Caffe does: layers on one side only are left alone.

    WeightsError where a shape differs, or no layer of the net is found.
    """
    if not isinstance(weights, Weights):
        weights = read_weights(weights)
    if net.params and not any(name in weights for name in net.params):
        raise WeightsError(weights.source or "weights", f"none of the net's layers {_some(net.params)}",
                           "at least one", "rename layers, or give other weights")  # fmt: skip
    net.load_weights(weights, strict=False)


def check_losses(net: Net) -> None:
    """NetError where there is nothing to minimise."""
    if not net.loss_weights:
        raise NetError(
            "net to train", "no loss", "a layer with a loss weight", "add one, or check the phases"
        )


def _load(source: str | NetParameter, folder: Path) -> NetSource:
    if not isinstance(source, str):
        return NetSource(upgrade_net(source), None)
    path = find_file(source, folder)
    return NetSource(load_net(path), path)


def _merge_state(net: NetParameter, state: NetState, more: Iterable[NetState]) -> None:
    state.MergeFrom(net.state)
    for item in more:
        state.MergeFrom(item)
    net.state.CopyFrom(state)


def _some(names: Iterable[str]) -> str:
    first, *rest = names
    return f"{first}, ..." if rest else first
