"""PASCAL-Context: VOC 2010 labelled whole, in the task of 59 classes and 0 for all else.

Follows `PASCALContextSegDataLayer` of pascalcontext_layers.py in shelhamer/fcn.berkeleyvision.org at 1305c73:
the files hold more than 400 labels, those of the task are found by name through labels.txt and 59_labels.txt,
where table, bedclothes and cloth stand for diningtable, bedcloth and clothes. There is no void.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from caffe_weights.errors import FileError, FormatError
from caffe_weights.files import PathLike
from reproduce.data.base import Dataset, Published, Split, lines_of
from reproduce.data.files import read_mat, whole

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor", "bag", "bed", "bench", "book", "building", "cabinet", "ceiling", "clothes", "computer",
    "cup", "door", "fence", "floor", "flower", "food", "grass", "ground", "keyboard", "light", "mountain",
    "mouse", "curtain", "platform", "sign", "plate", "road", "rock", "shelves", "sidewalk", "sky", "snow",
    "bedcloth", "track", "tree", "truck", "wall", "water", "window", "wood",
)  # fmt: skip
STAND_FOR = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}  # task -> labels.txt
VOC_PLACES = ("", "pascal", "VOCdevkit", "../pascal", "..")  # where VOC2010 is looked for, from both folders
MOST_LABELS = 1 << 16
NO_SPLITS = {"labels", "59_labels"}


class PASCALContext(Dataset):
    """PASCAL-Context in the layout of its archive; VOC2010 in it, beside it, in pascal/, or as given."""

    kind = "pascal-context"
    layout = (
        "trainval/<id>.mat (LabelMap), labels.txt, 59_labels.txt;"
        " VOC2010/JPEGImages/<id>.jpg, VOC2010/ImageSets/Main/<split>.txt"
    )
    roots = ("", "pascal-context")
    marker = "59_labels.txt"
    published: ClassVar = {"train": Published(4998), "val": Published(5105)}
    class_names: ClassVar = {"label": CLASSES}
    means: Mapping[str, tuple[float, ...]] = {"image": (104.007, 116.669, 122.679)}

    def __init__(self, root: PathLike, split: str | None = None, voc: PathLike | None = None) -> None:
        """`voc` is the folder of VOC2010, or that which holds it."""
        context = self.find_root(Path(root))
        self.voc = _find_voc([Path(voc)] if voc is not None else [Path(root), context], self.layout)
        super().__init__(root, split)
        self.table = label_table(context / "labels.txt", context / "59_labels.txt")

    def path(self, part: str, identity: str) -> Path:
        if part == "label":
            return self.root / "trainval" / f"{identity}.mat"
        return self.voc / "JPEGImages" / f"{identity}.jpg"

    def read_label(self, part: str, path: Path) -> np.ndarray:
        labels = whole(read_mat(path, "LabelMap"), path, most=MOST_LABELS - 1)
        result: np.ndarray = self.table[labels]
        return result

    def read_split(self, name: str) -> Split:
        path = self.voc / "ImageSets" / "Main" / f"{name}.txt"
        return self.parse_list(name, path) if path.is_file() else super().read_split(name)

    def splits(self) -> list[str]:
        names = (path.stem for path in (self.voc / "ImageSets" / "Main").glob("*.txt"))
        return sorted({*super().splits(), *(name for name in names if "_" not in name)} - NO_SPLITS)


def label_table(labels: PathLike, task: PathLike) -> np.ndarray:
    """From a label of the files to its class 0..59: uint8, as long as labels can be.

    FileError, FormatError where a class of the task is not among the labels.
    """
    numbers = {name: number for number, name in _names(Path(labels))}
    table = np.zeros(MOST_LABELS, np.uint8)
    names = [name for number, name in _names(Path(task)) if number]
    if len(names) != len(CLASSES) - 1:
        raise FormatError(str(task), f"{len(names)} classes", f"{len(CLASSES) - 1}")
    for index, name in enumerate(names, 1):
        found = STAND_FOR.get(name, name)
        if found not in numbers:
            raise FormatError(str(labels), f"no label {found}", f"one for class {index}, {name}, of {task}")
        table[numbers[found]] = index
    return table


def _names(path: Path) -> Sequence[tuple[int, str]]:
    """Number and name of each line `7: air conditioner`, the spaces in names left out."""
    pairs = []
    for line, text in lines_of(path):
        number, colon, name = text.partition(":")
        if not colon or not number.strip().isdecimal() or int(number) >= MOST_LABELS:
            raise FormatError(f"{path} line {line}", f"{text[:60]!r}", "number: name")
        pairs.append((int(number), name.replace(" ", "")))
    return pairs


def _find_voc(starts: Sequence[Path], layout: str) -> Path:
    for start in starts:
        for place in VOC_PLACES:
            if (start / place / "VOC2010" / "JPEGImages").is_dir():
                return start / place / "VOC2010"
        if (start / "JPEGImages").is_dir():
            return start
    raise FileError(str(starts[0]), "no VOC2010 in it or beside it", f"the layout {layout}",
                    "put VOC2010 there, or give its folder")  # fmt: skip
