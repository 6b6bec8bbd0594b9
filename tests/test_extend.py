"""Grown weights, against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_weights.errors import WeightsError
from surgery.extend import expand_score, join_streams, widen_input


def test_the_new_channel_is_the_mean_of_the_old() -> None:
    weight = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
    wide = widen_input(weight)
    assert wide.shape == (2, 4, 2, 2) and wide.dtype == np.float32
    assert np.array_equal(wide[:, :3], weight)
    for out in range(2):
        for y in range(2):
            for x in range(2):
                assert (
                    wide[out, 3, y, x]
                    == (weight[out, 0, y, x] + weight[out, 1, y, x] + weight[out, 2, y, x]) / 3
                )


def test_the_first_classes_are_kept_and_the_new_are_zero() -> None:
    weight, bias = np.ones((2, 3, 1, 1), np.float32), np.array([5, 6], np.float32)
    wide, biases = expand_score([weight, bias], 4)
    assert wide[:2].tolist() == weight.tolist() and not wide[2:].any() and wide.shape == (4, 3, 1, 1)
    assert biases.tolist() == [5, 6, 0, 0]
    wide[:] = 7
    assert weight.max() == 1


def test_streams_side_by_side() -> None:
    a, b = np.zeros(1), np.ones(2)
    joined = join_streams({"color": {"conv": [a]}, "hha": {"conv": [b]}})
    assert list(joined) == ["convcolor", "convhha"]
    assert joined["convcolor"][0] is a and joined["convhha"][0] is b


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: widen_input(np.zeros((3, 3)), where="layer fc"), "layer fc: shape 3x3; wanted out x in"),
        (lambda: widen_input(np.zeros((3, 0, 1, 1))), "weights: shape 3x0x1x1"),
        (lambda: expand_score([np.zeros((4, 1, 1, 1)), np.zeros(4)], 3), "4 classes; wanted at most 3"),
        (lambda: expand_score([np.zeros((4, 1, 1, 1)), np.zeros(3)], 5), "blobs of 4x1x1x1 and 3"),
        (lambda: join_streams({"x": {"a": []}, "": {"ax": []}}), "layer ax: two streams would go there"),
    ],
)
def test_errors(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(WeightsError) as error:
        call()
    assert message in str(error.value)
