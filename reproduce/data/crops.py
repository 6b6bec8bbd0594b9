"""Square crops at random, and smaller pictures: how Auto-DeepLab reads large scenes (sections 5.1, 5.2).

The paper names crop sizes and the half resolution of the search, no code for them was published with the
search: a picture is made smaller by means of squares of pixels, its labels by the first of each square; a
crop lies at any place with the same probability, and where a picture is too small the mean and void fill up.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

VOID = 255
Blobs = Mapping[str, np.ndarray]


def shrunk(blobs: Blobs, factor: int) -> dict[str, np.ndarray]:
    """Blobs C x H x W at 1 / factor of their size, labels (uint8) without mixing; rows end on whole steps."""
    result = {}
    for name, blob in blobs.items():
        height, width = (max(1, size // factor) for size in blob.shape[1:])
        if blob.dtype == np.uint8:
            small = blob[:, ::factor, ::factor][:, :height, :width]
        else:
            whole = blob[:, : height * factor, : width * factor]
            small = whole.reshape(len(blob), height, -1, width, whole.shape[2] // width).mean((2, 4))
        result[name] = np.ascontiguousarray(small, blob.dtype)
    return result


def cropped(blobs: Blobs, size: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """All blobs C x H x W of an item cut to the same `size` x `size` window, drawn from `random`."""
    height, width = next(iter(blobs.values())).shape[1:]
    top, left = (int(random.integers(max(n - size, 0) + 1)) for n in (height, width))
    result = {}
    for name, blob in blobs.items():
        window = blob[:, top : top + size, left : left + size]
        whole = np.full((len(blob), size, size), VOID if blob.dtype == np.uint8 else 0, blob.dtype)
        whole[:, : window.shape[1], : window.shape[2]] = window
        result[name] = whole
    return result
