"""MATLAB's `imresize`, bilinear: antialiased when it shrinks. The released pipeline resizes by it.

Follows the documented behaviour: with s = n / m, sample i of n (from 1) on an axis of length m lies at
i / s + (1 - 1 / s) / 2; the triangle of half width max(1, 1 / s) around that place weighs the samples, its
weights divided by their sum, and outside the axis is mirrored, its edge repeated. The two axes are resized
one after the other, which is one matrix product each. Departure: MATLAB rounds a uint8 picture to whole
values after each axis; here nothing is rounded.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

MOST_MATRICES = 256


def imresize(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Planes ... x H x W to ... x H' x W', in their floating dtype, on their device."""
    height, width = planes.shape[-2:]
    result = planes
    if width != size[1]:
        result = result @ _matrix(width, size[1]).to(planes).T
    if height != size[0]:
        result = _matrix(height, size[0]).to(planes) @ result
    return result


def resized_part(planes: Tensor, size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """`imresize(planes, size)[..., rows, columns]`, computing nothing else."""
    right = _matrix(planes.shape[-1], size[1])[columns].to(planes)
    down = _matrix(planes.shape[-2], size[0])[rows].to(planes)
    return down @ (planes @ right.T)


def resize_weights(old: int, new: int) -> np.ndarray:
    """What each of `old` samples weighs in each of `new`: float64 new x old, rows sum to 1."""
    scale = new / old
    half = max(1.0, 1 / scale)
    centres = (np.arange(1, new + 1) / scale + (1 - 1 / scale) / 2)[:, np.newaxis]
    taps = np.floor(centres - half) + np.arange(int(np.ceil(2 * half)) + 2)  # new x taps, from 1
    weights = np.maximum(0, 1 - np.abs(centres - taps) / half)
    weights /= weights.sum(axis=1, keepdims=True)
    places = (taps - 1) % (2 * old)
    mirrored = np.where(places < old, places, 2 * old - 1 - places).astype(int)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, np.newaxis], mirrored), weights)
    return matrix


@lru_cache(maxsize=MOST_MATRICES)
def _matrix(old: int, new: int) -> Tensor:
    return torch.from_numpy(resize_weights(old, new))
