"""How a difference is measured, on numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from reproduce.tolerances import worst_difference


def test_relative_to_the_blob_and_to_each_channel() -> None:
    want = np.zeros((1, 2, 1, 3))
    want[0, 0], want[0, 1] = [100.0, -200.0, 50.0], [0.5, 1.0, -2.0]
    got = want.copy()
    got[0, 0, 0, 2] += 1.0
    assert worst_difference(got, want) == (1 / 200, (0, 0, 0, 2))
    got[0, 1, 0, 0] += 0.125
    assert worst_difference(got, want) == (0.125 / 2, (0, 1, 0, 0))
    assert worst_difference(got, want, channels=False) == (1 / 200, (0, 0, 0, 2))


def test_a_channel_of_one_value_has_no_scale_of_its_own() -> None:
    want = np.array([10.0, 0.001]).reshape(1, 2, 1, 1)
    assert worst_difference(want + 0.001, want)[0] == pytest.approx(0.0001)


def test_nan_and_infinity_must_agree_in_place() -> None:
    want = np.array([np.nan, np.inf, 1.0, -np.inf])
    assert worst_difference(want.copy(), want) == (0.0, (0,))
    for place, value in ((0, 1.0), (1, -np.inf), (2, np.nan), (3, 5.0)):
        got = want.copy()
        got[place] = value
        assert worst_difference(got, want) == (np.inf, (place,))


def test_of_nothing_and_of_a_single_number() -> None:
    assert worst_difference(np.zeros((0, 3)), np.zeros((0, 3))) == (0.0, ())
    assert worst_difference(np.array(3.0), np.array(2.0)) == (0.5, ())


def test_shape_and_dtype_come_first() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\); wanted \(1, 3\)"):
        worst_difference(np.zeros(3), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="dtype float64; wanted float32"):
        worst_difference(np.zeros(3), np.zeros(3, np.float32))
