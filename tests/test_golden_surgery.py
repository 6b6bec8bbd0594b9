"""Surgery against what BVLC Caffe 1.0 wrote: bilinear kernels, fillers, nets cut fully convolutional."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_weights.caffe_pb2 import FillerParameter
from reproduce.fillers import fill
from surgery.interpolation import bilinear_filler, bilinear_kernel, bilinear_weights

SIGMAS = 5.5  # one false alarm in about 25 million draws


def test_golden_format_bilinear(goldens: Path) -> None:
    stored = np.load(goldens / "formats" / "bilinear.npz")
    kernels = [key for key in stored.files if key != "meta"]
    assert kernels
    for key in kernels:
        rule, _, size = key.rpartition("/")
        want = stored[key]
        if rule == "diagonal_rule":
            got = bilinear_weights((1, 1, int(size), int(size)))[0, 0]
            assert np.array_equal(bilinear_kernel(int(size)).astype(np.float32), want), key
        else:
            got = bilinear_filler((1,) * (4 - want.ndim) + want.shape).reshape(want.shape)
        assert got.dtype == want.dtype and np.array_equal(got, want), key


def test_golden_format_fillers(goldens: Path) -> None:
    cases = json.loads((goldens / "formats" / "fillers.json").read_text())
    assert cases
    for seed, case in enumerate(cases):
        filler = text_format.Parse(case["filler"], FillerParameter())
        compare_statistics(fill(case["shape"], filler, seed).astype(np.float64), case)


def compare_statistics(values: np.ndarray, case: dict[str, Any]) -> None:
    """Mean and std within the sampling error of two draws of that many values; bounds and zeros alike."""
    what = f"{case['layer']}, {case['filler']}"
    count, std = case["count"], case["std"]
    assert values.shape == tuple(case["shape"]) and values.size == count, what
    if std == 0:
        assert np.all(values == case["mean"]), what
        return
    assert abs(values.mean() - case["mean"]) <= SIGMAS * std * sqrt(2 / count), what
    fourth = np.mean((values - values.mean()) ** 4) / values.var() ** 2  # the kurtosis sets the error of a std
    assert abs(values.std() - std) <= SIGMAS * std * sqrt((fourth - 1) / (2 * count)), what
    zeros = case["zero_fraction"]
    assert abs(np.mean(values == 0) - zeros) <= SIGMAS * sqrt(2 * zeros * (1 - zeros) / count), what
    spread = 0.002 if "gaussian" not in what and "msra" not in what else 0.6  # extremes of normal values vary
    if "unitball" in what:
        sums = values.reshape(len(values), -1).sum(axis=1)
        assert np.allclose(sums, [[case["row_sum_min"]], [case["row_sum_max"]]], rtol=1e-5, atol=0), what
        spread = 0.2
    reach = case["max"] - case["min"]
    assert abs(values.min() - case["min"]) <= spread * reach, what
    assert abs(values.max() - case["max"]) <= spread * reach, what
