from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest

from caffe_weights.errors import WeightsError
from surgery.interpolation import bilinear_filler, bilinear_kernel, bilinear_weights


def naive_up(signal: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Deconvolution of one map without padding, written as Caffe defines it: every input adds a kernel."""
    (h, w), k = signal.shape, len(kernel)
    out = np.zeros((stride * (h - 1) + k, stride * (w - 1) + k))
    for i in range(h):
        for j in range(w):
            out[stride * i : stride * i + k, stride * j : stride * j + k] += signal[i, j] * kernel
    return out


def test_kernel_of_size_4_and_3_by_hand() -> None:
    ramp = np.array([0.25, 0.75, 0.75, 0.25])
    assert np.array_equal(bilinear_kernel(4), ramp[:, None] * ramp)
    assert np.array_equal(bilinear_kernel(3), [[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]])
    assert np.array_equal(bilinear_kernel(1), [[1]])


@pytest.mark.parametrize("size", range(1, 65))
def test_kernel_agrees_with_the_other_published_rule(size: int) -> None:
    factor = -(-size // 2)
    centre = Fraction(size - 1, 2 * factor)
    ramp = [float(1 - abs(Fraction(x, factor) - centre)) for x in range(size)]
    want = np.array(ramp)[:, None] * ramp
    np.testing.assert_allclose(bilinear_kernel(size), want, rtol=1e-14, atol=0)
    np.testing.assert_allclose(bilinear_filler((1, 1, size, size))[0, 0], want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_a_plane_is_interpolated_exactly(factor: int) -> None:
    size = 2 * factor - factor % 2
    rows, columns = np.mgrid[:6, :7].astype(float)
    up = naive_up(3 * rows - 2 * columns + 1, bilinear_kernel(size), factor)
    offset = (size - 1) / 2  # where the first input lies in the output
    y, x = ((np.indices(up.shape).astype(float).T - offset) / factor).T
    inside = np.s_[size:-size, size:-size]
    np.testing.assert_allclose(up[inside], (3 * y - 2 * x + 1)[inside], rtol=1e-12, atol=1e-12)


def test_weights_stand_on_the_diagonal_only() -> None:
    weights = bilinear_weights((3, 3, 4, 4))
    assert weights.dtype == np.float32
    assert weights.shape == (3, 3, 4, 4)
    for i in range(3):
        for j in range(3):
            assert np.array_equal(weights[i, j], bilinear_kernel(4) if i == j else np.zeros((4, 4)))


def test_grouped_weights_hold_the_kernel_in_every_channel() -> None:
    weights = bilinear_weights([5, 1, 3, 3])
    assert weights.shape == (5, 1, 3, 3)
    assert all(np.array_equal(w[0], bilinear_kernel(3)) for w in weights)


def test_filler_fills_all_pairs() -> None:
    weights = bilinear_filler((2, 3, 4, 4))
    assert weights.dtype == np.float32
    assert weights.flags.writeable
    assert np.array_equal(weights, np.ones((2, 3, 1, 1)) * bilinear_kernel(4))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 3, 4, 5), "a 4 x 5 kernel; wanted a square one"),
        ((3, 2, 4, 4), "3 input and 2 output channels; wanted as many of one as of the other"),
        ((1, 3, 4, 4), "1 input and 3 output channels"),
        ((3, 3, 4), "shape (3, 3, 4); wanted 4 axes"),
        ((3, 3, 0, 0), "shape (3, 3, 0, 0); wanted 4 axes"),
    ],
)
def test_shapes_that_cannot_be_bilinear(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(WeightsError, match=re.escape(message)):
        bilinear_weights(shape)


def test_the_filler_wants_a_square_kernel_too() -> None:
    with pytest.raises(WeightsError, match="a 4 x 5 kernel"):
        bilinear_filler((1, 1, 4, 5))
    with pytest.raises(WeightsError, match="kernel size 0"):
        bilinear_kernel(0)
