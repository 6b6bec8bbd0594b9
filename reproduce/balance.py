"""Weights of classes in the loss, from how often a training set has them.

Section 4.3 of the FCN paper (CVPR 2015) balances classes by weighting the loss and does not say how; two ways
are offered. `median-frequency` is Eigen and Fergus (ICCV 2015, section 6.3.2), as SegNet used it on CamVid:
the frequency of a class is its share of the pixels of the pictures that hold it, its weight the median of all
frequencies over its own. `inverse`: the weight is inverse to the share of all pixels, scaled so that the
weights of all pixels have the mean 1, by which the loss keeps its size.

Only labelled pixels count. A class that no picture holds has weight 0: it never meets a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from caffe_weights.caffe_pb2 import BlobProto
from caffe_weights.errors import FormatError, InputError
from caffe_weights.files import open_input, replace_file
from reproduce.data.base import Dataset

MOST_BYTES = 1 << 20


def median_frequency(pixels: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Weight of each class, float64, from its pixels and the labelled pixels of the pictures that hold it."""
    held = pixels > 0
    frequency = pixels[held] / among[held]
    weights = np.zeros(len(pixels))
    weights[held] = np.median(frequency) / frequency
    return weights


def inverse(pixels: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Weight of each class, float64, inverse to its pixels; over all pixels the mean weight is 1."""
    held = pixels > 0
    weights = np.zeros(len(pixels))
    weights[held] = pixels.sum() / (held.sum() * pixels[held])
    return weights


RULES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "median-frequency": median_frequency,
    "inverse": inverse,
}


def count_classes(
    dataset: Dataset, part: str, step: Callable[[], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each class of a target in the split, and labelled pixels of the pictures that hold it; int64.

    `step` is called for each picture. FileError, FormatError.
    """
    classes = len(dataset.class_names[part])
    pixels, among = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for identity in dataset.ids:
        counts = np.bincount(dataset.label(identity, part).reshape(-1), minlength=256)[:classes]
        pixels += counts
        among += np.where(counts > 0, counts.sum(), 0)
        if step is not None:
            step()
    return pixels, among


def class_weights(
    rule: str, dataset: Dataset, part: str, step: Callable[[], None] | None = None
) -> np.ndarray:
    """Weights of the classes of a target by a rule of RULES, or from a text file of this name.

    InputError where no pixel is labelled, or the file does not fit; FileError, FormatError.
    """
    if rule not in RULES:
        return read_class_weights(Path(rule), dataset.class_names[part])
    pixels, among = count_classes(dataset, part, step)
    if not pixels.any():
        raise InputError(f"--balance {rule}", f"no labelled pixel in {dataset.split.source}",
                         "label maps that are not all void")  # fmt: skip
    return RULES[rule](pixels, among)


def read_class_weights(path: Path, names: Sequence[str]) -> np.ndarray:
    """One weight a line, in the order of the classes; what follows on a line is ignored. FileError,
    FormatError."""
    with open_input(path) as stream:
        text = stream.read(MOST_BYTES + 1).decode("utf-8", errors="replace")
    rows = [(n, line.split()[0]) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    weights = [_weight(word, f"{path} line {number}") for number, word in rows]
    if len(weights) != len(names):
        raise FormatError(str(path), f"{len(weights)} weights", f"{len(names)}, one a line for each class",
                          f"the first is {names[0]}'s")  # fmt: skip
    return np.array(weights)


def write_class_weights(path: Path, weights: np.ndarray, names: Sequence[str]) -> None:
    """The text that `read_class_weights` reads, with the classes' names."""
    lines = [f"{weight!r:<24} {name}\n" for weight, name in zip(weights.tolist(), names, strict=True)]
    with replace_file(path, force=True) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def gain_matrix(weights: np.ndarray) -> bytes:
    """A `.binaryproto` for InfogainLoss: the weights on the diagonal, 1 x 1 x classes x classes."""
    classes = len(weights)
    blob = BlobProto(num=1, channels=1, height=classes, width=classes)
    blob.data.extend(np.diag(weights).astype(np.float32).reshape(-1).tolist())
    return blob.SerializeToString()


def _weight(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise FormatError(where, repr(word[:40]), "a weight, 0 or more")
    return value
