"""Bilinear kernels: the starting weights of up-sampling layers.

Two published rules give the same kernel up to rounding, and each is followed to the last bit where it is
used: the FCN reference's `upsample_filt` and `interp` (float64, one filter a channel), and the `bilinear`
filler of Caffe (include/caffe/filler.hpp, commit 9b891540; float32, every pair of channels). Shapes are
those of a Deconvolution's weight blob, (in, out / group, height, width).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_weights.errors import WeightsError

_WHERE = "bilinear weights"


def bilinear_kernel(size: int) -> np.ndarray:
    """The (size, size) float64 kernel that up-samples by ceil(size / 2).

    Its peak is the middle element when the size is odd, else between the two middle ones.
    """
    if size < 1:
        raise WeightsError(_WHERE, f"kernel size {size}", "at least 1")
    factor = (size + 1) // 2
    middle = factor - 1 if size % 2 else factor - 0.5
    ramp = 1 - np.abs(np.arange(size) - middle) / factor
    return np.outer(ramp, ramp)


def bilinear_weights(shape: Sequence[int]) -> np.ndarray:
    """Float32 weights that up-sample each channel by itself.

    `shape` is (C, C, k, k), where the kernel stands on the channel diagonal among zeros, or (C, 1, k, k)
    of a layer with group C. Anything else is a WeightsError.
    """
    rows, columns, size = _checked(shape)
    if columns not in (rows, 1):
        raise WeightsError(
            _WHERE,
            f"{rows} input and {columns} output channels",
            "as many of one as of the other, or 1 for a layer with group equal to its channels",
            "interpolation maps each channel to itself",
        )
    weights = np.zeros((rows, columns, size, size), np.float32)
    channels = np.arange(rows)
    weights[channels, channels if columns == rows else 0] = bilinear_kernel(size)
    return weights


def bilinear_filler(shape: Sequence[int]) -> np.ndarray:
    """Float32 weights as Caffe's `bilinear` filler makes them: the kernel in every pair of channels.

    With group 1 and several channels each output is then the sum of all inputs, interpolated; Caffe
    means the filler for layers with group equal to their channels. Bit-equal to Caffe for any size.
    """
    rows, columns, size = _checked(shape)
    factor = np.float32((size + 1) // 2)
    centre = np.float32((size - 1) / (2 * float(factor)))
    ramp = 1 - np.abs(np.arange(size, dtype=np.float32) / factor - centre)
    return np.tile(np.outer(ramp, ramp), (rows, columns, 1, 1))


def _checked(shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = tuple(int(size) for size in shape)
    if len(sizes) != 4 or min(sizes) < 1:
        raise WeightsError(_WHERE, f"shape {sizes}", "4 axes: input channels, output channels, height, width")
    rows, columns, height, width = sizes
    if height != width:
        raise WeightsError(_WHERE, f"a {height} x {width} kernel", "a square one", "the rule has one factor")
    return rows, columns, height
