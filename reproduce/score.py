"""The four segmentation metrics from one histogram of exact integers.

Follows score.py of fcn.berkeleyvision.org (1305c73) and section 5 of the FCN paper: with n[i, j] the pixels
of class i that were predicted as j and t[i] those of class i, pixel accuracy is sum n[i, i] / sum t[i], mean
accuracy the mean of n[i, i] / t[i], mean IU the mean of n[i, i] / (t[i] + sum over j of n[j, i] - n[i, i]),
frequency weighted IU the mean of IU weighted by t[i].

A class without truth has no accuracy. Its IU is 0 as soon as one pixel is predicted as it, which is how the
reference counts (rule "zero", the default; a small test set with rare classes loses much by it), or it is
left out (rule "skip"). Departure: a label that is neither a class nor ignored is an error, where the
reference takes it for void.

Works on numpy arrays and on tensors, on their device, and imports torch only for these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from caffe_weights.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    Labels = TypeVar("Labels", np.ndarray, Tensor)
else:
    Labels = TypeVar("Labels")

ABSENT_RULES = {
    "zero": "a class absent from the truth but predicted counts with IU 0",
    "skip": "a class absent from the truth is left out",
}
VOID = 255
MOST_CLASSES = 4096


def histogram(truth: Labels, prediction: Labels, classes: int, ignore: Iterable[int] = (VOID,)) -> Labels:
    """How often each class (row) was predicted as each (column): int64 (classes, classes), on their device.

    `truth` and `prediction` are label maps of one shape, whole numbers of any dtype; pixels whose truth is
    in `ignore` do not count, whatever is predicted there. Histograms of several pictures add up. InputError
    for different shapes and for labels outside of [0, classes).
    """
    if not 1 <= classes <= MOST_CLASSES:
        raise InputError("classes", f"{classes}", f"1 to {MOST_CLASSES}")
    if tuple(truth.shape) != tuple(prediction.shape):
        wanted = f"{_dims(truth.shape)}, as the truth"
        raise InputError(
            "prediction", f"size {_dims(prediction.shape)}", wanted, "resize neither: predict again"
        )
    xp = _module(truth)
    rows, columns = _whole(truth, "truth", xp), _whole(prediction, "prediction", xp)
    counted = rows == rows  # all
    for label in ignore:
        counted &= rows != label
    for name, labels in (("truth", rows), ("prediction", columns)):
        _check_range(name, labels, counted, classes, xp)
    bins = rows[counted] * classes + columns[counted]
    result: Labels = xp.bincount(bins, minlength=classes * classes).reshape(classes, classes)
    return result


@dataclass(frozen=True)
class ClassScore:
    """One class: pixels of it in the truth, predicted as it, and both."""

    label: int
    truth: int
    predicted: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Fraction of its pixels found; NaN for a class without any."""
        return self.correct / self.truth if self.truth else math.nan

    @property
    def iu(self) -> float:
        """Intersection over union; NaN for a class absent from truth and prediction."""
        union = self.truth + self.predicted - self.correct
        return self.correct / union if union else math.nan


@dataclass(frozen=True)
class Scores:
    """The four metrics as fractions, NaN where nothing counts; `absent` is the rule behind `mean_iu`."""

    absent: str
    per_class: tuple[ClassScore, ...]

    @property
    def pixels(self) -> int:
        """How many pixels count."""
        return sum(row.truth for row in self.per_class)

    @property
    def pixel_accuracy(self) -> float:
        """Fraction of the pixels that are right."""
        return sum(row.correct for row in self.per_class) / self.pixels if self.pixels else math.nan

    @property
    def mean_accuracy(self) -> float:
        """Mean over the classes that the truth holds."""
        return _mean([row.accuracy for row in self.per_class])

    @property
    def mean_iu(self) -> float:
        """Mean over the classes that count by the rule."""
        return _mean([row.iu for row in self.per_class if row.truth or self.absent == "zero"])

    @property
    def frequency_weighted_iu(self) -> float:
        """Mean weighted by the pixels of each class; the same under both rules."""
        total = math.fsum(row.truth * row.iu for row in self.per_class if row.truth)
        return total / self.pixels if self.pixels else math.nan

    def metrics(self) -> dict[str, float]:
        """The four by name, in the order of the paper's tables."""
        names = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
        return {name: getattr(self, name) for name in names}


def score(counts: Any, absent: str = "zero") -> Scores:
    """The metrics of a histogram (classes, classes), an array, a tensor or lists of whole numbers.

    InputError for an unknown rule.
    """
    if absent not in ABSENT_RULES:
        raise InputError("absent", repr(absent), " or ".join(ABSENT_RULES))
    rows: Sequence[Sequence[int]] = counts if isinstance(counts, list) else counts.tolist()
    predicted = [sum(column) for column in zip(*rows, strict=True)]
    return Scores(
        absent,
        tuple(ClassScore(i, sum(row), predicted[i], row[i]) for i, row in enumerate(rows)),
    )


def _module(labels: Any) -> ModuleType:
    if isinstance(labels, np.ndarray):
        return np
    import torch

    return torch


def _whole(labels: Any, name: str, xp: ModuleType) -> Any:
    whole = labels.astype(np.int64) if xp is np else labels.long()
    floating = labels.dtype.kind not in "iub" if xp is np else labels.is_floating_point()
    if floating and not bool((whole == labels).all()):
        raise InputError(name, "labels with fractions", "whole numbers")
    return whole


def _check_range(name: str, labels: Any, counted: Any, classes: int, xp: ModuleType) -> None:
    bad = counted & ((labels < 0) | (labels >= classes))
    if not bool(bad.any()):
        return
    where = xp.argwhere(bad)[0].tolist()
    do = "correct the number of classes" + (", or ignore this label" if name == "truth" else "")
    raise InputError(
        f"{name} at {_place(where)}", f"label {int(labels[tuple(where)])}", f"0 to {classes - 1}", do
    )


def _place(where: Sequence[int]) -> str:
    return f"row {where[-2]}, column {where[-1]}" if len(where) > 1 else f"index {where}"


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _dims(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "()"
