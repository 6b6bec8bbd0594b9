"""Caffe's solver: trains a net, shows its loss, tests, writes snapshots and goes on from them.

Follows `Solver::Step`, `Solve`, `Test`, `Snapshot` and `UpdateSmoothedLoss` in `src/caffe/solver.cpp` of
BVLC/caffe at 9b891540. One iteration: test if due; iter_size forward and backward passes whose gradients add
up; smooth and display the loss; read the rate and update; snapshot if due.

Departures: data is given to `step` or pulled by `solve` unless the net's own data layers read it; each test
starts at its first batch again; the losses that are averaged are kept from step to step, since a step is one
iteration; the end of `solve` shows no further loss, which would use up a batch; `device` decides where to
compute, not solver_mode. Snapshots hold more, see `reproduce.snapshots`. In N processes of torch.distributed
each one does iter_size / N of the passes, and the gradients are summed: the update is that of one process,
unless layers have statistics of the batch (BatchNorm), of which the first process keeps its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from caffe_weights.caffe_pb2 import SolverParameter
from caffe_weights.errors import InputError, WeightsError, in_net
from caffe_weights.export import read_weights
from caffe_weights.solverstate import SolverState, read_solverstate
from caffe_weights.upgrade import load_solver, upgrade_solver
from caffe_weights.weights import Weights
from reproduce.layers.product import weights_last
from reproduce.learning_rate import LearningRate
from reproduce.memory import return_freed_memory
from reproduce.net import ArrayLike, Net
from reproduce.optimizers import OPTIMIZERS, CaffeOptimizer
from reproduce.precision import Precision
from reproduce.snapshots import (
    carried_states,
    check_snapshots,
    find_learned_net,
    random_states,
    read_resume,
    set_carried_states,
    set_random_states,
    write_snapshot,
)
from reproduce.solver_nets import (
    check_losses,
    find_file,
    load_weights,
    make_test_net,
    test_definitions,
    train_definition,
)

Batch = Mapping[str, ArrayLike]
Source = Callable[[int], Batch]  # the batch of a forward pass, counted from 0 since the first iteration

log = logging.getLogger(__name__)


class Solver:
    """A net in training.

    `net` is it, in phase TRAIN; `test_nets` share its parameters. `iteration` counts the updates made,
    `passes` the forward passes, of all processes together; `smoothed_loss` is the mean of the last
    `average_loss` losses, and `optimizer` makes the updates. `test_data` holds a source for each test net:
    without, nothing is tested. Objects in `states` with state_dict and load_state_dict, such as a data loader
    or a generator, go into snapshots and back.

    What Caffe prints is logged, at INFO, to the logger `reproduce.solver`.
    """

    def __init__(
        self,
        solver: SolverParameter,
        weights: str | Path | Weights | None = None,
        *,
        folder: str | Path = "",
        device: str | torch.device = "cpu",
        precision: str = "float32",
        checkpoint: bool = False,
        **options: Any,
    ) -> None:
        """Build the nets of `solver`, whose files are looked for in `folder` first.

        `weights` are copied in by layer name, after those that the solver itself names; what they lack is
        filled (random_seed fixes it, and seeds PyTorch's generator). `precision` is one of
        `reproduce.precision`, of the test nets too; with `checkpoint` the backward pass computes blobs again,
        see `reproduce.checkpointing`. `options` are those of `Net`: input_shapes, crop. InputError or a kind
        of it for a solver, a net or weights that cannot be used.
        """
        return_freed_memory()
        self.param, self.folder = upgrade_solver(solver), Path(folder)
        _check(self.param)
        self.precision = Precision(precision, device)
        self.rank, self.processes = _place()
        self.rate = LearningRate(self.param)
        self.net, self.test_nets = self._make_nets([] if weights is None else [weights], options)
        for net in (self.net, *self.test_nets):
            self.precision.prepare(net.to(device))
        self.net.checkpointing = checkpoint
        self._share_start()
        self.optimizer = make_optimizer(self.param, self.net)
        self.form = SolverParameter.SnapshotFormat.Name(self.param.snapshot_format)
        if self.param.snapshot:
            check_snapshots(self.param.snapshot_prefix, self.form, self.net)
        self.iteration = self.passes = 0
        self.smoothed_loss = 0.0
        self._losses: list[float] = []
        self._first = 0  # the iteration of the first loss
        self.test_data: Sequence[Source] = ()
        self.on_test: Callable[[int, dict[str, np.ndarray]], None] | None = None
        scaler = self.precision.scaler
        self.states: dict[str, Any] = {"scaler": scaler} if scaler else {}
        self._shown = (0, time.monotonic())

    @classmethod
    def from_prototxt(
        cls, path: str | Path, weights: str | Path | Weights | None = None, **options: Any
    ) -> Solver:
        """The solver of a prototxt of any age. Also PrototxtError, UpgradeError, FileError."""
        try:
            return cls(load_solver(path), weights, folder=Path(path).parent, **options)
        except InputError as error:
            if not error.where.startswith("solver"):
                raise
            raise InputError(f"{path}: {error.where}", error.found, error.wanted, error.do) from None

    def step(self, batch: Batch | Sequence[Batch] | None = None) -> float:
        """One iteration; the loss before its update, the mean over iter_size passes.

        `batch` holds the inputs by blob name; a list of iter_size of them (of this process's part) when
        iter_size > 1; nothing for a net without inputs. A test or snapshot that is due is made. InputError
        for another number of batches, NetError for inputs that the net refuses.
        """
        batches = self._batches(batch)
        self.test_if_due()
        loss = self._accumulate(batches)
        self._smooth(loss)
        shown = self.param.display and self.iteration % self.param.display == 0
        rate = self.rate(self.iteration)
        if shown:
            self._show(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.precision.step(self.optimizer)
        self.iteration += 1
        self.passes += self.param.iter_size
        if self.param.snapshot and self.iteration % self.param.snapshot == 0:
            self.snapshot()
        return loss

    def solve(self, data: Source | None = None) -> None:
        """Train until max_iter, with `data` asked for the batch of each pass by its number.

        As Caffe's, it ends with a snapshot, unless snapshot_after_train is false, and a test.
        """
        if not self.param.HasField("max_iter"):
            raise InputError("solver", "no max_iter", "the number of iterations", "set it")
        if self.param.snapshot_after_train:
            check_snapshots(self.param.snapshot_prefix, self.form, self.net)
        while self.iteration < self.param.max_iter:
            self.step(None if data is None else self.pull(data))
        if self.param.snapshot_after_train and not self._just_saved():
            self.snapshot()
        self.test_if_due()

    def pull(self, data: Source) -> list[Batch]:
        """The batches of the next iteration, of this process's part."""
        count = self.param.iter_size // self.processes
        first = self.passes + self.rank * count
        return [data(number) for number in range(first, first + count)]

    def test(self, index: int = 0, data: Source | None = None) -> dict[str, np.ndarray]:
        """Mean of each output of a test net over its test_iter batches; `data` is asked for 0, 1, ...

        With test_compute_loss also "total_loss".
        """
        net, count = self.test_nets[index], self.param.test_iter[index]
        sums: dict[str, np.ndarray] = {}
        for number in range(count):
            with self.precision.forward():
                batch = data(number) if data is not None else {}
                blobs = _outputs(net, batch, self.param.test_compute_loss)
            for name, values in blobs.items():
                if name in sums and sums[name].shape != values.shape:
                    raise InputError(f"test net {index}: output {name}", f"shapes {sums[name].shape} and "
                                     f"{values.shape}", "one shape", "let Silence read it")  # fmt: skip
                sums[name] = sums.get(name, 0) + values
        return {name: np.asarray(values / count) for name, values in sums.items()}

    def snapshot(self) -> Path:
        """Write weights, solver state and what is ours; the path of the solver state, which `restore` takes.

        Of several processes all must call it, the first writes.
        """
        stem = f"{self.param.snapshot_prefix}_iter_{self.iteration}"
        path = Path(stem + (".solverstate" if self.form == "BINARYPROTO" else ".solverstate.h5"))
        generators = _gather(random_states(), self.processes)
        if self.rank == 0:
            check_snapshots(self.param.snapshot_prefix, self.form, self.net)
            resume = {
                "random": generators, "passes": self.passes, "smoothed_loss": self.smoothed_loss,
                "losses": self._losses, "first": self._first, "carried": carried_states(self.net),
                "states": {name: item.state_dict() for name, item in self.states.items()},
            }  # fmt: skip
            write_snapshot(stem, self.form, self.net, self._state(), resume)
            log.info("Snapshotting solver state to %s", path)
        if self.processes > 1:
            distributed.barrier()  # none reads it before it is there
        return path

    def restore(self, path: str | Path) -> None:
        """Go on from a solver state of ours or of Caffe's, in either form.

        Of a snapshot of Caffe's the random state is unknown and `passes` is as if all had been of
        iter_size. FileError, FormatError, WeightsError.
        """
        state = read_solverstate(path)
        history = self._matched(state, str(path))
        learned = find_learned_net(state, path)
        resume = read_resume(path, state)
        if learned is not None:
            self.net.load_weights(read_weights(learned))
        for (p, name), array in history:
            values = self.optimizer.state_of(p)
            values["step"] = state.iter
            values[name] = torch.from_numpy(np.array(array.reshape(p.shape))).to(p)
        self.iteration, self.rate.current_step = state.iter, state.current_step
        self.passes = state.iter * self.param.iter_size
        self._losses, self._first, self.smoothed_loss = [], state.iter, 0.0
        if resume is None:
            log.warning("%s: no random state and data position beside it, both start anew", path)
        else:
            self._resume(resume)

    def _make_nets(
        self, weights: Sequence[str | Path | Weights], options: dict[str, Any]
    ) -> tuple[Net, list[Net]]:
        """The net to train, with its weights, and those to test, which share them."""
        tests = test_definitions(self.param, self.folder)
        train = train_definition(self.param, self.folder)
        seed = self.param.random_seed if self.param.random_seed >= 0 else None
        if seed is not None:
            torch.manual_seed(seed + self.rank)
        with in_net(train.path):
            net = Net(train.net, phase=None, seed=seed, **options)
            check_losses(net)
        for source in [*self._own_weights(), *weights]:
            load_weights(net, source)
        return net, [make_test_net(item, net, options) for item in tests]

    def _own_weights(self) -> list[Path]:
        names = [name.strip() for item in self.param.weights for name in item.split(",")]
        return [find_file(name, self.folder) for name in names]

    def _share_start(self) -> None:
        if self.processes > 1:
            for slot in self.net.learnable():
                distributed.broadcast(slot.parameter().data, 0)

    def _batches(self, batch: Batch | Sequence[Batch] | None) -> Sequence[Batch]:
        count = self.param.iter_size // self.processes
        if batch is None and not self.net.fed:
            return [{}] * count
        batches = [batch] if isinstance(batch, Mapping) else batch
        if not isinstance(batches, Sequence) or not all(isinstance(item, Mapping) for item in batches):
            raise InputError("batch", f"a {type(batch).__name__}", f"a dict of {', '.join(self.net.inputs)}")
        if len(batches) != count:
            each = f"iter_size {self.param.iter_size} in {self.processes} processes"
            raise InputError("batch", f"{len(batches)} of them", f"{count}, for {each}", "pass a list")
        return batches

    def _accumulate(self, batches: Sequence[Batch]) -> float:
        parameters = [slot.parameter() for slot in self.net.learnable()]
        for p in parameters:
            p.grad = None  # no gradients in memory while blobs grow
        total = torch.zeros((), dtype=torch.float64)
        with torch.enable_grad():
            for batch in batches:
                with self.precision.forward():
                    loss = self.net.total_loss(self.net(**batch, keep=self.net.loss_weights))
                if loss.requires_grad:
                    with weights_last():
                        self.precision.scaled(loss).backward()
                total = total.to(loss.device) + loss.detach()
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        if self.processes > 1:
            distributed.all_reduce(total)
            for p in parameters:
                if p.requires_grad:
                    distributed.all_reduce(p.grad)
        return float(total) / self.param.iter_size

    def _smooth(self, loss: float) -> None:
        size = self.param.average_loss
        if len(self._losses) < size:
            self._losses.append(loss)
            count = len(self._losses)
            self.smoothed_loss = (self.smoothed_loss * (count - 1) + loss) / count
        else:
            place = (self.iteration - self._first) % size
            self.smoothed_loss += (loss - self._losses[place]) / size
            self._losses[place] = loss

    def _show(self, rate: float) -> None:
        if self.rank:
            return
        (before, then), now = self._shown, time.monotonic()
        self._shown = (self.iteration, now)
        done, seconds = self.iteration - before, now - then
        speed = f" ({done / seconds:.4g} iter/s, {seconds:.4g}s/{done} iters)" if done and seconds else ""
        log.info("Iteration %d%s, loss = %.6g", self.iteration, speed, self.smoothed_loss)
        log.info("Iteration %d, lr = %.6g", self.iteration, rate)

    def test_if_due(self) -> None:
        """Run the tests that Caffe makes at this iteration: log them, and tell them to `on_test`."""
        interval = self.param.test_interval
        if (
            not interval
            or self.iteration % interval
            or not (self.iteration or self.param.test_initialization)
        ):
            return
        for i, net in enumerate(self.test_nets):
            data = self.test_data[i] if i < len(self.test_data) else None
            if data is None and net.fed:
                continue
            log.info("Iteration %d, Testing net (#%d)", self.iteration, i)
            found = self.test(i, data)
            if self.on_test is not None:
                self.on_test(i, found)
            for name, values in found.items():
                for value in values.reshape(-1)[:1000]:
                    log.info("    Test net output: %s = %.6g", name, value)

    def _just_saved(self) -> bool:
        return bool(self.param.snapshot) and self.iteration % self.param.snapshot == 0

    def _history(self) -> list[tuple[torch.nn.Parameter, str]]:
        parameters = [slot.parameter() for slot in self.net.learnable()]
        return [(p, name) for name in self.optimizer.histories for p in parameters]

    def _state(self) -> SolverState:
        arrays = [self.optimizer.state_of(p)[name].cpu().numpy() for p, name in self._history()]
        return SolverState(self.iteration, "", self.rate.current_step, arrays)

    def _matched(self, state: SolverState, path: str) -> list[tuple[Any, np.ndarray]]:
        places = self._history()
        if len(state.history) != len(places):
            kind = f"{len(places)}, of {self.param.type} with {len(self.net.learnable())} parameters"
            raise WeightsError(path, f"a history of {len(state.history)} blobs", kind,
                               "resume with the net and the solver type it was written by")  # fmt: skip
        for i, ((p, _), array) in enumerate(zip(places, state.history, strict=True)):
            if _without_ones(array.shape) != _without_ones(tuple(p.shape)):
                raise WeightsError(f"{path}: history {i}", f"shape {array.shape}", f"{tuple(p.shape)}",
                                   "resume with the net it was written by")  # fmt: skip
        return list(zip(places, state.history, strict=True))

    def _resume(self, resume: dict[str, Any]) -> None:
        self.passes, self.smoothed_loss = resume["passes"], resume["smoothed_loss"]
        self._losses, self._first = list(resume["losses"]), resume["first"]
        set_carried_states(self.net, resume["carried"])
        for name, item in self.states.items():
            if name in resume["states"]:
                item.load_state_dict(resume["states"][name])
        if len(resume["random"]) == self.processes:
            set_random_states(resume["random"][self.rank])


def make_optimizer(solver: SolverParameter, net: Net) -> CaffeOptimizer:
    """The optimizer a solver asks for, a group for each learnable parameter of the net.

    A parameter that gets no gradient, as with lr_mult 0, has rate 0. InputError for an unknown type, and
    for options the type does not take.
    """
    if solver.type not in OPTIMIZERS:
        raise InputError("solver: type", repr(solver.type), "one of " + ", ".join(OPTIMIZERS), "correct it")
    kind = OPTIMIZERS[solver.type]
    if solver.momentum and "momentum" not in kind.options:
        raise InputError("solver: momentum", f"{solver.momentum:g}", f"none with {solver.type}", "remove it")
    groups = [
        {"params": [slot.parameter()], "decay_mult": slot.decay_mult,
         "lr_mult": slot.lr_mult if slot.parameter().requires_grad else 0.0}
        for slot in net.learnable()
    ]  # fmt: skip
    try:
        return kind(
            groups, lr=solver.base_lr, weight_decay=solver.weight_decay, iter_size=solver.iter_size,
            regularization=solver.regularization_type, clip_gradients=solver.clip_gradients,
            **{name: getattr(solver, name) for name in kind.options},
        )  # fmt: skip
    except InputError as error:
        raise InputError(f"solver: {error.where}", error.found, error.wanted, error.do) from None


def _check(solver: SolverParameter) -> None:
    """InputError for numbers out of range; the other fields are checked where they are used."""
    for name, least in {"iter_size": 1, "average_loss": 1, "display": 0, "snapshot": 0, "test_interval": 0,
                        "max_iter": 0}.items():  # fmt: skip
        if getattr(solver, name) < least:
            raise InputError(f"solver: {name}", f"{getattr(solver, name)}", f"at least {least}", "correct it")
    if solver.snapshot_diff:
        raise InputError("solver: snapshot_diff", "true", "false", "gradients are not written; remove it")
    processes = _place()[1]
    if solver.iter_size % processes:
        raise InputError("solver: iter_size", f"{solver.iter_size}", f"a multiple of {processes} processes")


def _place() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _gather(value: Any, processes: int) -> list[Any]:
    if processes == 1:
        return [value]
    gathered: list[Any] = [None] * processes
    distributed.all_gather_object(gathered, value)
    return gathered


def _outputs(net: Net, batch: Batch, with_loss: bool) -> dict[str, np.ndarray]:
    with torch.no_grad():
        blobs = net(**batch, keep=net.loss_weights if with_loss else ())
        values = {name: blobs[name].double().cpu().numpy() for name in net.outputs if name in blobs}
        if with_loss:
            values["total_loss"] = net.total_loss(blobs).double().cpu().numpy()
    return values


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]
