"""PASCAL VOC 2011 and 2012, the segmentation task; and seg11valid, on which the FCN paper scores.

Follows `VOCSegDataLayer` of voc_layers.py in shelhamer/fcn.berkeleyvision.org at 1305c73. seg11valid is the
validation set of VOC 2011 without the pictures on which SBD trains: 736 ids. It is read from the data set's
own list where there is one, else this package's serves; `derive_seg11valid` makes it anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from caffe_weights.errors import FormatError
from reproduce.data.base import Dataset, Published, ids_hash
from reproduce.data.files import read_labels
from reproduce.visualize import VOC_CLASSES

MEAN = (104.00699, 116.66877, 122.67892)
YEARS = ("VOC2012", "VOC2011")
# the year -> its splits; the hashes of the lists are not known to us
COUNTS = {"VOC2011": {"train": 1112, "val": 1111, "trainval": 2223},
          "VOC2012": {"train": 1464, "val": 1449, "trainval": 2913}}  # fmt: skip
SEG11VALID = Published(736, "4ca991bd72c251fd2485eaa9e29536502ea3800d1b1c17c151fd6a04bcfbc2cc")


class VOC(Dataset):
    """PASCAL VOC in the layout of its development kit."""

    kind = "voc"
    layout = "JPEGImages/<id>.jpg, SegmentationClass/<id>.png (palette), ImageSets/Segmentation/<split>.txt"
    roots = ("", *(f"{folder}{year}" for year in YEARS
                   for folder in ("", "VOCdevkit/", "TrainVal/VOCdevkit/", "pascal/")))  # fmt: skip
    marker = "JPEGImages"
    list_file = "ImageSets/Segmentation/{split}.txt"
    published: ClassVar = {"seg11valid": SEG11VALID}
    score_split = "seg11valid"
    class_names: ClassVar = {"label": VOC_CLASSES}
    means: Mapping[str, tuple[float, ...]] = {"image": MEAN}

    def path(self, part: str, identity: str) -> Path:
        if part == "label":
            return self.root / "SegmentationClass" / f"{identity}.png"
        return self.root / "JPEGImages" / f"{identity}.jpg"

    def read_label(self, part: str, path: Path) -> np.ndarray:
        return read_labels(path)

    def expected(self, split: str) -> Published | None:
        """As in the other data sets; the folder's name tells the year."""
        if split in self.published:
            return self.published[split]
        count = COUNTS.get(self.root.resolve().name, {}).get(split)
        return None if count is None else Published(count)


def derive_seg11valid(val_2011: Iterable[str], sbd_train: Collection[str]) -> tuple[str, ...]:
    """The ids of VOC 2011's validation set that SBD does not train on, in their order.

    FormatError where the result is not the published one.
    """
    used = frozenset(sbd_train)
    ids = tuple(identity for identity in val_2011 if identity not in used)
    if ids_hash(ids) != SEG11VALID.sha256:
        raise FormatError("seg11valid", f"{len(ids)} ids, SHA-256 {ids_hash(ids)[:12]}...",
                          f"{SEG11VALID.count} ids, SHA-256 {SEG11VALID.sha256[:12]}...",
                          "give the val list of VOC 2011 and the train list of SBD")  # fmt: skip
    return ids
