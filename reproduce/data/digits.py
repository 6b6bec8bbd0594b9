"""Composites of real digits: canvases on which handwritten digits stand, at any place and size.

No data set of any paper, and no real segmentation set: `reproduce.demo_data.composites` draws it from the
8 x 8 digits of scikit-learn's `load_digits`, held out by instance. Class 0 is the ground, 1 + d digit d. A
pixel has a digit's class where its ink is above 0.3; nothing is void. No mean is taken off: the ground is
black, which is 0, which is what padding brings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from reproduce.data.base import Dataset
from reproduce.data.files import read_labels


class Digits(Dataset):
    """Composites of digits in a folder that `python -m reproduce.demo_data.composites DIR` made."""

    kind = "digits"
    layout = "images/<id>.png, labels/<id>.png (0 ground, 1 + d digit d), <split>.txt"
    roots = ("", "digits")
    marker = "images"
    score_split = "test"
    class_names: ClassVar = {"label": ("ground", *"0123456789")}
    means: Mapping[str, tuple[float, ...]] = {"image": (0.0, 0.0, 0.0)}

    def path(self, part: str, identity: str) -> Path:
        return self.root / ("labels" if part == "label" else "images") / f"{identity}.png"

    def read_label(self, part: str, path: Path) -> np.ndarray:
        return read_labels(path)
