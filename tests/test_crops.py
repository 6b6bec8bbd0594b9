"""Crops and smaller pictures, by pixels that say where they come from."""

from __future__ import annotations

import numpy as np
import pytest

from reproduce.data.crops import cropped, shrunk
from reproduce.data.transforms import Augment


def item(height: int, width: int) -> dict[str, np.ndarray]:
    """A picture whose pixels are 10 row + column, and labels that are the same number below 255."""
    places = 10 * np.arange(height)[:, None] + np.arange(width)[None, :]
    return {"image": np.stack([places, -places, places + 0.5]).astype(np.float32),
            "label": places[np.newaxis].astype(np.uint8)}  # fmt: skip


def test_a_crop_is_a_window_of_picture_and_labels_alike() -> None:
    seen = set()
    for seed in range(300):
        got = cropped(item(6, 9), 4, np.random.default_rng(seed))
        assert got["image"].shape == (3, 4, 4) and got["label"].shape == (1, 4, 4)
        assert (got["image"][0] == got["label"][0]).all() and (got["image"][2] == got["label"][0] + 0.5).all()
        first = int(got["label"][0, 0, 0])
        assert (got["label"][0] == first + item(4, 4)["label"][0]).all()
        seen.add(first)
    assert seen == {10 * row + column for row in range(3) for column in range(6)}  # every place


def test_a_small_picture_is_filled_with_mean_and_void() -> None:
    got = cropped(item(2, 3), 4, np.random.default_rng(0))
    assert got["label"][0].tolist() == [[0, 1, 2, 255], [10, 11, 12, 255], [255] * 4, [255] * 4]
    assert got["image"][0].tolist() == [[0, 1, 2, 0], [10, 11, 12, 0], [0] * 4, [0] * 4]


def test_smaller_pictures_are_means_and_labels_are_not_mixed() -> None:
    got = shrunk(item(5, 6), 2)
    assert got["image"][0].tolist() == [[5.5, 7.5, 9.5], [25.5, 27.5, 29.5]]
    assert got["label"][0].tolist() == [[0, 2, 4], [20, 22, 24]] and got["label"].dtype == np.uint8
    assert got["image"].dtype == np.float32


@pytest.mark.parametrize("number", [0, 7])
def test_changes_are_a_function_of_the_number(number: int) -> None:
    change = Augment(mirror=True, crop=3, shrink=2, seed=5)
    assert change.does_something and not Augment().does_something
    one, other = change(item(12, 12), number), change(item(12, 12), number)
    assert all((one[name] == other[name]).all() for name in one) and one["image"].shape == (3, 3, 3)
