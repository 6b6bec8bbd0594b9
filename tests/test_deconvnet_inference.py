"""Proposals to scores: MATLAB's imresize, the released rules, aggregation, ensemble, each against loops.

The oracle of a whole picture is the released script's order of work: a padded canvas, 1-based coordinates, a
maximum that starts at 0, reading back at the padding's own row and column.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from caffe_weights.errors import InputError, NetError
from reproduce.deconvnet.ensemble import PAPER, ensemble_energies, padded_blob
from reproduce.deconvnet.ensemble import RELEASED as PRODUCT
from reproduce.deconvnet.inference import CLEAN, RELEASED, Rules, picture_scores, select_boxes
from reproduce.deconvnet.resize import imresize, resize_weights, resized_part
from reproduce.images import Preprocess

MEAN = (10.0, 20.0, 30.0)
SIDE = 16


def matlab_axis(values: np.ndarray, new: int) -> np.ndarray:
    """imresize of one axis by the published formula, sample by sample."""
    old = len(values)
    scale = new / old
    kernel = 2.0 if scale >= 1 else 2.0 / scale
    result = []
    for x in range(1, new + 1):
        u = x / scale + 0.5 * (1 - 1 / scale)
        left = math.floor(u - kernel / 2)
        total = weights = 0.0
        for i in range(left, left + math.ceil(kernel) + 2):
            distance = abs(u - i) * min(scale, 1.0)
            weight = max(0.0, 1 - distance)
            at = (i - 1) % (2 * old)
            total += weight * values[at if at < old else 2 * old - 1 - at]
            weights += weight
        result.append(total / weights)
    return np.array(result)


def matlab(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows = np.array([matlab_axis(column, size[0]) for column in plane.T]).T
    return np.array([matlab_axis(row, size[1]) for row in rows])


@pytest.mark.parametrize(("old", "new"), [((7, 11), (5, 4)), ((5, 6), (13, 17)), ((9, 9), (9, 20)),
                                          ((40, 3), (7, 3)), ((1, 2), (4, 1))])  # fmt: skip
def test_imresize_is_matlabs(old: tuple[int, int], new: tuple[int, int]) -> None:
    planes = np.random.default_rng(0).random((2, *old))
    want = np.stack([matlab(plane, new) for plane in planes])
    np.testing.assert_allclose(imresize(torch.from_numpy(planes), new).numpy(), want, rtol=1e-12)
    narrow = imresize(torch.from_numpy(planes.astype(np.float32)), new)
    assert narrow.dtype == torch.float32
    np.testing.assert_allclose(narrow.numpy(), want, rtol=1e-5)


def test_imresize_shrinks_as_pil_does_inside() -> None:
    """PIL's bilinear is the same triangle; at the edge it leaves out what MATLAB mirrors."""
    plane = np.random.default_rng(1).random((60, 45)).astype(np.float32)
    resample = Image.Resampling.BILINEAR
    want = np.asarray(Image.fromarray(plane).resize((15, 20), resample))
    got = imresize(torch.from_numpy(plane)[None], (20, 15))[0].numpy()
    np.testing.assert_allclose(got[2:-2, 2:-2], want[2:-2, 2:-2], rtol=1e-5)


def test_a_part_of_a_resized_plane_is_that_part() -> None:
    planes = torch.rand(3, 8, 11, dtype=torch.float64)
    whole = imresize(planes, (20, 13))
    part = resized_part(planes, (20, 13), slice(4, 9), slice(2, 12))
    torch.testing.assert_close(part, whole[:, 4:9, 2:12])
    np.testing.assert_allclose(resize_weights(30, 7).sum(1), 1)


def made_score(crops: Tensor) -> Tensor:
    """A stand-in for the net: three classes, negative and positive, different in every pixel."""
    blue, green, red = crops.unbind(1)
    return torch.stack([blue / 50, (green - red) / 20, red / 40 - 1], 1)


def released(image: np.ndarray, boxes_padded: np.ndarray, side: int, most: int, least: int) -> np.ndarray:
    """The script, in float64 and 1-based coordinates, on its own padded canvas."""
    height, width = image.shape[:2]
    padded = np.zeros((height + 2 * width, width + 2 * height, 3))
    padded[width : width + height, height : height + width] = image
    canvas = np.zeros((3, *padded.shape[:2]))
    done = 0
    for x1, y1, x2, y2 in boxes_padded:
        if min(x2 - x1 + 1, y2 - y1 + 1) < least:
            continue
        if done == most:
            break
        done += 1
        crop = padded[y1 - 1 : y2, x1 - 1 : x2, ::-1]
        small = np.stack([matlab(crop[:, :, c], (side, side)) - MEAN[c] for c in range(3)])
        scores = made_score(torch.from_numpy(small)[None])[0].numpy()
        large = np.stack([matlab(plane, crop.shape[:2]) for plane in scores])
        here = canvas[:, y1 - 1 : y2, x1 - 1 : x2]
        canvas[:, y1 - 1 : y2, x1 - 1 : x2] = np.maximum(here, large)
    row, column = width, height  # pad_offset_row : pad_offset_row + H - 1, counted from 1
    return canvas[:, row - 1 : row - 1 + height, column - 1 : column - 1 + width]


IMAGE = np.random.default_rng(2).integers(0, 256, (20, 28, 3), dtype=np.uint8)
# in padded, 1-based coordinates of a picture 20 x 28: the picture is rows 29 to 48, columns 21 to 48
PADDED = np.array([[19, 30, 40, 50], [30, 20, 33, 60], [25, 28, 50, 47], [1, 1, 12, 12], [21, 29, 48, 48],
                   [30, 30, 45, 41]])  # fmt: skip
BOXES = PADDED - np.array([20, 28, 20, 28]) - 1


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_the_released_rules_are_the_scripts(batch: int) -> None:
    rules = replace(RELEASED, least_side=11, most=4)
    got, used = picture_scores(made_score, IMAGE, BOXES, SIDE, MEAN, rules, batch)
    assert used == 4
    want = released(IMAGE, PADDED, SIDE, 4, 11)
    np.testing.assert_allclose(got.numpy(), want, rtol=2e-6, atol=2e-6)
    assert (got == 0).any()


def test_released_and_clean_rules() -> None:
    assert Rules("max", 50, 112, True, 1) == RELEASED
    assert Rules("max", 50, 1, False, 0) == CLEAN


def naive(boxes: np.ndarray) -> list[np.ndarray]:
    """Each box's scores in the picture, NaN elsewhere."""
    height, width = IMAGE.shape[:2]
    maps = []
    for x1, y1, x2, y2 in boxes:
        crop = np.zeros((y2 - y1 + 1, x2 - x1 + 1, 3))
        scores = np.full((3, height, width), np.nan)
        inside = [(r, c) for r in range(max(y1, 0), min(y2 + 1, height))
                  for c in range(max(x1, 0), min(x2 + 1, width))]  # fmt: skip
        for r, c in inside:
            crop[r - y1, c - x1] = IMAGE[r, c, ::-1]
        small = np.stack([matlab(crop[:, :, i], (SIDE, SIDE)) - MEAN[i] for i in range(3)])
        found = made_score(torch.from_numpy(small)[None])[0].numpy()
        large = np.stack([matlab(plane, crop.shape[:2]) for plane in found])
        for r, c in inside:
            scores[:, r, c] = large[:, r - y1, c - x1]
        maps.append(scores)
    return maps


@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:Mean of empty")
@pytest.mark.parametrize("aggregate", ["max", "sum", "mean"])
def test_clean_aggregation(aggregate: str) -> None:
    boxes = BOXES[[0, 2, 5]]
    maps = np.stack(naive(boxes))
    want = {"max": np.nanmax(maps, 0), "sum": np.nansum(maps, 0), "mean": np.nanmean(maps, 0)}[aggregate]
    want = np.nan_to_num(want)
    got, used = picture_scores(made_score, IMAGE, boxes, SIDE, MEAN, Rules(aggregate))
    assert used == 3
    np.testing.assert_allclose(got.numpy(), want, rtol=2e-6, atol=2e-6)
    assert (want < 0).any() and (want == 0).any()


def test_boxes_are_counted_after_skipping() -> None:
    boxes = np.array(
        [[0, 0, 110, 500], [0, 0, 111, 111], [0, 0, 500, 110], [5, 5, 200, 300], [9, 9, 300, 300]]
    )
    kept = select_boxes(boxes, replace(RELEASED, most=2))
    np.testing.assert_array_equal(kept, boxes[[1, 3]])


def test_a_box_beside_the_picture_counts_and_changes_nothing() -> None:
    beside = np.array([[40, 0, 60, 20], [0, -30, 20, -1], BOXES[0]])
    got, used = picture_scores(made_score, IMAGE, beside, SIDE, MEAN)
    want, _ = picture_scores(made_score, IMAGE, BOXES[:1], SIDE, MEAN)
    assert used == 3
    torch.testing.assert_close(got, want)


def test_what_cannot_be_put_together_is_refused() -> None:
    with pytest.raises(InputError, match="none of them in the picture and of 112"):
        picture_scores(made_score, IMAGE, BOXES, SIDE, MEAN, RELEASED)
    with pytest.raises(InputError, match="max or sum or mean"):
        picture_scores(made_score, IMAGE, BOXES, SIDE, MEAN, Rules("median"))
    with pytest.raises(InputError, match="batch"):
        picture_scores(made_score, IMAGE, BOXES, SIDE, MEAN, batch=0)
    with pytest.raises(NetError, match="16 x 16"):
        picture_scores(lambda crops: crops[:, :, ::2], IMAGE, BOXES, SIDE, MEAN)


def test_ensembles_pixel_by_pixel() -> None:
    random = np.random.default_rng(5)
    deconv, fcn = random.normal(0, 3, (2, 4, 3, 5)).astype(np.float32)
    product, mean = (np.exp(-ensemble_energies(rule, deconv, fcn)) for rule in (PRODUCT, PAPER))
    for r in range(3):
        for c in range(5):
            d, f = ([float(v) for v in scores[:, r, c]] for scores in (deconv, fcn))
            raised = [math.exp(max(a, 0) * max(b, 0)) for a, b in zip(d, f, strict=True)]
            np.testing.assert_allclose(product[:, r, c], np.array(raised) / sum(raised), rtol=1e-6)
            parts = [[math.exp(v) / sum(math.exp(w) for w in values) for v in values] for values in (d, f)]
            np.testing.assert_allclose(mean[:, r, c], np.mean(parts, axis=0), rtol=1e-6)
    with pytest.raises(NetError, match="4 x 3 x 5"):
        ensemble_energies(PAPER, deconv, fcn[:2])


def test_uncovered_pixels_are_uniform_in_the_released_ensemble() -> None:
    energies = ensemble_energies(PRODUCT, np.zeros((21, 2, 2)), np.full((21, 2, 2), 7.0))
    np.testing.assert_allclose(energies, math.log(21))
    assert (energies.argmin(0) == 0).all()


def test_the_released_fcn_takes_a_padded_picture() -> None:
    preprocess = Preprocess("bgr", np.array(MEAN))
    blob = padded_blob(IMAGE, preprocess, 40)
    assert blob.shape == (1, 3, 40, 40)
    np.testing.assert_array_equal(blob[0, :, :20, :28], preprocess(IMAGE)[0])
    assert not blob[:, :, 20:].any() and not blob[:, :, :, 28:].any()
    with pytest.raises(NetError, match="at most 24 x 24"):
        padded_blob(IMAGE, preprocess, 24)
