"""SIFT Flow (LMSun): outdoor scenes with 33 semantic and 3 geometric classes.

Follows `SIFTFlowSegDataLayer` of siftflow_layers.py in shelhamer/fcn.berkeleyvision.org at 1305c73. Both
lists come with this package. Three classes (cow, desert, moon) are absent from the test set, so the mean IU
depends on the rule for absent classes, see `reproduce.score`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from caffe_weights.files import PathLike
from reproduce.data.base import Dataset, Published, choose
from reproduce.data.files import read_mat, whole

SEMANTIC = (
    "awning", "balcony", "bird", "boat", "bridge", "building", "bus", "car", "cow", "crosswalk", "desert",
    "door", "fence", "field", "grass", "moon", "mountain", "person", "plant", "pole", "river", "road",
    "rock", "sand", "sea", "sidewalk", "sign", "sky", "staircase", "streetlight", "sun", "tree", "window",
)  # fmt: skip
GEOMETRIC = ("sky", "horizontal", "vertical")
SCENES = "spatial_envelope_256x256_static_8outdoorcategories"
FOLDERS = {"image": ("Images", "jpg"), "sem": ("SemanticLabels", "mat"), "geo": ("GeoLabels", "mat")}


class SIFTFlow(Dataset):
    """SIFT Flow in the layout of its archive. `label` gives semantic labels, with part "geo" the other."""

    kind = "siftflow"
    layout = (
        f"Images/{SCENES}/<id>.jpg, SemanticLabels/{SCENES}/<id>.mat (S), GeoLabels/{SCENES}/<id>.mat (S),"
        " <split>.txt"
    )
    roots = ("", "sift-flow", "SiftFlowDataset")
    marker = "SemanticLabels"
    published: ClassVar = {
        "trainval": Published(2486, "358811b7c7947e29bc98af3057e05c85c70ba8b955507d38661d34e524eed50c"),
        "test": Published(200, "866d9c2a8c8e27de69651f8a2938a3851165559345a5deb162e031af215f78be"),
    }
    train_split = "trainval"
    score_split = "test"
    class_names: ClassVar = {"sem": SEMANTIC, "geo": GEOMETRIC}
    means: Mapping[str, tuple[float, ...]] = {"image": (114.578, 115.294, 108.353)}
    targets: tuple[str, ...] = ("sem", "geo")

    def __init__(
        self, root: PathLike, split: str | None = None, targets: Sequence[str] = ("sem", "geo")
    ) -> None:
        """`targets` are the label sets wanted, in the order of the blobs."""
        self.targets = choose("targets", targets, ("sem", "geo"))
        super().__init__(root, split)

    def path(self, part: str, identity: str) -> Path:
        folder, extension = FOLDERS[part]
        return self.root / folder / SCENES / f"{identity}.{extension}"

    def read_label(self, part: str, path: Path) -> np.ndarray:
        labels = whole(read_mat(path, "S"), path, least=-1 if part == "geo" else 0)
        labels[labels == -1] = 0
        result = labels.astype(np.uint8)
        result -= 1  # 0, which is void, becomes 255
        return result
