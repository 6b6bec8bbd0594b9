"""Scoring a net on a data set: the reference's `score.py` with its loss, on the device of the net.

Follows `compute_hist` and `do_seg_tests` of score.py in shelhamer/fcn.berkeleyvision.org at 1305c73: each
picture in the order of the list, the arg max of the scores, one histogram, the mean of the losses. Nets with
two heads have a histogram for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from reproduce.net import Net
from reproduce.nets import Form, find
from reproduce.precision import Precision
from reproduce.run_files import DataChoice, open_for, score_net
from reproduce.score import Scores, histogram, score
from reproduce.visualize import write_label_png


@dataclass(frozen=True)
class Head:
    """One output that is scored: the blob of scores N x C x H x W and the blob of its labels."""

    scores: str
    label: str


@dataclass(frozen=True)
class Evaluation:
    """What came out: pictures, mean loss, and a histogram (truth x prediction) for each head."""

    pictures: int
    loss: float
    counts: tuple[tuple[Head, np.ndarray], ...]

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
    name: str, weights: Weights, choice: DataChoice, form: Form, device: torch.device, workers: int = 0
) -> tuple[Net, Feed]:
    """A published net with its weights, ready to be scored, and what feeds it the split of a data set."""
    data = find(name).data
    assert data is not None
    dataset, _ = open_for(name, choice, DATASETS[choice.kind].score_split)
    order = ListOrder(len(dataset.ids))
    shapes = {top: tuple(blob.shape) for top, blob in Feed(dataset, data.tops, order)(0).items()}
    net = Net(score_net(name, form), weights, phase="TEST", input_shapes=shapes)
    return net.to(device), Feed(dataset, data.tops, order, workers=workers)


def evaluate(
    net: Net,
    feed: Feed,
    pictures: int,
    out: Path | None = None,
    step: Callable[[], None] | None = None,
    force: bool = False,
    precision: Precision | None = None,
) -> Evaluation:
    """Score a net in phase TEST, with its loss, on the first `pictures` batches of one picture.

    `out`: a folder for label maps, ID.png (of the first head; of others ID_LABEL.png). `precision` is what
    the net was prepared for. NetError, FileError, FormatError.
    """
    found = heads(net.definition)
    device = next(net.parameters()).device
    precision = precision or Precision(device=device)
    keep = list(dict.fromkeys([*(head.scores for head in found), *net.loss_weights]))
    totals: list[torch.Tensor | None] = [None] * len(found)
    losses = torch.zeros((), dtype=torch.float64, device=device)
    for number in range(pictures):
        batch = feed(number)
        with torch.no_grad(), precision.forward():
            blobs = net(**batch, keep=keep)
            losses += net.total_loss(blobs).double()
        for i, head in enumerate(found):
            classes = blobs[head.scores].shape[1]
            labels = blobs[head.scores].argmax(1)  # (N, H, W)
            truth = batch[head.label].to(device)[:, 0].long()
            counts = histogram(truth, labels, classes, (feed.dataset.void,))
            before = totals[i]
            totals[i] = counts if before is None else before + counts
            if out is not None:
                _write(labels, feed.ids(number), out, head if i else None, force)
        if step is not None:
            step()
    counted = [(head, _array(total)) for head, total in zip(found, totals, strict=True)]
    return Evaluation(pictures, float(losses) / max(1, pictures), tuple(counted))


def _array(total: torch.Tensor | None) -> np.ndarray:
    assert total is not None
    return total.cpu().numpy()


def _write(labels: torch.Tensor, ids: Sequence[str], out: Path, head: Head | None, force: bool) -> None:
    for label, identity in zip(labels.cpu().numpy(), ids, strict=True):
        name = f"{identity}_{head.label}" if head else identity
        write_label_png(label, out / f"{name}.png", force)
