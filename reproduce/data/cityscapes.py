"""Cityscapes: 5,000 street scenes of 2048 x 1024 with 19 classes that count (Cordts et al., CVPR 2016).

No data set of the FCN paper; Auto-DeepLab's. Fine annotations in the layout of the data set's packages; there
are no lists, a split is its folder. The 34 label ids of the annotation files become the 19 train ids of its
authors' scripts, all others void. The mean makes pixels of -127.5 to 127.5, as DeepLab's code has them. The
labels of the test split were never published: its files hold void.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from caffe_weights.errors import FileError, FormatError
from reproduce.data.base import VOID, Dataset, Published, Split
from reproduce.data.files import read_labels

MEAN = (127.5, 127.5, 127.5)
# label id of the annotations -> name, in the order of the train ids; and the colours, RGB
CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car",
    27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
COLOURS = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
    (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
    (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
LABEL_IDS = 34  # 0 to 33; a licence plate, -1, is 255 in the files
IMAGE, LABEL = "leftImg8bit", "gtFine"


class Cityscapes(Dataset):
    """Cityscapes, fine annotations. Ids are those of its file names, as aachen_000000_000019."""

    kind = "cityscapes"
    layout = "leftImg8bit/<split>/<city>/<id>_leftImg8bit.png, gtFine/<split>/<city>/<id>_gtFine_labelIds.png"
    roots = ("", "cityscapes", "Cityscapes")
    marker = IMAGE
    published: ClassVar = {"train": Published(2975), "val": Published(500), "test": Published(1525)}
    class_names: ClassVar = {"label": tuple(CLASSES.values())}
    means: Mapping[str, tuple[float, ...]] = {"image": MEAN}

    @property
    def palette(self) -> np.ndarray:
        """The colours of its authors; void is black."""
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(COLOURS)] = COLOURS
        return colours

    def path(self, part: str, identity: str) -> Path:
        folder, ending = (LABEL, f"{LABEL}_labelIds") if part == "label" else (IMAGE, IMAGE)
        city = identity.split("_", maxsplit=1)[0]
        return self.root / folder / self.split.name / city / f"{identity}_{ending}.png"

    def read_label(self, part: str, path: Path) -> np.ndarray:
        """Train ids; FormatError for a value that is no label id."""
        ids = read_labels(path)
        wrong = (ids >= LABEL_IDS) & (ids != VOID)
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            raise FormatError(f"{path}: row {row}, column {column}", f"label id {ids[row, column]}",
                              f"0 to {LABEL_IDS - 1}", "give the labelIds of gtFine")  # fmt: skip
        return TRAIN_IDS[ids]

    def splits(self) -> list[str]:
        return sorted(path.name for path in (self.root / IMAGE).iterdir() if path.is_dir())

    def read_split(self, name: str) -> Split:
        """The pictures in a split's folder, by their names. FileError where there are none."""
        folder = self.root / IMAGE / name
        ending = f"_{IMAGE}.png"
        ids = sorted(path.name.removesuffix(ending) for path in folder.glob(f"*/*{ending}")) if name else []
        if not ids:
            raise FileError(str(folder), f"no pictures of split {name}",
                            " or ".join(self.splits()) or f"the layout {self.layout}")  # fmt: skip
        return Split(name, tuple(ids), str(folder))


def _train_ids() -> np.ndarray:
    table = np.full(256, VOID, np.uint8)
    table[list(CLASSES)] = np.arange(len(CLASSES))
    return table


TRAIN_IDS = _train_ids()
