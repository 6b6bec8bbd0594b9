"""Colours of label maps: the VOC development kit's published table, counting by hand, PIL reading back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caffe_weights.errors import FileError
from reproduce.visualize import (
    VOC_CLASSES,
    class_name,
    overlay,
    percent,
    shares,
    voc_palette,
    with_legend,
    write_label_png,
)

# From the documentation of PASCAL VOC: class, colour.
VOC_COLOURS = {
    0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 5: (128, 0, 128),
    6: (0, 128, 128), 7: (128, 128, 128), 8: (64, 0, 0), 9: (192, 0, 0), 10: (64, 128, 0), 11: (192, 128, 0),
    12: (64, 0, 128), 13: (192, 0, 128), 14: (64, 128, 128), 15: (192, 128, 128), 16: (0, 64, 0),
    17: (128, 64, 0), 18: (0, 192, 0), 19: (128, 192, 0), 20: (0, 64, 128), 255: (224, 224, 192),
}  # fmt: skip


def test_palette_is_vocs() -> None:
    palette = voc_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    assert {label: tuple(palette[label].tolist()) for label in VOC_COLOURS} == VOC_COLOURS
    assert len({tuple(colour) for colour in palette.tolist()}) == 256


def test_class_names() -> None:
    assert len(VOC_CLASSES) == 21
    assert [class_name(i, VOC_CLASSES) for i in (0, 15, 20, 21, 255)] == [
        "background", "person", "tvmonitor", "class 21", "void"]  # fmt: skip


def test_label_png_stores_the_labels(tmp_path: Path) -> None:
    labels = np.array([[0, 15], [255, 20]])
    write_label_png(labels, tmp_path / "x.png")
    image = Image.open(tmp_path / "x.png")
    assert image.mode == "P"
    assert np.asarray(image).tolist() == labels.tolist()
    assert np.asarray(image.convert("RGB"))[0, 1].tolist() == [192, 128, 128]
    with pytest.raises(FileError, match="exists"):
        write_label_png(labels, tmp_path / "x.png")


def test_overlay_mixes_half_and_half_and_leaves_the_background() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    labels = np.array([[0, 15]])
    assert overlay(image, labels).tolist() == [[[100, 100, 100], [146, 114, 114]]]
    assert overlay(image, labels, background=None).tolist() == [[[50, 50, 50], [146, 114, 114]]]
    assert overlay(image, labels, alpha=1.0).tolist() == [[[100, 100, 100], [192, 128, 128]]]


def test_shares_are_fractions_most_frequent_first() -> None:
    assert shares(np.array([[3, 1, 1, 7]])) == [(1, 0.5), (3, 0.25), (7, 0.25)]


@pytest.mark.parametrize(("part", "text"), [(1.0, "100.0%"), (0.1236, "12.4%"), (1e-6, "<0.1%")])
def test_percent(part: float, text: str) -> None:
    assert percent(part) == text


def test_legend_stands_right_of_the_picture() -> None:
    picture = np.full((200, 30, 3), 77, np.uint8)
    labels = np.zeros((200, 30), int)
    labels[:50] = 15
    image = np.asarray(with_legend(picture, labels, VOC_CLASSES))
    assert image.shape[0] == 200
    assert image.shape[1] > 150
    assert (image[:, :30] == 77).all()
    assert (image[:, 30:] == (192, 128, 128)).all(-1).any()


def test_legend_of_a_tiny_picture_with_many_classes() -> None:
    labels = np.arange(256).reshape(16, 16)
    image = with_legend(np.zeros((16, 16, 3), np.uint8), labels, ())
    assert image.height > 25 * 20


def test_legend_of_one_pixel() -> None:
    with_legend(np.zeros((1, 1, 3), np.uint8), np.array([[255]]), VOC_CLASSES)
