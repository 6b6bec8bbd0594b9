"""Losses and Accuracy.

Follows `softmax_layer.cpp`, `softmax_loss_layer.cpp`, `infogain_loss_layer.cpp`,
`multinomial_logistic_loss_layer.cpp`, `sigmoid_cross_entropy_loss_layer.cpp`, `euclidean_loss_layer.cpp`,
`hinge_loss_layer.cpp`, `contrastive_loss_layer.cpp` and `accuracy_layer.cpp` of BVLC/caffe at 9b891540.

Caffe bounds the logarithm of a probability but not its gradient; `bounded` does the same. A loss is not
multiplied by its loss_weight, as in Caffe: the net's total loss is. Labels get no gradient. Departures: a
label out of range is an error (undefined in Caffe); SoftmaxWithLoss accepts a second top, the
probabilities, which Caffe at this commit documents but cannot build.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

from caffe_weights import caffe_pb2
from caffe_weights.errors import InputError, NetError
from caffe_weights.mean import read_mean
from reproduce.layers.base import (
    FLT_MAX,
    FLT_MIN,
    Definition,
    Layer,
    checked_indices,
    positive_axis,
    split_shape,
)
from surgery.geometry import Shape

LOG_THRESHOLD = 1e-20
LARGEST_LOSS = -math.log(FLT_MIN)  # 87.3365
NO_LABEL = -(2**62)  # what no label is
NAN_IS_NEGATIVE = int(torch.tensor(math.nan).long()) < 0
LossParameter = caffe_pb2.LossParameter


class Softmax(Layer):
    """exp(x) over its sum along an axis."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.axis = definition.softmax_param.axis

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [torch.softmax(bottoms[0], self.axis)]


class _Labelled(Layer):
    """A loss or score of bottom 0 against the labels in bottom 1, with ignore_label and normalisation."""

    label_bottoms = (1,)
    default_mode = LossParameter.VALID

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.loss_param
        self.ignore = param.ignore_label if param.HasField("ignore_label") else None
        self.mode = self.default_mode
        if param.HasField("normalization"):
            self.mode = param.normalization
        elif param.HasField("normalize"):
            self.mode = LossParameter.VALID if param.normalize else LossParameter.BATCH_SIZE

    def normaliser(self, outer: int, full: int, valid: Tensor) -> Tensor | float:
        """What the sum is divided by, at least 1; `valid` is 1 where a label counts."""
        if self.mode == LossParameter.VALID:
            return valid.sum().clamp(min=1)
        if self.mode == LossParameter.NONE:
            return 1.0
        return float(max(1, full if self.mode == LossParameter.FULL else outer))


class SoftmaxWithLoss(_Labelled):
    """-log of the labelled class's probability, summed over the items that count and normalised."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.axis = definition.softmax_param.axis
        self.shows = len(definition.top) > 1

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x, label = bottoms
        rows = x if x.dim() == 2 and self.axis == 1 else self.rows(x)
        log_prob = torch.log_softmax(rows, 1)
        loss = self.loss(log_prob, label)
        return [loss, log_prob.detach().exp().reshape(x.shape)] if self.shows else [loss]

    def rows(self, x: Tensor) -> Tensor:
        """The scores as (outer, classes, inner), or (outer, classes): PyTorch is slow before a last 1."""
        outer, classes, inner = split_shape(x.shape, positive_axis(self.axis, x.dim()))
        return x.reshape((outer, classes, inner) if inner > 1 else (outer, classes))

    def loss(self, log_prob: Tensor, label: Tensor) -> Tensor:
        """The items' bounded losses over the divisor. On a CPU looking is cheap and spares the bound."""
        looks = log_prob.is_cpu and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
        if not looks:  # where a kernel cannot raise, the labels are looked at before
            label = checked_indices(self.where(), label, log_prob.shape[1], self.ignore)
        target = _indices(label)
        if target.dim() > 1 or log_prob.dim() > 2:
            target = target.reshape(log_prob.shape[:1] + log_prob.shape[2:])
        divisor, mean = self.divisor(target)
        try:  # looked at first, while the map is in the processor's cache
            within = looks and self.within(log_prob.detach(), target)
            total = self.losses(log_prob, target, "mean" if mean else "sum")
        except IndexError:
            checked_indices(self.where(), label, log_prob.shape[1], self.ignore)
            raise
        if within:
            return total if mean else total / divisor
        each = self.losses(log_prob, target, "none")
        return bounded(each, -math.inf, LARGEST_LOSS).sum() / divisor

    def within(self, log_prob: Tensor, target: Tensor) -> bool:
        """Whether no loss needs the bound. Over a map it is cheaper to look at every class's."""
        if target.dim() > 1:
            return not -log_prob.amin().item() > LARGEST_LOSS
        return not self.losses(log_prob, target, "none").max().item() > LARGEST_LOSS

    def losses(self, log_prob: Tensor, target: Tensor, reduction: str) -> Tensor:
        """PyTorch's losses, 0 for an ignored item. IndexError for a label out of range."""
        ignored = NO_LABEL if self.ignore is None else self.ignore
        return nnf.nll_loss(log_prob, target, ignore_index=ignored, reduction=reduction)

    def divisor(self, target: Tensor) -> tuple[Tensor | int, bool]:
        """What the sum of losses is divided by, at least 1, and whether that makes it a mean."""
        count = target.numel()
        if self.mode == LossParameter.NONE:
            divisor = 1
        elif self.mode == LossParameter.BATCH_SIZE:
            divisor = target.shape[0]
        elif self.mode == LossParameter.FULL or self.ignore is None:
            divisor = count
        else:
            return (target != self.ignore).sum().clamp(min=1), False
        return max(1, divisor), divisor == count and self.ignore is None


class InfogainLoss(_Labelled):
    """Sum over classes of -H[label, class] * log(probability); H from bottom 2 or a file."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.infogain_loss_param
        self.axis = param.axis
        self.source = param.source
        self.matrix: Tensor | None = None

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x, label = bottoms[0], bottoms[1]
        outer, classes, inner = split_shape(x.shape, positive_axis(self.axis, x.dim()))
        target = checked_indices(self.where(), label, classes, self.ignore).reshape(outer, inner)
        log_prob = nnf.log_softmax(x.reshape(outer, classes, inner), 1)
        valid = torch.ones_like(target) if self.ignore is None else (target != self.ignore).long()
        gain = self.gain(bottoms, classes)[target * valid]  # (outer, inner, classes)
        cost = -bounded(log_prob, math.log(LOG_THRESHOLD), math.inf) * gain.transpose(1, 2)
        loss = (cost.sum(1) * valid).sum() / self.normaliser(outer, outer * inner, valid)
        prob = [log_prob.detach().exp().reshape(x.shape)] if len(self.definition.top) > 1 else []
        return [loss, *prob]

    def gain(self, bottoms: list[Tensor], classes: int) -> Tensor:
        """H, (classes, classes), a bottom or read from `source` once."""
        if len(bottoms) > 2:
            return bottoms[2].detach().reshape(classes, classes)
        return self.read(classes).to(bottoms[0]).reshape(classes, classes)

    def check(self, bottoms: Sequence[Shape]) -> None:
        """NetError, FileError or FormatError if `source` holds no matrix of this size."""
        if len(bottoms) < 3:
            self.read(bottoms[0][positive_axis(self.axis, len(bottoms[0]))])

    def read(self, classes: int) -> Tensor:
        """The matrix in `source`, read once."""
        if self.matrix is None:
            try:
                self.matrix = torch.tensor(read_mean(self.source))
            except InputError as error:
                where = f"{self.where()}: {error.where}"
                raise type(error)(where, error.found, error.wanted, error.do) from None
        if self.matrix.numel() != classes**2:
            raise NetError(
                f"{self.where()}: {self.source}",
                f"{self.matrix.numel()} values",
                f"{classes**2}, one for each pair of {classes} classes",
                "correct source",
            )
        return self.matrix


class MultinomialLogisticLoss(_Labelled):
    """-log of the labelled class's entry of bottom 0, a probability, averaged over the batch."""

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        prob, label = _rows(bottoms[0]), bottoms[1]
        target = checked_indices(self.where(), label, prob.shape[1]).reshape(-1, 1)
        picked = bounded(prob.gather(1, target), LOG_THRESHOLD, math.inf)
        return [-picked.log().sum() / prob.shape[0]]


class SigmoidCrossEntropyLoss(_Labelled):
    """Cross entropy of sigmoid(bottom 0) with the targets in bottom 1, one a value."""

    default_mode = LossParameter.BATCH_SIZE

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x, target = bottoms[0], bottoms[1].detach().reshape(bottoms[0].shape)
        each = nnf.binary_cross_entropy_with_logits(x, target, reduction="none")
        if self.ignore is None:
            full = self.mode in (LossParameter.FULL, LossParameter.VALID)
            divisor = x.numel() if full else x.shape[0] if self.mode == LossParameter.BATCH_SIZE else 1
            return [each.sum() / divisor]
        valid = (target.trunc() != self.ignore).to(x.dtype)  # Caffe casts before it compares
        return [(each * valid).sum() / self.normaliser(x.shape[0], x.numel(), valid)]


class EuclideanLoss(_Labelled):
    """Half the squared distance of the bottoms, averaged over the batch."""

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        difference = bottoms[0] - bottoms[1].reshape(bottoms[0].shape)
        return [(difference * difference).sum() / (2 * bottoms[0].shape[0])]


class HingeLoss(_Labelled):
    """One against all: max(0, 1 - x) for the labelled class, max(0, 1 + x) for the others; L1 or L2."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.hinge_loss_param
        self.squared = param.norm == param.L2

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x, label = _rows(bottoms[0]), bottoms[1]
        target = checked_indices(self.where(), label, x.shape[1]).reshape(-1, 1)
        sign = torch.ones_like(x).scatter(1, target, -1.0)
        margin = nnf.relu(1 + sign * x)
        return [(margin * margin if self.squared else margin).sum() / x.shape[0]]


class ContrastiveLoss(_Labelled):
    """Pairs in bottoms 0 and 1: squared distance if similar (bottom 2), else the margin's excess."""

    label_bottoms = (2,)

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.contrastive_loss_param
        self.margin, self.legacy = param.margin, param.legacy_version

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        a, b, similar = bottoms
        squared = (_rows(a - b) ** 2).sum(1)
        if self.legacy:
            apart = nnf.relu(self.margin - squared)
        else:
            apart = nnf.relu(self.margin - _Distance.apply(squared)) ** 2
        each = torch.where(similar.detach().reshape(-1).trunc() != 0, squared, apart)
        return [each.sum() / (2 * a.shape[0])]


class Accuracy(_Labelled):
    """Share of labels among the top_k scores; a second top holds it a class. A tie counts as wrong."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.accuracy_param
        self.axis, self.top_k = param.axis, param.top_k
        self.ignore = param.ignore_label if param.HasField("ignore_label") else None

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x, label = bottoms[0].detach(), bottoms[1]
        outer, classes, inner = split_shape(x.shape, positive_axis(self.axis, x.dim()))
        target = checked_indices(self.where(), label, classes, self.ignore).reshape(outer, inner)
        valid = torch.ones_like(target) if self.ignore is None else (target != self.ignore).long()
        x, target = x.reshape(outer, classes, inner), target * valid
        better = (x >= x.gather(1, target.unsqueeze(1))).sum(1) - 1  # the class itself is no better
        right = (better < self.top_k).long() * valid
        tops = [right.sum() / valid.sum().clamp(min=1)]
        if len(self.definition.top) > 1:
            hits, items = (
                torch.zeros(classes, dtype=torch.long, device=x.device).scatter_add(
                    0, target.reshape(-1), t.reshape(-1)
                )
                for t in (right, valid)
            )
            tops.append(hits / items.clamp(min=1))
        return [top.to(x.dtype) for top in tops]


def bounded(x: Tensor, low: float, high: float) -> Tensor:
    """`x` brought into [low, high] in the forward pass; the gradient passes as if it were not."""
    result: Tensor = _Bounded.apply(x, low, high)
    return result


def _indices(label: Tensor) -> Tensor:
    # NaN becomes an index out of range, as x86 has it
    return (label if NAN_IS_NEGATIVE else label.nan_to_num(nan=-FLT_MAX)).long()


def _rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)  # flatten(1) wants a second axis


class _Bounded(torch.autograd.Function):
    """Clamp with the gradient of the identity: Caffe bounds values it takes no derivative of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


class _Distance(torch.autograd.Function):
    """Square root whose gradient is 1 / (2 (root + 1e-4)): Caffe keeps equal pairs finite so."""

    @staticmethod
    def forward(ctx: Any, squared: Tensor) -> Tensor:
        root = squared.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return grads[0] / (2 * (root + 1e-4))
