"""Make composites of real digits, data sets of kind `digits`, from scikit-learn's `load_digits`.

    python -m reproduce.demo_data.composites DIR          (half a minute; needs scikit-learn)

writes DIR/single and DIR/canvases, each with images/<id>.png, labels/<id>.png, train.txt, val.txt, test.txt.
Digits are held out by instance before anything is drawn: the 300 of `reproduce.demo_data.train` for test, the
next 200 for val, by which settings are chosen, the other 1,297 for train. A canvas holds digits 48 to 96
pixels high that do not touch: one on 96 x 96 pixels, 3 to 6 on 192 x 192. The seed is fixed: the same
versions of numpy, Pillow and scikit-learn write the same pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from caffe_weights.files import replace_file
from reproduce.digits import draw_canvas
from reproduce.visualize import write_label_png

SEED = 1992
LOWEST, HIGHEST = 48, 96  # pixels
TEST, VALIDATION = 300, 200  # digit instances


@dataclass(frozen=True)
class Canvas:
    """One of the two data sets: its side in pixels, fewest and most digits, and canvases by split."""

    size: int
    fewest: int
    most: int
    counts: Mapping[str, int] = field(default_factory=dict)


CANVASES = {
    "single": Canvas(96, 1, 1, {"train": 6000, "val": 200, "test": 200}),
    "canvases": Canvas(192, 3, 6, {"train": 3000, "val": 100, "test": 200}),
}


def composite(
    canvas: Canvas, images: np.ndarray, digits: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A canvas of digits drawn from `images` (N x 8 x 8, values 0..16): picture and classes, uint8."""
    chosen = rng.integers(0, len(images), rng.integers(canvas.fewest, canvas.most + 1))
    heights = np.sort(rng.integers(LOWEST, HIGHEST + 1, len(chosen)))[::-1]  # large ones while there is room
    picture, classes = draw_canvas(images[chosen], digits[chosen], heights, canvas.size, rng)
    return np.rint(picture * 255).astype(np.uint8), classes


def instances() -> dict[str, np.ndarray]:
    """The places in `load_digits` of the digits of each split."""
    from reproduce.demo_data.train import split

    order = split()[2]
    return {
        "train": order[TEST + VALIDATION :],
        "val": order[TEST : TEST + VALIDATION],
        "test": order[:TEST],
    }


def write_composites(folder: Path, canvas: Canvas) -> None:
    """Write a data set into a folder; files of the same name are replaced."""
    from reproduce.demo_data.train import split

    images, digits, _ = split()
    for below in ("images", "labels"):
        (folder / below).mkdir(parents=True, exist_ok=True)
    for number, (name, chosen) in enumerate(instances().items()):
        rng = np.random.default_rng([SEED, number])
        ids = [f"{name}_{i:04}" for i in range(canvas.counts.get(name, 0))]
        for identity in ids:
            picture, classes = composite(canvas, images[chosen], digits[chosen], rng)
            Image.fromarray(picture).save(folder / "images" / f"{identity}.png")
            write_label_png(classes, folder / "labels" / f"{identity}.png", force=True)
        with replace_file(folder / f"{name}.txt", force=True) as temporary:
            temporary.write_text("".join(f"{identity}\n" for identity in ids), encoding="utf-8")


def main() -> None:
    """Write both data sets."""
    if len(sys.argv) != 2:
        sys.exit("python -m reproduce.demo_data.composites DIR")
    for name, canvas in CANVASES.items():
        write_composites(Path(sys.argv[1]) / name, canvas)


if __name__ == "__main__":
    main()
