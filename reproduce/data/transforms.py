"""From pictures to blobs, to the letter of the reference; mirroring, jitter, sampling, which its paper tried.

Follows `load_image` and `load_depth` in the `*_layers.py` files of shelhamer/fcn.berkeleyvision.org at
1305c73: float32, RGB reversed to BGR, minus a float64 mean (in float64, rounded to float32 once), then
C x H x W. Mirroring, jitter and patch sampling (section 4.3 of the CVPR paper: no noticeable gain) were
never published as code. Here a picture is moved by whole pixels, what moves in is mean colour and void; and
sampling patches, which the paper shows to be sampling the terms of the loss, makes the labels of what is left
out void.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reproduce.data.crops import VOID, cropped, shrunk


def picture_blob(image: np.ndarray, mean: Sequence[float]) -> np.ndarray:
    """RGB picture uint8 H x W x 3 to float32 3 x H x W: BGR minus `mean`, which is BGR too."""
    pixels = image.astype(np.float32)[:, :, ::-1]
    pixels -= np.array(mean)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def depth_blob(depth: np.ndarray, mean: float) -> np.ndarray:
    """Depth H x W, positive, to float32 1 x H x W: its natural logarithm minus `mean`."""
    logarithm = np.log(depth.astype(np.float32))
    logarithm -= np.float32(mean)
    return np.ascontiguousarray(logarithm[np.newaxis])


@dataclass(frozen=True)
class Augment:
    """Random changes of an item. `mirror`: half are flipped; `jitter`: the most pixels moved either way;
    `sample`: the probability that a square of `cell` x `cell` labels stays, each for itself; then pictures
    are made smaller by `shrink` and cut to `crop` x `crop` pixels at a random place (0: left whole)."""

    mirror: bool = False
    jitter: int = 0
    seed: int = 1337
    sample: float = 1.0
    cell: int = 1
    crop: int = 0
    shrink: int = 1

    @property
    def does_something(self) -> bool:
        """Whether items are changed at all."""
        return self.mirror or bool(self.jitter) or self.sample < 1 or bool(self.crop) or self.shrink > 1

    def __call__(self, blobs: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
        """Change all blobs C x H x W of an item alike; `number` is the picture's in the run and fixes how.

        Labels, which are uint8, get void where nothing was, inputs 0, which is the mean.
        """
        random = np.random.default_rng([self.seed, number])
        flip = bool(random.integers(2)) and self.mirror
        down, right = (int(step) for step in random.integers(-self.jitter, self.jitter + 1, 2))
        blobs = {name: moved(blob[:, :, ::-1] if flip else blob, down, right) for name, blob in blobs.items()}
        blobs = self._sampled(blobs, random) if self.sample < 1 else blobs
        blobs = shrunk(blobs, self.shrink) if self.shrink > 1 else blobs
        return cropped(blobs, self.crop, random) if self.crop else blobs

    def _sampled(self, blobs: dict[str, np.ndarray], random: np.random.Generator) -> dict[str, np.ndarray]:
        height, width = next(iter(blobs.values())).shape[1:]
        cells = random.random((-(-height // self.cell), -(-width // self.cell))) < self.sample
        kept = cells.repeat(self.cell, 0).repeat(self.cell, 1)[:height, :width]
        return {name: np.where(kept, blob, np.uint8(VOID)) if blob.dtype == np.uint8 else blob
                for name, blob in blobs.items()}  # fmt: skip


def moved(blob: np.ndarray, down: int, right: int) -> np.ndarray:
    """A blob C x H x W moved by whole pixels within its frame; the rest 0, of uint8 255."""
    if not down and not right:
        return np.ascontiguousarray(blob)
    result = np.full_like(blob, VOID if blob.dtype == np.uint8 else 0, order="C")
    height, width = blob.shape[1:]
    rows = slice(max(down, 0), height + min(down, 0)), slice(max(-down, 0), height + min(-down, 0))
    columns = slice(max(right, 0), width + min(right, 0)), slice(max(-right, 0), width + min(-right, 0))
    if abs(down) < height and abs(right) < width:
        result[:, rows[0], columns[0]] = blob[:, rows[1], columns[1]]
    return result
