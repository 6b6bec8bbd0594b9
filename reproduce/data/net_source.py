"""The data of a net: its Python data layers as one source of batches for a solver."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import NetError
from reproduce.data.loading import Feed, Numbers
from reproduce.data.python_layers import layer_data
from reproduce.layers import LAYERS


class NetSource:
    """Batches by number, with all inputs of a net. `feeds` are those of its data layers."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds = feeds

    def __call__(self, number: int) -> dict[str, Tensor]:
        """The batch of this number."""
        return {name: blob for feed in self.feeds for name, blob in feed(number).items()}

    def close(self) -> None:
        """Stop decoding ahead."""
        for feed in self.feeds:
            feed.close()


def net_source(
    net: NetParameter, folder: str | Path = "", workers: int = 0, numbers: Numbers = itertools.count
) -> NetSource:
    """The source of a net that is filtered for its phase. NetError where a blob comes from no data set."""
    feeds = []
    for layer in net.layer:
        if layer.bottom or layer.type in LAYERS:
            continue
        if layer.type != "Python":
            raise NetError(f"layer {layer.name}", f"the type {layer.type}, which brings no data here",
                           "a Python layer of the reference or of reproduce.data",
                           "give another data layer, or train from Python with Solver.solve")  # fmt: skip
        found = layer_data(layer, folder)
        feed = Feed(found.dataset, found.blobs, found.order, found.batch, workers, found.augment, numbers)
        feeds.append(feed)
    return NetSource(feeds)


def part_of(rank: int, processes: int, iter_size: int) -> Numbers:
    """The passes that one of several processes makes: iter_size / processes in a row of each iteration."""
    count = iter_size // processes

    def numbers(start: int) -> Iterator[int]:
        return (number for number in itertools.count(start) if number % iter_size // count == rank)

    return numbers
