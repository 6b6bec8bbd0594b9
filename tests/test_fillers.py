from __future__ import annotations

import re
from math import sqrt
from typing import Any

import numpy as np
import pytest

from caffe_weights.caffe_pb2 import FillerParameter
from caffe_weights.errors import NetError
from reproduce.fillers import FILLERS, fill

SHAPE = (40, 30, 5, 5)  # 30000 values, fan_in 750, fan_out 1000


def spec(type: str, **settings: Any) -> FillerParameter:
    return FillerParameter(type=type, **settings)


def test_no_filler_means_zeros() -> None:
    values = fill((2, 3))
    assert values.dtype == np.float32
    assert np.array_equal(values, np.zeros((2, 3)))
    assert np.array_equal(fill((), spec("constant", value=0.25)), np.float32(0.25))


@pytest.mark.parametrize(
    ("norm", "fan"),
    [(FillerParameter.FAN_IN, 750), (FillerParameter.FAN_OUT, 1000), (FillerParameter.AVERAGE, 875)],
)
def test_fans_scale_xavier_and_msra(norm: int, fan: int) -> None:
    xavier = fill(SHAPE, spec("xavier", variance_norm=norm), 1)
    bound = sqrt(3 / fan)
    assert np.abs(xavier).max() <= bound * (1 + 1e-6)
    assert np.abs(xavier).max() > 0.999 * bound
    msra = fill(SHAPE, spec("msra", variance_norm=norm), 1)
    # the std of 30000 normal values has a relative error of 1 / sqrt(60000) = 0.004; 5 of them
    assert msra.std() == pytest.approx(sqrt(2 / fan), rel=0.02)


def test_fans_of_a_vector_are_1_and_its_length() -> None:
    assert np.abs(fill((4000,), spec("xavier"), 0)).max() == pytest.approx(sqrt(3), rel=0.01)
    wide = fill((4000,), spec("xavier", variance_norm=FillerParameter.FAN_OUT), 0)
    assert np.abs(wide).max() == pytest.approx(sqrt(3 / 4000), rel=0.01)


def test_uniform_keeps_its_bounds_and_gaussian_its_mean() -> None:
    values = fill(SHAPE, spec("uniform", min=-0.3, max=0.7), 3)
    assert -0.3 - 1e-7 <= values.min() < -0.299
    assert 0.699 < values.max() <= 0.7 + 1e-7
    values = fill(SHAPE, spec("gaussian", mean=0.5, std=0.2), 3)
    assert values.mean() == pytest.approx(0.5, abs=5 * 0.2 / sqrt(30000))
    assert values.std() == pytest.approx(0.2, rel=0.02)


def test_sparse_counts_by_the_first_axis() -> None:
    values = fill(SHAPE, spec("gaussian", sparse=10), 3)
    assert np.mean(values == 0) == pytest.approx(0.75, abs=5 * sqrt(0.75 * 0.25 / 30000))
    assert not fill(SHAPE, spec("gaussian", sparse=0), 3).any()


def test_rows_of_the_positive_unit_ball_sum_to_1() -> None:
    values = fill(SHAPE, spec("positive_unitball"), 3)
    assert values.min() >= 0
    np.testing.assert_allclose(values.reshape(40, -1).sum(axis=1), 1, rtol=1e-5, atol=0)


def test_bilinear_by_hand() -> None:
    ramp = np.array([0.25, 0.75, 0.75, 0.25])
    assert np.array_equal(fill((2, 1, 4, 4), spec("bilinear"))[1, 0], ramp[:, None] * ramp)


@pytest.mark.parametrize("name", sorted(FILLERS))
def test_a_seed_repeats_and_a_generator_moves_on(name: str) -> None:
    first, second = (fill((3, 3, 3, 3), spec(name), 5) for _ in range(2))
    assert first.dtype == np.float32
    assert first.shape == (3, 3, 3, 3)
    assert np.array_equal(first, second)
    rng = np.random.default_rng(5)
    assert np.array_equal(fill((3, 3, 3, 3), spec(name), rng), first)
    again = fill((3, 3, 3, 3), spec(name), rng)
    assert np.array_equal(again, first) == (name in ("constant", "bilinear"))


@pytest.mark.parametrize(
    ("shape", "filler", "message"),
    [
        (
            (3,),
            spec("orthogonal"),
            "filler orthogonal: unknown type; wanted one of constant, uniform, gaussian, ",
        ),
        ((3,), spec("uniform", min=1, max=0.5), "filler uniform: min 1 over max 0.5; wanted min at most max"),
        ((3,), spec("gaussian", std=0), "filler gaussian: std 0; wanted above 0; use the constant filler"),
        ((3,), spec("gaussian", sparse=4), "filler gaussian: sparse 4; wanted 0 to 3"),
        ((3,), spec("xavier", sparse=1), "filler xavier: sparse 1; wanted no sparse; only the gaussian"),
        ((), spec("msra"), "filler msra: a blob without axes; wanted at least 1 axis"),
        ((3, 3), spec("bilinear"), "filler bilinear: shape (3, 3); wanted 4 axes"),
    ],
)
def test_errors(shape: tuple[int, ...], filler: FillerParameter, message: str) -> None:
    with pytest.raises(NetError, match=re.escape(message)):
        fill(shape, filler, 0)
