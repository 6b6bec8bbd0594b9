"""A data set as the source of a net's batches, decoded in the background by torch's DataLoader.

A batch is a function of its number in the run: nothing else needs to be saved to go on where a run stopped,
and any number of workers gives the same batches.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from caffe_weights.errors import FormatError, InputError
from reproduce.data.base import Dataset
from reproduce.data.sampling import Order

Change = Callable[[Mapping[str, np.ndarray], int], dict[str, np.ndarray]]  # of the blobs of the n-th picture
Numbers = Callable[[int], Iterator[int]]  # the numbers that will be asked for from one of them on
AHEAD = 4  # batches that each worker decodes ahead


class Feed:
    """Batches of a data set by number: `feed(number)` is a dict of tensors N x C x H x W by blob name.

    `blobs` are the names for the parts of the data set, in their order. `order` says which picture is taken
    when; `batch` pictures of equal size make a batch. With `workers` > 0 so many processes decode ahead.
    `numbers` says which batches this process asks for, all by default: with N processes each takes a part.
    FileError and FormatError, when a file is needed that is missing or broken.
    """

    def __init__(
        self,
        dataset: Dataset,
        blobs: Sequence[str],
        order: Order,
        batch: int = 1,
        workers: int = 0,
        augment: Change | None = None,
        numbers: Numbers = itertools.count,
    ) -> None:
        if len(blobs) != len(dataset.parts):
            raise InputError(f"data set {dataset.kind}", f"{', '.join(dataset.parts)}",
                             f"{len(blobs)} parts for the blobs {', '.join(blobs)}")  # fmt: skip
        if batch < 1 or workers < 0:
            raise InputError("batch" if batch < 1 else "workers", f"{min(batch, workers)}", "more")
        self.dataset, self.order, self.batch, self.workers = dataset, order, batch, workers
        self.numbers = numbers
        self._items = _Items(dataset, tuple(blobs), augment)
        self._coming: Iterator[Any] | None = None
        self._expected: Iterator[int] = iter(())

    def __call__(self, number: int) -> dict[str, Tensor]:
        """The batch of this number."""
        if not self.workers:
            return _unless_error(self._items[self._key(number)])
        if self._coming is None or next(self._expected, None) != number:
            self._start(number)
        assert self._coming is not None
        return _unless_error(next(self._coming))

    def ids(self, number: int) -> list[str]:
        """The ids of the pictures in a batch."""
        return [self.dataset.ids[index] for _, index in self._key(number)]

    def close(self) -> None:
        """Stop decoding ahead."""
        self._coming, self._expected = None, iter(())

    def _key(self, number: int) -> list[tuple[int, int]]:
        first = number * self.batch
        return [(place, self.order(place)) for place in range(first, first + self.batch)]

    def _start(self, number: int) -> None:
        self.close()
        loader: DataLoader[Any] = DataLoader(
            self._items, batch_size=None, sampler=_Keys(self, number), num_workers=self.workers,
            prefetch_factor=AHEAD, pin_memory=torch.cuda.is_available(), worker_init_fn=_ignore_interrupt,
            generator=torch.Generator(),  # its own: the global one must not depend on how often we start
        )  # fmt: skip
        self._coming, self._expected = iter(loader), self.numbers(number)
        next(self._expected)


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C goes to all processes; it is the main one's to decide."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Keys:
    """What will be asked for, as a DataLoader's endless sampler."""

    def __init__(self, feed: Feed, start: int) -> None:
        self.feed, self.start = feed, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.feed._key, self.feed.numbers(self.start))


class _Items(TorchDataset[Any]):
    """The part that workers do: read, pre-process, change at random. An InputError is returned, not raised,
    since torch would turn it into another one on its way between the processes."""

    def __init__(self, dataset: Dataset, blobs: tuple[str, ...], augment: Change | None) -> None:
        self.dataset, self.blobs, self.augment = dataset, blobs, augment

    def __getitem__(self, key: list[tuple[int, int]]) -> dict[str, Tensor] | dict[str, str]:
        try:
            items = [self._item(place, self.dataset.ids[index]) for place, index in key]
            ids = [self.dataset.ids[index] for _, index in key]
            return {
                name: torch.from_numpy(_stack([item[name] for item in items], ids)) for name in self.blobs
            }
        except InputError as error:
            kind = type(error).__name__
            return {"kind": kind, "where": error.where, "found": error.found, "wanted": error.wanted,
                    "do": error.do}  # fmt: skip

    def _item(self, place: int, identity: str) -> dict[str, np.ndarray]:
        parts = self.dataset.item(identity)
        blobs = {name: parts[part] for name, part in zip(self.blobs, self.dataset.parts, strict=True)}
        return self.augment(blobs, place) if self.augment else blobs


def _stack(blobs: list[np.ndarray], ids: list[str]) -> np.ndarray:
    for blob, identity in zip(blobs, ids, strict=True):
        if blob.shape != blobs[0].shape:
            sizes = [f"{height}x{width}" for _, height, width in (blob.shape, blobs[0].shape)]
            raise FormatError(f"picture {identity}", f"{sizes[0]} pixels", f"{sizes[1]}, as {ids[0]}",
                              "set batch 1 and let iter_size make the batch")  # fmt: skip
    return np.stack(blobs)


def _unless_error(result: dict[str, Any]) -> dict[str, Tensor]:
    if "kind" not in result:
        return result
    errors = {kind.__name__: kind for kind in _kinds(InputError)}
    kind = errors.get(result.pop("kind"), InputError)
    raise kind(**result)


def _kinds(kind: type[InputError]) -> list[type[InputError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _kinds(child))]
