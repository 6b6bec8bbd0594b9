"""Proposals: files of boxes in all kinds, sliding windows, edge boxes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_data import write_mat

from caffe_weights.errors import FileError, FormatError, InputError
from reproduce.deconvnet.boxes import (
    edge_boxes,
    enlarged,
    find_file,
    propose,
    read_boxes,
    sliding_windows,
)

BOXES = np.array([[0, 0, 9, 4], [-3, 2, 5, 30]])
PICTURE = np.zeros((20, 28, 3), np.uint8)


def test_all_kinds_of_files(tmp_path: Path) -> None:
    """In the authors' files the picture of 20 x 28 begins at row 29 and column 21, counted from 1."""
    padded = BOXES + np.array([21, 29, 21, 29])
    write_mat(tmp_path / "a.mat", boxes_padded=padded.astype(np.float64))
    np.savez(tmp_path / "a.npz", boxes=BOXES)
    (tmp_path / "a.csv").write_text("x1,y1,x2,y2\n0,0,9,4\n\n-3,2,5,30.0\n")
    (tmp_path / "bare.csv").write_text("0,0,9,4\n-3, 2, 5, 30")
    for name in ("a.mat", "a.npz", "a.csv", "bare.csv"):
        found = read_boxes(tmp_path / name, 20, 28)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, BOXES, err_msg=name)
    (tmp_path / "a.npz").unlink()
    assert propose(tmp_path, PICTURE, "a").origin == str(tmp_path / "a.mat")
    assert find_file(tmp_path / "bare.csv", "a") == tmp_path / "bare.csv"


@pytest.mark.parametrize(
    ("text", "words"),
    [("0,0,9\n", "line 1: 3 values"), ("0,0,9,4\na,b,c,d\n", "line 2"), ("", "0 x 4"),
     ("x1,y1,x2,y2\n", "0 x 4"), ("0,0,9,4\n5,0,4,4\n", "box 2"), ("0,0,nan,4\n", "box 1"),
     ("0,0,9,99999999\n", "box 1")],
)  # fmt: skip
def test_a_broken_table(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(FormatError, match=words):
        read_boxes(tmp_path / "a.csv", 20, 28)


def test_broken_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", windows=BOXES)
    np.savez(tmp_path / "flat.npz", boxes=BOXES.ravel())
    write_mat(tmp_path / "other.mat", boxes=BOXES)
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    for name, words in (("other.npz", "windows"), ("flat.npz", "array of 8"), ("other.mat", "boxes_padded"),
                        ("a.txt", "unknown kind"), ("b.csv", "no text")):  # fmt: skip
        with pytest.raises(FormatError, match=words):
            read_boxes(tmp_path / name, 20, 28)
    with pytest.raises(FileError, match="no boxes of x"):
        propose(tmp_path, PICTURE, "x")
    with pytest.raises(FileError, match="edgeboxes, windows"):
        propose("edgebox", PICTURE, "x")


def test_windows_by_hand() -> None:
    """80 x 100: the whole; then 57 x 71 in a 2 x 2 grid; then 40 x 50 in 3 x 3, half a side apart."""
    whole = [0, 0, 99, 79]
    np.testing.assert_array_equal(sliding_windows(80, 100, 1), [whole])
    np.testing.assert_array_equal(sliding_windows(80, 100, 4), [whole])
    second = [[0, 0, 70, 56], [29, 0, 99, 56], [0, 23, 70, 79], [29, 23, 99, 79]]
    np.testing.assert_array_equal(sliding_windows(80, 100, 13), [whole, *second])
    third = [[x, y, x + 49, y + 39] for y in (0, 20, 40) for x in (0, 25, 50)]
    np.testing.assert_array_equal(sliding_windows(80, 100, 14), [whole, *second, *third])


@pytest.mark.parametrize(("height", "width"), [(500, 375), (33, 500), (1, 9), (2, 2)])
def test_windows_of_every_scale_cover_the_picture(height: int, width: int) -> None:
    boxes = sliding_windows(height, width, 500)
    assert len(boxes) <= 500
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] < width).all() and (boxes[:, 3] < height).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    for side in np.unique(sides, axis=0):
        covered = np.zeros((height, width), bool)
        for x1, y1, x2, y2 in boxes[(sides == side).all(1)]:
            covered[y1 : y2 + 1, x1 : x2 + 1] = True
        assert covered.all(), side


def test_boxes_are_enlarged_around_their_middle() -> None:
    np.testing.assert_array_equal(enlarged(np.array([[10, 20, 19, 39]]), 1.2), [[9, 18, 20, 41]])
    np.testing.assert_array_equal(enlarged(np.array([[0, 0, 0, 0]]), 0.1), [[0, 0, 0, 0]])


def test_automatic_proposals_say_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for ximgproc: one box of 10 x 6 at column 3, row 4, given as x, y, width, height."""
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace())
    found = propose("auto", PICTURE)
    assert "no ximgproc" in found.origin
    np.testing.assert_array_equal(found.boxes, sliding_windows(20, 28, 50))
    with pytest.raises(InputError, match="opencv-contrib"):
        propose("edgeboxes", PICTURE)
    finder = SimpleNamespace(
        setMaxBoxes=lambda count: None,
        getBoundingBoxes=lambda edges, directions: (np.array([[3, 4, 10, 6]], np.int32), np.ones((1, 1))),
    )
    ximgproc = SimpleNamespace(createEdgeBoxes=lambda: finder)
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(ximgproc=ximgproc))
    found = propose("auto", PICTURE)
    assert "gradients" in found.origin
    np.testing.assert_array_equal(found.boxes, [[2, 3, 13, 10]])  # columns 2 to 14, rows 3.4 to 10.6


def two_objects() -> np.ndarray:
    rows, columns = np.mgrid[:220, :300]
    picture = np.full((220, 300, 3), (90, 120, 90), np.uint8)
    picture[((columns - 100) / 40) ** 2 + ((rows - 100) / 50) ** 2 < 1] = (200, 40, 40)
    picture[90:180, 190:260] = (30, 30, 200)
    noise = np.random.default_rng(0).normal(0, 4, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def overlap(boxes: np.ndarray, other: tuple[float, ...]) -> np.ndarray:
    """Intersection over union."""
    sides = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2]) + 1
    both = np.clip(sides, 0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    area = (other[2] - other[0] + 1) * (other[3] - other[1] + 1)
    return np.asarray(both / (areas + area - both))


def test_edge_boxes_find_two_objects() -> None:
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "ximgproc"):
        pytest.skip("this OpenCV has no ximgproc (opencv-contrib-python-headless has)")
    boxes = edge_boxes(two_objects())[:50]
    assert overlap(boxes, (52, 40, 148, 160)).max() > 0.8
    assert overlap(boxes, (183, 81, 267, 188)).max() > 0.8
    with pytest.raises(FormatError, match="structured forest"):
        edge_boxes(two_objects(), __file__)
