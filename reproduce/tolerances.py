"""The one tolerance table, and how a difference is measured.

A difference is relative to the largest magnitude of the expected blob, and of each of its channels where it
has channels, so that a channel of small values is not hidden by a large one. Tests, benchmarks and the
parity command read this module; no other place states a tolerance.
"""

from __future__ import annotations

import numpy as np

POINTWISE = 1e-6  # layers that treat values alone, or move them
CONV = 1e-5  # layers that sum many products
NET = 1e-5  # blobs of a whole narrow net
GRADIENT = 2e-5  # gradients of a whole net
FULL = 2e-5  # blobs of a net of full width
FOLDED = 1e-4  # BN merged into convolutions, in float64: new weights rounded, 29 layers on; worst seen 6e-5
OPENCV = 1e-4  # against OpenCV's importer, which has kernels of its own
FLOAT64_FACTOR = 1.5  # our worst difference from float64, over that of Caffe's float32: the judge of rounding
SMALLEST = 1e-7  # what a blob's or channel's magnitude counts as at least


def worst_difference(
    got: np.ndarray, want: np.ndarray, channels: bool = True
) -> tuple[float, tuple[int, ...]]:
    """The largest relative difference and where it is.

    With `channels`, a blob of three or more axes is also measured against the largest magnitude of each
    channel (axis 1), unless a channel is a single value, whose own magnitude says nothing. NaN and
    infinities must agree in place; one that does not counts as infinite.
    ValueError if shapes or dtypes differ.
    """
    relative = relative_differences(got, want, channels)
    if not relative.size:
        return 0.0, ()
    place = np.unravel_index(int(np.argmax(relative)), relative.shape)
    return float(relative[place]), tuple(int(i) for i in place)


def relative_differences(got: np.ndarray, want: np.ndarray, channels: bool = True) -> np.ndarray:
    """The relative difference of every element, float64 in the blob's shape, as `worst_difference` has it."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        raise ValueError(f"shape {got.shape}; wanted {want.shape}")
    if got.dtype != want.dtype:
        raise ValueError(f"dtype {got.dtype}; wanted {want.dtype}")
    if not got.size:
        return np.zeros(got.shape)
    apart = _apart(got.astype(np.float64), want.astype(np.float64))
    relative = apart / _magnitude(want, None)
    if channels and want.ndim > 2 and want.size > want.shape[1]:
        relative = np.maximum(
            relative, apart / _magnitude(want, tuple(i for i in range(want.ndim) if i != 1))
        )
    return relative


def _apart(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(got - want)
    equal = (got == want) | (np.isnan(got) & np.isnan(want))
    return np.where(equal, 0.0, np.where(np.isfinite(apart), apart, np.inf))


def _magnitude(want: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    finite = np.where(np.isfinite(want), np.abs(want.astype(np.float64)), 0.0)
    return np.maximum(finite.max(axis=axes, keepdims=axes is not None), SMALLEST)
