"""Handwritten digits drawn the way LeNet was shown them, alone and side by side on a strip.

The digits are the 8 x 8 ones of scikit-learn's `load_digits` (UCI, optical recognition of handwritten
digits), values 0 to 16, white ink on black. MNIST's own recipe is followed (LeCun et al. 1998, section
III.A): the box around the ink is scaled to 20 pixels and placed in a 28 x 28 field by the ink's centre of
mass. Departures: the height alone is made 20, the width follows; scaling is bicubic, as 8 pixels are few.

A strip holds several such digits in one image of height 28, which is how convolutional nets first read
more than they were trained on (Matan et al. 1992). `FIELD` and `STRIDE` are those of LeNet: its
fully convolutional form looks at one field every 4 pixels. A canvas holds digits of any height at any place,
with the class of each pixel: a composite of real digits, not a real segmentation set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

FIELD = 28
STRIDE = 4
HEIGHT = 20
GROUND = 0  # the class of a canvas where there is no ink; digit d is 1 + d
INK = 0.3  # above it a pixel belongs to the digit
TRIES = 20  # places looked at for a digit before it is left out


def draw_digit(image: np.ndarray) -> np.ndarray:
    """Draw one 8 x 8 digit (values 0..16) as 28 x 28 float32 in [0, 1]: 20 high, centred by mass."""
    ink = _scaled_ink(image)
    height, width = ink.shape
    top = _centred(ink.sum(1), height)
    left = _centred(ink.sum(0), width)
    field = np.zeros((FIELD, FIELD), np.float32)
    field[top : top + height, left : left + width] = ink
    return field


def draw_strip(
    images: Sequence[np.ndarray] | np.ndarray, gaps: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """Digits with `gaps[i]` empty pixels left of the ink of digit i (and the last gap right of all).

    `gaps` has one entry more than `images`. Returns the strip, float32 28 x W in [0, 1], with W filled up
    so that the fields reach its end, and for each digit the column of its ink's centre of mass.
    """
    columns: list[np.ndarray] = []
    centres: list[int] = []
    width = 0
    for image, gap in zip(images, gaps, strict=False):
        ink = _cut_columns(draw_digit(image))
        columns += [np.zeros((FIELD, gap), np.float32), ink]
        centres.append(width + gap + _mass_centre(ink.sum(0)))
        width += gap + ink.shape[1]
    end = gaps[len(images)]
    end += max(FIELD - width - end, 0)
    end += -(width + end - FIELD) % STRIDE
    columns.append(np.zeros((FIELD, end), np.float32))
    return np.concatenate(columns, axis=1), centres


def draw_canvas(
    images: Sequence[np.ndarray] | np.ndarray,
    digits: Sequence[int] | np.ndarray,
    heights: Sequence[int] | np.ndarray,
    size: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw digits of `heights` pixels on a canvas at random places where they do not touch.

    Each of `images` is 8 x 8 (values 0..16) and shows the digit of `digits`; one that finds no place is left
    out. Returns the picture, float32 size x size in [0, 1], and its classes, uint8: 0 ground, 1 + d digit d.
    """
    picture, classes = np.zeros((size, size), np.float32), np.full((size, size), GROUND, np.uint8)
    taken = np.zeros((size, size), bool)
    for image, digit, height in zip(images, digits, heights, strict=True):
        ink = _scaled_ink(image, int(height), size)
        rows, columns = ink.shape
        for _ in range(TRIES):
            top, left = (int(rng.integers(0, size - side + 1)) for side in ink.shape)
            place = slice(top, top + rows), slice(left, left + columns)
            if not taken[place].any():
                taken[place] = True
                picture[place] = ink
                classes[place][ink > INK] = 1 + digit
                break
    return picture, classes


def field_centres(width: int) -> np.ndarray:
    """Columns at the middle of the fields that LeNet sees on a strip of this width: 14, 18, 22, ..."""
    return np.arange(0, width - FIELD + 1, STRIDE) + FIELD // 2


def _scaled_ink(image: np.ndarray, height: int = HEIGHT, widest: int = FIELD - 2) -> np.ndarray:
    rows, columns = np.nonzero(image)
    box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    width = min(max(round(box.shape[1] * height / box.shape[0]), 1), widest)
    scaled = Image.fromarray(box.astype(np.float32) / 16).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(scaled), 0, 1)


def _mass_centre(profile: np.ndarray) -> int:
    return round(float((profile * np.arange(len(profile))).sum() / profile.sum()))


def _centred(profile: np.ndarray, size: int) -> int:
    """First index that puts the centre of mass at 13.5 without leaving the field."""
    mass = float((profile * np.arange(size)).sum() / profile.sum())
    return min(max(round((FIELD - 1) / 2 - mass), 0), FIELD - size)


def _cut_columns(field: np.ndarray) -> np.ndarray:
    inked = np.nonzero(field.max(0) > 0)[0]
    return field[:, inked[0] : inked[-1] + 1]
