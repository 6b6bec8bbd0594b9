"""The search itself: weights and architecture in turn on two halves of the data, by gradient descent.

Liu et al., CVPR 2019, sections 4.2 and 5.1, whose settings are the defaults of `Settings`: the first-order
approximation, so a step of the weights on one half, a step of alpha and beta on the other; these begin at
epoch 20 of 40, counted from 0. Both halves are gone through again and again in random order. (A port restarts
the second at each step and so draws with replacement.) What a batch holds depends on its number alone: a
search that was stopped goes on bit for bit from its snapshot on one machine with as many threads.

Under torchrun each process takes batches of its own and gradients are averaged; batch statistics are each
process's own. Not in the paper: the rate falls with each iteration, not each epoch; a batch without labels
has a loss of 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn import functional as nnf

from caffe_weights.errors import FileError, FormatError, InputError
from caffe_weights.files import as_file_error, replace_file
from reproduce.data.base import VOID, Dataset
from reproduce.data.loading import Feed
from reproduce.data.transforms import Augment
from reproduce.nets.architecture import Architecture, write_architecture
from reproduce.precision import Precision
from reproduce.run_log import RunLog
from reproduce.search.decoding import decode
from reproduce.search.settings import Settings
from reproduce.search.supernet import Supernet
from reproduce.train import place

SNAPSHOT, ARCHITECTURE = "search.pt", "architecture.json"


class CyclingOrder:
    """Some pictures again and again, each once in a round, each round in another random order."""

    def __init__(self, pictures: np.ndarray, seed: int) -> None:
        self.pictures, self.seed = pictures, seed
        self._round, self._order = -1, pictures

    def __call__(self, number: int) -> int:
        """The index of the `number`-th picture."""
        which, place_in_it = divmod(number, len(self.pictures))
        if which != self._round:
            self._round = which
            self._order = np.random.default_rng([self.seed, which]).permutation(self.pictures)
        return int(self._order[place_in_it])


def halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of so many pictures; the first has one more of an odd number. InputError below 2."""
    if count < 2:
        raise InputError(
            "search", f"{count} pictures", "at least 2: a half for the weights, one for alpha and beta"
        )
    order = np.random.default_rng([seed, 2]).permutation(count)
    return order[: (count + 1) // 2], order[(count + 1) // 2 :]


class Search:
    """A search in the folder `out` on a data set of one input and one target.

    With `resume` it goes on from out/search.pt, where that is. `net` is the relaxation, `iteration` the
    number of steps of the weights made, `total` that of all. InputError and its kinds before the first step.
    """

    def __init__(
        self, dataset: Dataset, out: Path, settings: Settings | None = None, device: str = "cpu",
        precision: str = "float32", workers: int = 0, resume: bool = False,
    ) -> None:  # fmt: skip
        self.settings = settings = settings or Settings()
        self.out, self.device = out, torch.device(device)
        self.rank, self.processes = place()
        self.precision = Precision(precision, device)
        torch.manual_seed(settings.seed)
        self.net = Supernet(
            len(dataset.classes), settings.layers, settings.blocks, settings.filters, settings.stem
        ).to(self.device)
        self.optimizers = _optimizers(self.net, settings)
        parts = halves(len(dataset.ids), settings.seed)
        self.feeds = [self._feed(dataset, part, i, workers) for i, part in enumerate(parts)]
        self.per_epoch = max(1, len(parts[0]) // (settings.batch * self.processes))
        self.total, self.iteration = settings.epochs * self.per_epoch, 0
        if (out / SNAPSHOT).exists():
            if not resume:
                raise FileError(str(out), "a search is there", "an empty folder", "go on with --resume")
            self._restore(out / SNAPSHOT)
        self.net.train()

    @property
    def epoch(self) -> int:
        """Of the next step, from 0."""
        return self.iteration // self.per_epoch

    def run(
        self, step: Callable[[dict[str, Any]], None] | None = None, snapshot_every: int = 0,
        until: int | None = None, shown: Callable[[Search], None] | None = None,
    ) -> Architecture:  # fmt: skip
        """Search to the end, or to iteration `until`, and write out/architecture.json.

        `step` gets each row of the log. Each `snapshot_every` iterations (0: each epoch), and at the end, a
        snapshot is written and `shown` called. InputError where a loss is no number.
        """
        every = snapshot_every or self.per_epoch
        end = self.total if until is None else min(until, self.total)
        log = self._log() if self.rank == 0 else None
        while self.iteration < end:
            row = self._step()
            if log is not None:
                log.write(row)
                if step is not None:
                    step(row)
            if not math.isfinite(row["loss"] + row.get("architecture_loss", 0.0)):
                raise InputError(
                    f"iteration {row['iteration']}", "the loss is no finite number", "", "lower the rate"
                )
            if self.iteration % every == 0 or self.iteration == end:
                self._keep(shown)
        for feed in self.feeds:
            feed.close()
        if log is not None:
            log.close()
        return self.decoded()

    def decoded(self) -> Architecture:
        """The architecture that alpha and beta stand for now."""
        alpha, beta = (p.detach().cpu().double().numpy() for p in self.net.probabilities())
        return decode(alpha, beta, self.settings.final_filters)

    def rate(self) -> float:
        """The learning rate of the weights: half a cosine from the first to the last step."""
        low, high = self.settings.lr_end, self.settings.lr
        return low + (high - low) * (1 + math.cos(math.pi * self.iteration / self.total)) / 2

    def _step(self) -> dict[str, Any]:
        """One step of the weights, and from `architecture_from` on one of alpha and beta."""
        start = time.perf_counter()
        weights, architecture = self.optimizers
        weights.param_groups[0]["lr"] = rate = self.rate()
        row: dict[str, Any] = {"iteration": self.iteration, "epoch": self.epoch, "lr": rate}
        row["loss"] = self._descend(weights, self.net.weights(), self.feeds[0])
        if self.epoch >= self.settings.architecture_from:
            row["architecture_loss"] = self._descend(architecture, self.net.architecture(), self.feeds[1])
        row["alpha_entropy"], row["beta_entropy"] = self.net.entropies()
        self.iteration += 1
        return {**row, "seconds": round(time.perf_counter() - start, 6)}

    def _descend(self, optimizer: torch.optim.Optimizer, parameters: list[Any], feed: Feed) -> float:
        batch = feed(self.iteration * self.processes + self.rank)
        data = batch["data"].to(self.device) * self.settings.scale
        label = batch["label"].to(self.device)[:, 0].long()
        with self.precision.forward():
            scores = self.net(data)
        loss = nnf.cross_entropy(scores.float(), label, ignore_index=VOID, reduction="sum")
        loss = loss / (label != VOID).sum().clamp(min=1)
        grads = torch.autograd.grad(self.precision.scaled(loss), parameters, allow_unused=True)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = torch.zeros_like(parameter) if grad is None else grad
        _average([parameter.grad for parameter in parameters], self.processes)
        self.precision.step(optimizer)
        return float(loss.detach())

    def _feed(self, dataset: Dataset, part: np.ndarray, which: int, workers: int) -> Feed:
        settings = self.settings
        change = Augment(
            mirror=settings.mirror, seed=settings.seed * 2 + which, crop=settings.crop, shrink=settings.shrink
        )
        order = CyclingOrder(part, settings.seed * 2 + which)
        return Feed(dataset, ("data", "label"), order, settings.batch, workers, change, self._numbers)

    def _numbers(self, start: int) -> Iterator[int]:
        while True:
            yield start
            start += self.processes

    def _log(self) -> RunLog:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise as_file_error(self.out, error) from None
        return RunLog(self.out, self.iteration)

    def _keep(self, shown: Callable[[Search], None] | None) -> None:
        if self.rank:
            return
        state = {
            "settings": asdict(self.settings), "iteration": self.iteration, "net": self.net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.precision.scaler.state_dict() if self.precision.scaler else {},
        }  # fmt: skip
        with replace_file(self.out / SNAPSHOT, force=True) as temporary:
            torch.save(state, temporary)
        write_architecture(self.decoded(), self.out / ARCHITECTURE, force=True)
        if shown is not None:
            shown(self)

    def _restore(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            settings = state["settings"]
        except Exception as error:  # torch raises whatever the bytes make it raise
            raise FormatError(str(path), f"no snapshot of a search ({type(error).__name__})") from None
        for name, value in asdict(self.settings).items():
            if settings.get(name) != value:
                raise InputError(f"{path}: {name}", str(settings.get(name)), str(value),
                                 "go on with the settings it began with")  # fmt: skip
        self.net.load_state_dict(state["net"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        if self.precision.scaler and state["scaler"]:
            self.precision.scaler.load_state_dict(state["scaler"])
        self.iteration = state["iteration"]


def _optimizers(net: Supernet, settings: Settings) -> list[torch.optim.Optimizer]:
    """Of the weights, and of alpha and beta."""
    return [
        torch.optim.SGD(net.weights(), settings.lr, settings.momentum, weight_decay=settings.weight_decay),
        torch.optim.Adam(
            net.architecture(), settings.architecture_lr, settings.architecture_betas,
            weight_decay=settings.architecture_decay,
        ),
    ]  # fmt: skip


def _average(grads: list[Tensor], processes: int) -> None:
    """The mean over all processes, in place; as one message."""
    if processes == 1:
        return
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    distributed.all_reduce(flat)
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.reshape(grad.shape) / processes)
