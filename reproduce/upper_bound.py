"""The best scores that a coarse prediction can reach: Appendix A of the FCN paper (CVPR 2015).

The ground truth is made `factor` times smaller and brought to its size again, and scored as a prediction. The
paper does not say how it was resized; three ways are offered.

* `nearest`: the label at the centre of each cell of factor x factor pixels, repeated over the cell.
* `majority`: the most frequent label of the cell, repeated.
* `bilinear`: the share of each class in each cell, interpolated as a fixed up-sampling layer of Caffe does
  (twice the stride as its kernel), then the greatest: what a net of this stride could answer at best.

Void pixels take no part: a cell whose centre is void has the most frequent label of its other pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from caffe_weights.errors import InputError
from reproduce.data.base import VOID, Dataset
from reproduce.score import histogram

FACTORS = (128, 64, 32, 16, 8, 4)  # of the paper's table
RULES = ("nearest", "majority", "bilinear")


def upper_bounds(
    dataset: Dataset,
    part: str = "",
    factors: Sequence[int] = FACTORS,
    rule: str = "nearest",
    pictures: int = 0,
    step: Callable[[], None] | None = None,
) -> dict[int, np.ndarray]:
    """Histogram (truth x prediction), int64, for each factor, over a target of the split.

    `pictures`: only the first so many, 0 all. `step` is called for each. InputError for a factor below 1 or
    an unknown rule; FileError, FormatError.
    """
    if rule not in RULES:
        raise InputError("--rule", repr(rule), " or ".join(RULES))
    if not factors or min(factors) < 1:
        raise InputError("--factors", f"{list(factors)}", "whole numbers of at least 1")
    part = part or dataset.targets[0]
    classes = len(dataset.class_names[part])
    counts = {factor: np.zeros((classes, classes), np.int64) for factor in factors}
    for identity in dataset.ids[: pictures or None]:
        truth = dataset.label(identity, part)
        for factor in factors:
            counts[factor] += histogram(truth, there_and_back(truth, factor, classes, rule), classes)
        if step is not None:
            step()
    return counts


def there_and_back(labels: np.ndarray, factor: int, classes: int, rule: str = "nearest") -> np.ndarray:
    """A label map, uint8 H x W with 255 for void, made `factor` times smaller and again of its size.

    Nothing is void in the result; a cell without a label has class 0.
    """
    shares = cell_counts(labels, factor, classes)
    if rule == "bilinear":
        return (
            bilinear(shares / np.maximum(shares.sum(0), 1), factor, labels.shape).argmax(0).astype(np.uint8)
        )
    coarse = shares.argmax(0).astype(np.uint8)
    if rule == "nearest":
        rows, columns = (centres(size, factor) for size in labels.shape)
        sampled = labels[np.ix_(rows, columns)]
        coarse = np.where(sampled == VOID, coarse, sampled)
    height, width = labels.shape
    return coarse.repeat(factor, 0).repeat(factor, 1)[:height, :width]


def cell_counts(labels: np.ndarray, factor: int, classes: int) -> np.ndarray:
    """Pixels of each class in each cell, int64 classes x rows x columns; the last cells may be cut off."""
    rows, columns = (-(-size // factor) for size in labels.shape)
    cells = np.arange(labels.shape[0])[:, None] // factor * columns + np.arange(labels.shape[1]) // factor
    labelled = labels != VOID
    bins = labels[labelled].astype(np.int64) * rows * columns + cells[labelled]
    return np.bincount(bins, minlength=classes * rows * columns).reshape(classes, rows, columns)


def centres(size: int, factor: int) -> np.ndarray:
    """The pixel at the centre of each cell along an axis, the last one's within the picture."""
    return np.minimum(np.arange(0, size, factor) + factor // 2, size - 1)


def bilinear(maps: np.ndarray, factor: int, shape: tuple[int, ...]) -> np.ndarray:
    """Maps C x h x w interpolated to `shape` from the centres of their cells; the rim goes on as it is."""
    result = maps
    for axis, size in ((1, shape[0]), (2, shape[1])):
        place = np.clip((np.arange(size) + 0.5) / factor - 0.5, 0, maps.shape[axis] - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, maps.shape[axis] - 1)
        part = (place - low).reshape(-1, 1) if axis == 1 else place - low
        result = np.take(result, low, axis) * (1 - part) + np.take(result, high, axis) * part
    return result
