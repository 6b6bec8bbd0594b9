"""Cityscapes on a made tree: paths, label ids to train ids, splits, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_data import picture, write

from caffe_weights.errors import FileError, FormatError
from reproduce.data import DATASETS, open_data
from reproduce.data.check import check
from reproduce.data.cityscapes import CLASSES, COLOURS, Cityscapes

IDS = {"train": ("aachen_000000_000019", "zurich_000001_000019"), "val": ("munster_000000_000019",)}


def make(root: Path, label: np.ndarray) -> Path:
    for split, ids in IDS.items():
        for i, identity in enumerate(ids):
            city = identity.split("_")[0]
            pixels = picture(i, *label.shape)
            write(root / f"leftImg8bit/{split}/{city}/{identity}_leftImg8bit.png", pixels)
            write(root / f"gtFine/{split}/{city}/{identity}_gtFine_labelIds.png", label)
    return root


def test_label_ids_become_train_ids(tmp_path: Path) -> None:
    """The table of the data set's own scripts, worked out by name: rows of labels.py that are evaluated."""
    label = np.arange(36, dtype=np.uint8).reshape(4, 9)
    label[3, 7:] = 255, 0
    dataset = open_data("cityscapes", make(tmp_path, label))
    evaluated = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    want = np.full(36, 255)
    want[evaluated] = range(19)
    want[[34, 35]] = 255
    got = dataset.label(IDS["train"][0])
    assert got.tolist() == want.reshape(4, 9).tolist() and got.dtype == np.uint8
    assert len(dataset.classes) == 19 == len(COLOURS) and (dataset.classes[0], dataset.classes[18]) == (
        "road", "bicycle")  # fmt: skip
    assert list(CLASSES) == evaluated and DATASETS["cityscapes"] is Cityscapes


def test_pictures_lie_between_the_two_halves_of_the_range(tmp_path: Path) -> None:
    dataset = open_data("cityscapes", make(tmp_path, np.zeros((4, 9), np.uint8)))
    identity = IDS["train"][0]
    blob = dataset.blob("image", identity)
    want = dataset.image(identity)[:, :, ::-1].astype(np.float32).transpose(2, 0, 1) - 127.5
    assert (blob == want).all() and np.abs(blob).max() <= 127.5


def test_splits_are_folders(tmp_path: Path) -> None:
    make(tmp_path / "cityscapes", np.zeros((4, 9), np.uint8))
    dataset = open_data("cityscapes", tmp_path)
    assert dataset.ids == IDS["train"] and dataset.splits() == ["train", "val"]
    assert open_data("cityscapes", tmp_path, "val").ids == IDS["val"]
    with pytest.raises(FileError, match="no pictures of split trainval; wanted train or val"):
        open_data("cityscapes", tmp_path, "trainval")
    with pytest.raises(FileError, match="no leftImg8bit in it; wanted the layout leftImg8bit"):
        open_data("cityscapes", tmp_path / "cityscapes" / "gtFine")


def test_a_check_knows_the_published_counts(tmp_path: Path) -> None:
    make(tmp_path, np.full((4, 9), 7, np.uint8))
    (report,) = check(open_data("cityscapes", tmp_path), ["train"])
    assert report.remarks == ["2 ids, the published list has 2975"]
    assert report.counts["label"][0] == 2 * 36 and not report.missing and not report.broken


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    label = np.zeros((4, 9), np.uint8)
    label[2, 5] = 40
    dataset = open_data("cityscapes", make(tmp_path, label))
    with pytest.raises(FormatError, match=r"labelIds.png: row 2, column 5: label id 40; wanted 0 to 33"):
        dataset.label(IDS["train"][0])
    dataset.path("label", IDS["train"][1]).unlink()
    with pytest.raises(FileError, match="no such file, but .*train line 2 asks for it"):
        dataset.label(IDS["train"][1])
