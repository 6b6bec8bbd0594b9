"""The data of a net as one source of batches for a solver: its data layers, of Python or Caffe's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from caffe_weights.caffe_pb2 import LayerParameter, NetParameter
from caffe_weights.errors import NetError
from reproduce.data.loading import Feed, Numbers
from reproduce.data.python_layers import layer_data
from reproduce.data.reading import ReaderFeed
from reproduce.data.sampling import SEED
from reproduce.deconvnet.seg_data import WORDS, seg_feed
from reproduce.layers import LAYERS, READERS


class Batches(Protocol):
    """Batches by number of one data layer."""

    def __call__(self, number: int) -> dict[str, Tensor]:
        """The batch of this number, by blob name."""

    def close(self) -> None:
        """Stop reading ahead."""


class NetSource:
    """Batches by number, with all inputs of a net. `feeds` are those of its data layers, by layer."""

    def __init__(self, feeds: dict[str, Batches]) -> None:
        self.feeds = feeds

    def __call__(self, number: int) -> dict[str, Tensor]:
        """The batch of this number."""
        return {name: blob for feed in self.feeds.values() for name, blob in feed(number).items()}

    def close(self) -> None:
        """Stop decoding ahead."""
        for feed in self.feeds.values():
            feed.close()

    def states(self) -> dict[str, Any]:
        """What has to go into snapshots, by name: the feeds whose batches depend on those before."""
        return {f"data {name}": feed for name, feed in self.feeds.items() if isinstance(feed, ReaderFeed)}


def net_source(
    net: NetParameter,
    folder: str | Path = "",
    workers: int = 0,
    numbers: Numbers = itertools.count,
    phase: str = "TRAIN",
    seed: int = SEED,
) -> NetSource:
    """The source of a net that is filtered for its phase. NetError where a blob comes from nowhere.

    Files are looked for in `folder` first; `seed` is that of Caffe's own data layers. Also FileError and
    FormatError, where the data is not there.
    """
    feeds: dict[str, Batches] = {}
    for layer in net.layer:
        if layer.bottom or layer.type in LAYERS:
            continue
        if layer.type in WORDS:
            feeds[layer.name] = seg_feed(layer, Path(folder), phase, seed, workers, numbers)
        elif layer.type in READERS:
            feeds[layer.name] = ReaderFeed(layer, folder, phase, seed)
        else:
            feeds[layer.name] = _python_feed(layer, folder, workers, numbers)
    return NetSource(feeds)


def _python_feed(layer: LayerParameter, folder: str | Path, workers: int, numbers: Numbers) -> Feed:
    if layer.type != "Python":
        known = ", ".join([*READERS, *WORDS])
        raise NetError(f"layer {layer.name}", f"the type {layer.type}, which brings no data here",
                       f"{known}, or a Python layer of the reference or of reproduce.data",
                       "give another data layer, or train from Python with Solver.solve")  # fmt: skip
    found = layer_data(layer, folder)
    return Feed(found.dataset, found.blobs, found.order, found.batch, workers, found.augment, numbers)


def part_of(rank: int, processes: int, iter_size: int) -> Numbers:
    """The passes that one of several processes makes: iter_size / processes in a row of each iteration."""
    count = iter_size // processes

    def numbers(start: int) -> Iterator[int]:
        return (number for number in itertools.count(start) if number % iter_size // count == rank)

    return numbers
