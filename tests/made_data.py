"""Small data sets in the layouts of the published ones, made by PIL and scipy; for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from reproduce.data.siftflow import SCENES

HEIGHT, WIDTH = 5, 7


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labels(seed: int, classes: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, (height, width), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    """A picture, lossless whatever its extension says, as PIL goes by the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(list(range(256)) * 3)
    image.save(path, "PNG")


def write_mat(path: Path, **values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, values)


def write_list(path: Path, ids: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{identity}\n" for identity in ids))


def make_voc(root: Path, ids: Sequence[str] = ("2007_000001", "2007_000002"), split: str = "val") -> Path:
    for seed, identity in enumerate(ids):
        write(root / f"JPEGImages/{identity}.jpg", picture(seed))
        truth = labels(seed, 21)
        truth[0, :2] = 255
        write(root / f"SegmentationClass/{identity}.png", truth, palette=True)
    write_list(root / f"ImageSets/Segmentation/{split}.txt", ids)
    return root


def make_sbd(root: Path, ids: Sequence[str] = ("2008_000001", "2008_000002", "2008_000003")) -> Path:
    for seed, identity in enumerate(ids):
        write(root / f"img/{identity}.jpg", picture(seed))
        write_mat(root / f"cls/{identity}.mat",
                  GTcls={"Segmentation": labels(seed, 21), "Boundaries": np.zeros((20, 1))})  # fmt: skip
    write_list(root / "train.txt", ids)
    return root


def make_nyud(root: Path, ids: Sequence[str] = ("5001", "5002"), split: str = "trainval") -> Path:
    for seed, identity in enumerate(ids):
        write(root / f"data/images/img_{identity}.png", picture(seed))
        write(root / f"data/hha/img_{identity}.png", picture(seed + 100))
        depth = np.random.default_rng(seed).integers(500, 9000, (HEIGHT, WIDTH), dtype=np.uint16)
        write(root / f"data/depth/img_{identity}.png", depth)
        write_mat(root / f"segmentation/img_{identity}.mat", segmentation=labels(seed, 41))
    write_list(root / f"{split}.txt", ids)
    return root


def make_siftflow(
    root: Path, ids: Sequence[str] = ("coast_a1", "street_b2"), split: str = "trainval"
) -> Path:
    for seed, identity in enumerate(ids):
        write(root / f"Images/{SCENES}/{identity}.jpg", picture(seed))
        write_mat(root / f"SemanticLabels/{SCENES}/{identity}.mat", S=labels(seed, 34), names=["x"])
        geometric = labels(seed, 5).astype(np.int16) - 1
        write_mat(root / f"GeoLabels/{SCENES}/{identity}.mat", S=geometric)
    write_list(root / f"{split}.txt", ids)
    return root


CONTEXT_TASK = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor", "bag",
    "bed", "bench", "book", "building", "cabinet", "ceiling", "clothes", "computer", "cup", "door",
    "fence", "floor", "flower", "food", "grass", "ground", "keyboard", "light", "mountain", "mouse",
    "curtain", "platform", "sign", "plate", "road", "rock", "shelves", "sidewalk", "sky", "snow",
    "bedcloth", "track", "tree", "truck", "wall", "water", "window", "wood",
)  # fmt: skip


def make_context(root: Path, ids: Sequence[str] = ("2008_000008", "2008_000015")) -> Path:
    """Labels 1.. are an odd one, then the 59 in reverse; `tv monitor` is written with its space."""
    swapped = {
        "diningtable": "table",
        "bedcloth": "bedclothes",
        "clothes": "cloth",
        "tvmonitor": "tv monitor",
    }
    names = ["air conditioner", *(swapped.get(name, name) for name in reversed(CONTEXT_TASK))]
    for seed, identity in enumerate(ids):
        write(root / f"VOC2010/JPEGImages/{identity}.jpg", picture(seed))
        write_mat(root / f"trainval/{identity}.mat", LabelMap=labels(seed, 61).astype(np.uint16))
    root.joinpath("labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(names, 1)))
    task = "".join(f"{i}: {name}\n" for i, name in enumerate(CONTEXT_TASK, 1))
    root.joinpath("59_labels.txt").write_text(task)
    write_list(root / "VOC2010/ImageSets/Main/train.txt", ids)
    return root


def make_camvid(root: Path, counts: dict[str, int] | None = None, size: tuple[int, int] = (12, 16)) -> Path:
    """Squares of one class each on a ground of another: something that can be learned."""
    for split, count in (counts or {"train": 3, "val": 1, "test": 2}).items():
        ids = [f"{split}_{number}" for number in range(count)]
        for seed, identity in enumerate(ids):
            truth = np.repeat(np.repeat(labels(seed + 7, 12, 2, 2), size[0] // 2, 0), size[1] // 2, 1)
            colours = np.random.default_rng(0).integers(0, 256, (12, 3), dtype=np.uint8)
            write(root / f"images/{identity}.jpg", colours[truth])
            write(root / f"labels/{identity}.png", truth)
        write_list(root / f"{split}.txt", ids)
    return root
