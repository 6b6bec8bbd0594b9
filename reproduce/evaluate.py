"""Scoring a net on a data set: the reference's `score.py` with its loss, on the device of the net.

Follows `compute_hist` and `do_seg_tests` of score.py in shelhamer/fcn.berkeleyvision.org at 1305c73: each
picture in the order of the list, the arg max of the scores, one histogram, the mean of the losses. Nets with
two heads have a histogram for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import NetError
from caffe_weights.weights import Weights
from reproduce.data import DATASETS
from reproduce.data.loading import Feed
from reproduce.data.sampling import ListOrder
from reproduce.dataflow import loss_weights
from reproduce.gpu import Autotuning, Coming, send
from reproduce.net import Net
from reproduce.nets import Form, find
from reproduce.pipeline import Behind, grouped
from reproduce.precision import Precision
from reproduce.run_files import DataChoice, open_for, score_net
from reproduce.score import Scores, histogram, score
from reproduce.visualize import write_label_png

WRITERS = 2  # threads that write label maps
HELD = 4  # so many batches of pictures may wait for others of their size


@dataclass(frozen=True)
class Head:
    """One output that is scored: the blob of scores N x C x H x W and the blob of its labels."""

    scores: str
    label: str


@dataclass(frozen=True)
class Evaluation:
    """What came out: pictures, mean loss, a histogram (truth x prediction) for each head, and how long."""

    pictures: int
    loss: float
    counts: tuple[tuple[Head, np.ndarray], ...]
    seconds: float = 0.0

    def scores(self, absent: str = "zero", head: int = 0) -> Scores:
        """The metrics of a head."""
        return score(self.counts[head][1], absent)


def heads(net: NetParameter) -> list[Head]:
    """The scores and labels that SoftmaxWithLoss layers compare. NetError where there are none."""
    found = [Head(layer.bottom[0], layer.bottom[1]) for layer in net.layer if layer.type == "SoftmaxWithLoss"]
    if not found:
        raise NetError("net", "no SoftmaxWithLoss layer", "one, which says what is score and what label")
    return found


def published_net(
    name: str, weights: Weights, choice: DataChoice, form: Form, device: torch.device, workers: int = 0,
    frame: bool | None = None,
) -> tuple[Net, Feed]:  # fmt: skip
    """A published net with its weights, ready to be scored, and what feeds it the split of a data set.

    `frame` as in Net.
    """
    data = find(name).data
    assert data is not None
    dataset, _ = open_for(name, choice, DATASETS[choice.kind].score_split)
    order = ListOrder(len(dataset.ids))
    shapes = {top: tuple(blob.shape) for top, blob in Feed(dataset, data.tops, order)(0).items()}
    net = Net(score_net(name, form), weights, phase="TEST", input_shapes=shapes, frame=frame)
    return net.to(device), Feed(dataset, data.tops, order, workers=workers)


def evaluate(
    net: Net,
    feed: Feed,
    pictures: int,
    out: Path | None = None,
    step: Callable[[], None] = lambda: None,
    force: bool = False,
    precision: Precision | None = None,
    batch: int = 1,
) -> Evaluation:
    """Score a net in phase TEST, with its loss, on the first `pictures` of a feed of single pictures.

    `out`: a folder for label maps, ID.png (of the first head; of others ID_LABEL.png). `precision` is what
    the net was prepared for. Up to `batch` pictures of equal size go together, which changes no result but
    by rounding. NetError, FileError, FormatError.
    """
    device = next(net.parameters()).device
    run = _Run(net, device, precision or Precision(device=device))
    start = time.perf_counter()
    with Behind[None](WRITERS, most=2 * WRITERS + batch) as behind:
        for numbers, blobs in _batches(feed, pictures, batch):
            for head, labels in zip(run.heads, run.score(blobs, feed.dataset.void), strict=True):
                coming = Coming(labels.to(torch.uint8), start) if out is not None else None
                for place, number in enumerate(numbers if coming is not None else ()):
                    name = feed.ids(number)[0] + ("" if head is run.heads[0] else f"_{head.label}")
                    behind.put(_write, coming, place, f"{out}/{name}.png", force)
            for _ in numbers:
                step()
    return run.evaluation(pictures, start)


class _Run:
    """What scoring gathers, on the device of the net."""

    def __init__(self, net: Net, device: torch.device, precision: Precision) -> None:
        self.net, self.device, self.precision = net, device, precision
        self.tuned = Autotuning(device)
        self.heads = heads(net.definition)
        self.judges = [layer for layer in net.definition.layer if any(loss_weights(layer))]
        read = [blob for layer in self.judges for blob in layer.bottom if blob not in net.inputs]
        self.keep = list(dict.fromkeys([*(head.scores for head in self.heads), *net.loss_weights, *read]))
        self.totals: list[torch.Tensor | None] = [None] * len(self.heads)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)

    def score(self, batch: Mapping[str, torch.Tensor], void: int) -> list[torch.Tensor]:
        """Count a batch; the label maps N x H x W of each head."""
        given = {name: send(blob, self.device) for name, blob in batch.items()}
        kind = tuple((name, tuple(blob.shape)) for name, blob in given.items())
        with torch.no_grad(), self.precision.forward(), self.tuned(kind):
            blobs = self.net(**given, keep=self.keep)
            self._add_losses({**given, **blobs}, len(next(iter(given.values()))))
        found = []
        for i, head in enumerate(self.heads):
            labels = blobs[head.scores].max(1).indices
            truth = given[head.label][:, 0].long()
            counts = histogram(truth, labels, blobs[head.scores].shape[1], (void,))
            before = self.totals[i]
            self.totals[i] = counts if before is None else before + counts
            found.append(labels)
        return found

    def evaluation(self, pictures: int, start: float) -> Evaluation:
        """All that was counted."""
        counted = [(head, _array(total)) for head, total in zip(self.heads, self.totals, strict=True)]
        loss = float(self.loss) / max(1, pictures)  # waits for the device
        return Evaluation(pictures, loss, tuple(counted), time.perf_counter() - start)

    def _add_losses(self, blobs: Mapping[str, torch.Tensor], pictures: int) -> None:
        """The loss of each picture as if it were alone: how a batch is normalized is the net's to say."""
        if pictures == 1:
            self.loss += self.net.total_loss(blobs).double()
            return
        for definition in self.judges:
            layer, params = self.net.layer(definition.name), self.net.params.get(definition.name, [])
            for i in range(pictures):
                tops = layer.forward([blobs[name][i : i + 1] for name in definition.bottom], params)
                for weight, top in zip(loss_weights(definition), tops, strict=True):
                    self.loss += weight * top.sum().double()


def _batches(feed: Feed, pictures: int, batch: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Numbers of pictures of one size, up to `batch`, and their blobs together."""

    def kind(item: tuple[int, dict[str, torch.Tensor]]) -> object:
        return tuple(tuple(blob.shape) for blob in item[1].values())

    read = ((number, feed(number)) for number in range(pictures))
    for group in grouped(read, kind, batch, HELD * batch):
        blobs = group[0][1]
        if len(group) > 1:
            blobs = {name: torch.cat([found[name] for _, found in group]) for name in blobs}
        yield [number for number, _ in group], blobs


def _array(total: torch.Tensor | None) -> np.ndarray:
    assert total is not None
    return total.cpu().numpy()


def _write(coming: Coming, place: int, path: str, force: bool) -> None:
    write_label_png(coming.array()[place], path, force)
