"""The papers' numbers about data sets: counted in the data set, where its folder is given.

Section 5, section 4.3 and appendices A and B of the FCN paper (CVPR 2015 and arXiv 1411.4038v2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reproduce.data import open_data
from reproduce.data.base import VOID
from reproduce.published.claims import Value
from reproduce.score import score
from reproduce.upper_bound import FACTORS, upper_bounds


@dataclass(frozen=True)
class Count:
    """What to count in the data set `kind`; `function` takes its folder."""

    kind: str
    function: Callable[[Path], Value]
    how: str
    reason: str = ""


def ids(kind: str, *splits: str) -> Callable[[Path], int]:
    """Counts the ids of some splits, taken together."""
    return lambda folder: sum(len(open_data(kind, folder, split).ids) for split in splits)


def background(folder: Path) -> str:
    """The share of background among SBD's labels of training, in quarters."""
    dataset = open_data("sbd", folder, "train")
    pixels = np.zeros(VOID + 1, np.int64)
    for identity in dataset.ids:
        pixels += np.bincount(dataset.label(identity).ravel(), minlength=VOID + 1)
    return f"~{round(4 * pixels[0] / pixels[:VOID].sum())}/4"


def absent_classes(folder: Path) -> int:
    """Semantic classes of SIFT Flow that no label of the test set has."""
    dataset = open_data("siftflow", folder, "test")
    seen = {int(label) for identity in dataset.ids for label in np.unique(dataset.label(identity))}
    return len(dataset.classes) - len(seen - {VOID})


def context_labels(folder: Path) -> int:
    """Lines of PASCAL-Context's labels.txt."""
    root = open_data("pascal-context", folder, "").root
    return len((root / "labels.txt").read_text(encoding="utf-8").split("\n")) - 1


def upper_bound(factor: int) -> Callable[[Path], float]:
    """Mean IU in percent that labels of seg11valid reach when taken down and up again by a factor."""

    def bound(folder: Path) -> float:
        counts = upper_bounds(open_data("voc", folder, "seg11valid"), factors=[factor])[factor]
        return 100 * score(counts).mean_iu

    return bound


BOUND = "as fcn upper-bound by the label at each cell's centre"
RESIZED = "the paper does not say how it resized the labels, nor on which pictures"
BOUNDS = {f"F15.AA-{i:02}": upper_bound(factor) for i, factor in enumerate(FACTORS, 1)}

COUNTS: dict[str, Count] = {
    "F15.S43-12": Count("voc", ids("voc", "train"), "ids of train", "VOC 2012 has more than VOC 2011"),
    "F15.S43-13": Count("sbd", ids("sbd", "train"), "ids of train"),
    "RS.TX-03": Count("sbd", ids("sbd", "train"), "ids of train"),
    "F15.S43-17": Count("sbd", background, "pixels of label 0 among those that count"),
    "F15.DATA-10": Count("siftflow", absent_classes, "classes without a pixel in the test labels"),
    "F15.ABT-03": Count("pascal-context", context_labels, "lines of labels.txt"),
    **{claim: Count("voc", bound, BOUND, RESIZED) for claim, bound in BOUNDS.items()},
}
