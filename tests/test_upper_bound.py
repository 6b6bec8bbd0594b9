"""Upper bounds on IU: label maps made smaller and large again, against loops, OpenCV and up-sampling."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from cli_helpers import refused, run_in
from made_data import labels, make_camvid, make_siftflow, write, write_list

from caffe_weights.errors import InputError
from reproduce.data import open_data
from reproduce.upper_bound import RULES, bilinear, there_and_back, upper_bounds
from surgery.interpolation import bilinear_weights


def blocky(seed: int, height: int, width: int, void: float = 0.1) -> np.ndarray:
    coarse = labels(seed, 5, -(-height // 3), -(-width // 3))
    truth = coarse.repeat(3, 0).repeat(3, 1)[:height, :width].copy()
    truth[np.random.default_rng(seed).random(truth.shape) < void] = 255
    return truth


@pytest.mark.parametrize("factor", [1, 2, 3, 5, 8, 64])
@pytest.mark.parametrize("rule", ["nearest", "majority"])
def test_cell_by_cell(factor: int, rule: str) -> None:
    truth = blocky(factor, 31, 22)
    found = there_and_back(truth, factor, 5, rule)
    for y, x in np.ndindex(truth.shape):
        top, left = y // factor * factor, x // factor * factor
        cell = truth[top : top + factor, left : left + factor]
        centre = truth[min(top + factor // 2, 30), min(left + factor // 2, 21)]
        counted = Counter(sorted(cell[cell != 255].tolist()))
        frequent = max(counted, key=lambda label: (counted[label], -label)) if counted else 0
        assert found[y, x] == (centre if rule == "nearest" and centre != 255 else frequent)


def test_nothing_is_lost_by_factor_1() -> None:
    truth = blocky(0, 20, 20)
    for rule in RULES:
        found = there_and_back(truth, 1, 5, rule)
        np.testing.assert_array_equal(found[truth != 255], truth[truth != 255])


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_bilinear_is_caffes_up_sampling_and_opencvs(factor: int) -> None:
    maps = np.random.default_rng(0).random((3, 6, 7))
    found = bilinear(maps, factor, (6 * factor, 7 * factor))
    kernel = torch.from_numpy(bilinear_weights((3, 3, 2 * factor, 2 * factor)).astype(np.float64))
    up = torch.nn.functional.conv_transpose2d(torch.from_numpy(maps)[None], kernel, stride=factor)[0].numpy()
    rim = factor // 2
    inner = up[:, rim : rim + 6 * factor, rim : rim + 7 * factor]
    np.testing.assert_allclose(found[:, factor:-factor, factor:-factor],
                               inner[:, factor:-factor, factor:-factor], atol=1e-12)  # fmt: skip
    for one, other in zip(maps, found, strict=True):
        resized = cv2.resize(one, (7 * factor, 6 * factor), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(other, resized, atol=1e-12)


def test_a_straight_border_is_kept_between_cells_only() -> None:
    """Two halves: a border on a cell's border costs nothing, one within a cell what arithmetic says."""
    truth = np.zeros((16, 16), np.uint8)
    truth[:, 8:] = 1
    for rule in RULES:
        np.testing.assert_array_equal(there_and_back(truth, 8, 2, rule), truth)
    truth[:, 6:] = 1  # 6 and 10 columns: the first cell's centre, column 4, is of class 0, as its majority
    for rule in ("nearest", "majority"):
        found = there_and_back(truth, 8, 2, rule)
        assert (found != truth).sum() == 2 * 16


def test_the_histogram_counts_each_picture(tmp_path: Path) -> None:
    make_camvid(tmp_path, size=(24, 32))
    data = open_data("camvid", tmp_path, "test")
    (counts,) = upper_bounds(data, factors=[5]).values()
    expected = np.zeros((11, 11), np.int64)
    for identity in data.ids:
        truth = data.label(identity)
        found = there_and_back(truth, 5, 11)
        for t, f in zip(truth.reshape(-1), found.reshape(-1), strict=True):
            if t != 255:
                expected[t, f] += 1
    np.testing.assert_array_equal(counts, expected)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcn = run_in(tmp_path, monkeypatch)
    truth = np.zeros((16, 32), np.uint8)
    truth[:, 6:] = 1
    truth[0, 0] = 11
    write(tmp_path / "data/labels/t.png", truth)
    write(tmp_path / "data/images/t.jpg", np.zeros((16, 32, 3), np.uint8))
    for split in ("train", "test"):
        write_list(tmp_path / f"data/{split}.txt", ["t"])
    done = fcn("upper-bound", "--data", "camvid:data", "--factors", "8,2", "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["split"], report["images"], report["rule"]) == ("test", 1, "nearest")
    eight, two = report["bounds"]
    assert (eight["factor"], eight["pixels"]) == (8, 511)
    # of class 0 all 95 pixels are found, of class 1 all but the 32 of its first two columns
    assert eight["mean_iu"] == pytest.approx((95 / 127 + 384 / 416) / 2)
    assert two["mean_iu"] == 1.0
    words = fcn("upper-bound", "--data", "camvid:data").stdout
    assert "camvid test, 1 images, label, nearest" in words and "    16 " in words
    refused(fcn("upper-bound", "--data", "camvid:data", "--factors", "8,x"), "--factors: '8,x'")
    refused(fcn("upper-bound", "--data", "camvid:data", "--factors", "0"), "at least 1")
    refused(fcn("upper-bound", "--data", "camvid:none"), "no such folder")
    refused(fcn("upper-bound", "--data", "camvid:data", "--target", "geo"), "--target: 'geo'")
    make_siftflow(tmp_path / "sift", split="test")
    geometric = fcn("upper-bound", "--data", "siftflow:sift", "--target", "geo", "--json")
    assert json.loads(geometric.stdout)["target"] == "geo"
    with pytest.raises(InputError, match="--rule: 'cubic'"):
        upper_bounds(open_data("camvid", tmp_path / "data"), rule="cubic")
