"""A training run in a folder: solver, data, log, curves, scores, snapshots, and going on after a stop.

Follows the `solve.py` files of shelhamer/fcn.berkeleyvision.org at 1305c73, which step a solver and score in
between. A run is a folder: solver.prototxt and train.prototxt say all of it, the data set included;
log.jsonl, curves.png and snapshot/ come of it. Departures: everything is checked before the first iteration;
a loss that is no number ends the run; a signal ends it after the iteration, with a snapshot.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from caffe_weights.caffe_pb2 import NetParameter, SolverParameter
from caffe_weights.errors import FileError, InputError
from caffe_weights.filtering import filter_net
from caffe_weights.weights import Weights
from reproduce.data.base import Dataset
from reproduce.data.loading import Feed
from reproduce.data.net_source import NetSource, net_source, part_of
from reproduce.data.sampling import SEED, ListOrder
from reproduce.evaluate import evaluate
from reproduce.net import Net
from reproduce.preflight import preflight, refuse
from reproduce.run_files import LOG, check_folder, make_folder
from reproduce.run_log import CURVES, RunLog, check_tensorboard, draw_curves
from reproduce.snapshots import latest_snapshot, prune_snapshots
from reproduce.solver import Solver
from reproduce.solver_nets import test_definitions, train_definition

PREFIX = "snapshot/train"  # below the folder of a run
Values = dict[str, Any]
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Scoring:
    """What is scored in between: a net with labels, on the first `pictures` of a data set (0: all)."""

    net: NetParameter
    dataset: Dataset
    blobs: tuple[str, ...]
    every: int
    pictures: int = 0


@dataclass
class Result:
    """How a run ended: `stopped` by a signal or at max_iter, the last snapshot, the last scores, and the last
    outputs of each of the solver's test nets."""

    iteration: int
    loss: float
    snapshot: Path | None
    stopped: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    tests: list[Values] = field(default_factory=list)


class Training:
    """A run in the folder `out`.

    `solver` has its nets in itself or names files that lie in `folder`; its snapshot_prefix is set to `out`.
    `weights` are the start. With `resume` the run goes on from its last snapshot, where there is one; `keep`
    is how many snapshots stay, 0 all. Precision and checkpoint are those of `Solver`. InputError and its
    kinds for all that is found wrong before the first iteration.
    """

    def __init__(
        self,
        solver: SolverParameter,
        out: Path,
        weights: str | Path | Weights | None = None,
        folder: Path = Path(),
        device: str = "cpu",
        workers: int = 0,
        scoring: Scoring | None = None,
        resume: bool = False,
        check: bool = True,
        precision: str = "float32",
        checkpoint: bool = False,
        keep: int = 0,
        tensorboard: bool = False,
        frame: bool | None = None,
    ) -> None:
        solver = _for_folder(solver, out)
        check_folder(out)
        check_new(out, resume)
        if tensorboard:
            check_tensorboard()
        found = latest_snapshot(solver.snapshot_prefix)
        self.out, self.workers, self.scoring, self.keep, self.frame = out, workers, scoring, keep, frame
        self.tensorboard, self.tests, self._stop = tensorboard, {}, False  # type: bool, dict[int, Values], bool
        self.source = _source(solver, folder, workers)
        shapes = {name: tuple(blob.shape) for name, blob in self.source(0).items()}
        self.solver = Solver(
            solver, weights, folder=folder, device=device, precision=precision, checkpoint=checkpoint,
            input_shapes=shapes, frame=frame,
        )  # fmt: skip
        self.solver.states |= self.source.states()
        self.solver.test_data = _test_sources(solver, folder)
        if found is not None:
            self.solver.restore(found)
        if check:
            refuse(preflight(self.solver.net, self.solver.param, shapes))
        self.snapshot: Path | None = found
        self._score_net = None if scoring is None else self._share(scoring)

    def run(self, step: Callable[[dict[str, Any]], None] | None = None) -> Result:
        """Train to max_iter; `step` gets each row of the log. InputError where the loss is no number."""
        solver, scores, loss = self.solver, {}, math.nan
        main = solver.rank == 0
        make_folder(self.out)
        log = RunLog(self.out, solver.iteration, self.tensorboard) if main else None
        solver.on_test = lambda index, values: self._tested(log, index, values, step)
        with _signals(self._ask_to_stop):
            while solver.iteration < solver.param.max_iter and not self._stop:
                row = self._iteration()
                loss = row["loss"]
                self._tell(log, row, step)
                if not math.isfinite(loss):
                    raise _diverged(row, self.snapshot)
                if self._score_net is not None and main and self._due():
                    scores = self._score()
                    self._tell(log, {"iteration": solver.iteration, **scores}, step)
        self._finish(log)
        tests = [self.tests[index] for index in sorted(self.tests)]
        return Result(solver.iteration, loss, self.snapshot, self._stop, scores, tests)

    def _iteration(self) -> dict[str, Any]:
        solver, start = self.solver, time.perf_counter()
        number, rate = solver.iteration, solver.rate(solver.iteration)
        loss = solver.step(solver.pull(self.source))
        if solver.param.snapshot and solver.iteration % solver.param.snapshot == 0:
            self._saved()
        seconds = time.perf_counter() - start
        return {"iteration": number, "loss": loss, "smoothed_loss": solver.smoothed_loss, "lr": rate,
                "seconds": round(seconds, 6)}  # fmt: skip

    def _due(self) -> bool:
        assert self.scoring is not None
        every, iteration = self.scoring.every, self.solver.iteration
        return iteration == self.solver.param.max_iter or bool(every and iteration % every == 0)

    def _score(self) -> dict[str, float]:
        scoring = self.scoring
        assert scoring is not None
        assert self._score_net is not None
        feed = Feed(scoring.dataset, scoring.blobs, ListOrder(len(scoring.dataset.ids)), workers=self.workers)
        count = min(scoring.pictures or len(scoring.dataset.ids), len(scoring.dataset.ids))
        found = evaluate(self._score_net, feed, count, precision=self.solver.precision)
        feed.close()
        return {**found.scores().metrics(), "test_loss": found.loss}

    def _finish(self, log: RunLog | None) -> None:
        solver = self.solver
        last = self.snapshot
        if last is None or f"_iter_{solver.iteration}." not in last.name:
            solver.snapshot()
            self._saved()
        if solver.iteration == solver.param.max_iter:
            solver.test_if_due()
        self.source.close()
        if log is not None:
            log.close()
            draw_curves(log.rows, self.out / CURVES, self.out.name)

    def _saved(self) -> None:
        """A snapshot is complete: from now on older ones may go."""
        prefix = self.solver.param.snapshot_prefix
        self.snapshot = latest_snapshot(prefix)
        if self.keep and self.solver.rank == 0:
            prune_snapshots(prefix, self.keep)

    def _share(self, scoring: Scoring) -> Net:
        """The net that is scored, with the parameters of the one that is trained."""
        train, device = self.solver.net, self.solver.precision.device
        batch = Feed(scoring.dataset, scoring.blobs, ListOrder(len(scoring.dataset.ids)))(0)
        shapes = {name: tuple(blob.shape) for name, blob in batch.items()}
        net = Net(scoring.net, train.weights(), "TEST", input_shapes=shapes, strict=False, frame=self.frame)
        net.to(device).share_with(train)
        return self.solver.precision.prepare(net)

    def _tested(
        self, log: RunLog | None, index: int, values: dict[str, np.ndarray], step: Callable[..., None] | None
    ) -> None:
        self.tests[index] = {name: np.asarray(value).tolist() for name, value in values.items()}
        self._tell(
            log, {"iteration": self.solver.iteration, "test_net": index, "test": self.tests[index]}, step
        )

    def _tell(self, log: RunLog | None, row: dict[str, Any], step: Callable[..., None] | None) -> None:
        if log is not None:
            log.write(row)
        if step is not None:
            step(row)

    def _ask_to_stop(self) -> None:
        self._stop = True


def check_new(out: Path, resume: bool) -> None:
    """FileError where a folder holds a run that is not to be resumed."""
    if not resume and ((out / LOG).exists() or latest_snapshot(out / PREFIX) is not None):
        raise FileError(str(out), "a run is there", "an empty folder", "go on with --resume")


def place() -> tuple[int, int]:
    """Rank and number of the processes that torchrun started; 0 and 1 without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _for_folder(solver: SolverParameter, out: Path) -> SolverParameter:
    """The solver with its snapshots in a folder, and without tests that never come due."""
    result = SolverParameter()
    result.CopyFrom(solver)
    result.snapshot_prefix = str(out / PREFIX)
    if not result.HasField("max_iter"):
        raise InputError("solver", "no max_iter", "the number of iterations", "pass --iterations")
    if not 0 < result.test_interval <= result.max_iter and not result.test_initialization:
        for name in ("test_net", "test_net_param", "test_iter", "test_state", "test_interval"):
            result.ClearField(name)
    return result


def _source(solver: SolverParameter, folder: Path, workers: int) -> NetSource:
    definition = train_definition(solver, folder)
    rank, processes = place()
    beside = definition.path.parent if definition.path else folder
    net = filter_net(definition.net, None)
    return net_source(net, beside, workers, part_of(rank, processes, solver.iter_size), seed=_seed(solver))


def _test_sources(solver: SolverParameter, folder: Path) -> list[NetSource]:
    """What the test nets read, each from its own data layers, without processes that read ahead."""
    sources = []
    for net, path in test_definitions(solver, folder):
        beside = path.parent if path else folder
        sources.append(net_source(filter_net(net, None), beside, phase="TEST", seed=_seed(solver)))
    return sources


def _seed(solver: SolverParameter) -> int:
    return solver.random_seed if solver.random_seed >= 0 else SEED


def _diverged(row: dict[str, Any], snapshot: Path | None) -> InputError:
    last = f"; the last snapshot is {snapshot}" if snapshot else ""
    return InputError(f"iteration {row['iteration']}", f"the loss is {row['loss']}", "a finite number",
                      f"lower base_lr{last}")  # fmt: skip


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks to stop; the second does what it always does."""
    before: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: Any) -> None:
        stop()
        for each, handler in before.items():
            signal.signal(each, handler)

    try:
        before = {each: signal.signal(each, handle) for each in SIGNALS}
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
