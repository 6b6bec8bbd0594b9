"""SBD, the Semantic Boundaries Dataset (Hariharan et al.): VOC pictures with more label maps, to train on.

Follows `SBDDSegDataLayer` of voc_layers.py in shelhamer/fcn.berkeleyvision.org at 1305c73. The label maps
have no void border. The published training set holds 8,498 pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from reproduce.data.base import Dataset, Published
from reproduce.data.files import read_mat, whole
from reproduce.data.voc import MEAN
from reproduce.visualize import VOC_CLASSES


class SBD(Dataset):
    """SBD in the layout of its archive."""

    kind = "sbd"
    layout = "img/<id>.jpg, cls/<id>.mat (GTcls.Segmentation), <split>.txt"
    roots = ("", "dataset", "benchmark_RELEASE/dataset", "sbdd/dataset", "sbd/dataset")
    marker = "cls"
    published: ClassVar = {"train": Published(8498), "val": Published(2857)}
    class_names: ClassVar = {"label": VOC_CLASSES}
    means: Mapping[str, tuple[float, ...]] = {"image": MEAN}

    def path(self, part: str, identity: str) -> Path:
        return self.root / (f"cls/{identity}.mat" if part == "label" else f"img/{identity}.jpg")

    def read_label(self, part: str, path: Path) -> np.ndarray:
        return whole(read_mat(path, "GTcls", "Segmentation"), path).astype(np.uint8)
