"""NYUDv2 with 40 classes: colour, depth, HHA (disparity, height, angle), in any combination.

Follows `NYUDSegDataLayer` of nyud_layers.py in shelhamer/fcn.berkeleyvision.org at 1305c73. The lists of
train, val and test come with this package; where the data set has no trainval, it is train and then val.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from caffe_weights.files import PathLike
from reproduce.data.base import Dataset, Published, Split, choose
from reproduce.data.files import read_depth, read_mat, whole
from reproduce.data.transforms import depth_blob

CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
    "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes",
    "ceiling", "books", "refridgerator", "television", "paper", "towel", "shower curtain", "box",
    "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure",
    "otherfurniture", "otherprop",
)  # fmt: skip
FOLDERS = {"color": "images", "depth": "depth", "hha": "hha"}


class NYUD(Dataset):
    """NYUDv2 in the layout of Gupta et al. with the reference's segmentation files."""

    kind = "nyud"
    layout = (
        "data/images/img_<id>.png, data/depth/img_<id>.png, data/hha/img_<id>.png,"
        " segmentation/img_<id>.mat (segmentation), <split>.txt"
    )
    roots = ("", "nyud")
    marker = "segmentation"
    published: ClassVar = {
        "train": Published(381, "a9bab88e73095130f40f23e9e31aeb2381a1195873fde9d113fe62550a12d365"),
        "val": Published(414, "cd278b1232fe5c2347994a9a3c13cd916aa2e72def51b9698993a2e8936797f5"),
        "trainval": Published(795),
        "test": Published(654, "656d092d45f280de393c7beab6185f6d8bbbec2f01c5b2becd478cfd5505ec74"),
    }
    train_split = "trainval"
    score_split = "test"
    class_names: ClassVar = {"label": CLASSES}
    means: Mapping[str, tuple[float, ...]] = {
        "color": (116.190, 97.203, 92.318),
        "depth": (7.844,),
        "hha": (132.431, 94.076, 118.477),
    }

    def __init__(
        self, root: PathLike, split: str | None = None, modalities: Sequence[str] = ("color",)
    ) -> None:
        """`modalities` are the inputs wanted, of color, depth and hha, in the order of the blobs."""
        self.inputs = choose("modalities", modalities, tuple(FOLDERS))
        super().__init__(root, split)

    def path(self, part: str, identity: str) -> Path:
        if part == "label":
            return self.root / "segmentation" / f"img_{identity}.mat"
        return self.root / "data" / FOLDERS[part] / f"img_{identity}.png"

    def image(self, identity: str, part: str = "") -> np.ndarray:
        """As in the other data sets; of depth the values of the file, float32 H x W."""
        part = part or self.inputs[0]
        return read_depth(self.existing(part, identity)) if part == "depth" else super().image(identity, part)

    def blob(self, part: str, identity: str) -> np.ndarray:
        if part == "depth":
            return depth_blob(self.image(identity, part), self.means[part][0])
        return super().blob(part, identity)

    def read_label(self, part: str, path: Path) -> np.ndarray:
        labels = whole(read_mat(path, "segmentation"), path).astype(np.uint8)
        labels -= 1  # 0, which is void, becomes 255
        return labels

    def read_split(self, name: str) -> Split:
        if name != "trainval" or (self.root / "trainval.txt").is_file():
            return super().read_split(name)
        train, val = super().read_split("train"), super().read_split("val")
        return Split(name, train.ids + val.ids, f"{train.source}, then {val.source}", packaged=train.packaged)

    def splits(self) -> list[str]:
        return sorted({*super().splits(), "trainval"})
