"""Pictures: OpenCV is the judge of resizing and gray, hand-written bytes and plain arithmetic of the rest."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from caffe_weights.caffe_pb2 import BlobProto
from caffe_weights.errors import FileError, FormatError, InputError
from reproduce import images
from reproduce.images import Preprocess, fit_mean, mean_note, parse_mean, read_image, resize, to_planes

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)


def _saved(tmp_path: Path, image: Image.Image, name: str = "x.png", **options: Any) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_published_preprocessing_value_by_value(tmp_path: Path) -> None:
    path = _saved(tmp_path, Image.fromarray(PICTURE))
    mean = np.array([104.00699, 116.66877, 122.67892])
    blob = Preprocess(mean=mean)(read_image(path))
    assert blob.shape == (1, 3, 7, 5)
    assert blob.dtype == np.float32
    for channel, colour in enumerate((2, 1, 0)):
        expected = np.float32(float(PICTURE[4, 3, colour]) - mean[channel])
        assert blob[0, channel, 4, 3] == expected


def test_rgb_and_scale_come_after_the_mean() -> None:
    blob = Preprocess("rgb", np.array([1.0, 2.0, 3.0]), scale=0.5)(PICTURE)
    assert blob[0, :, 0, 0].tolist() == [(int(PICTURE[0, 0, c]) - c - 1) * 0.5 for c in range(3)]


def test_gray_is_opencv_gray() -> None:
    gray = to_planes(PICTURE, "gray")[0]
    assert np.abs(gray.astype(int) - cv2.cvtColor(PICTURE, cv2.COLOR_RGB2GRAY)).max() <= 1


@pytest.mark.parametrize("size", [(7, 5), (14, 10), (3, 11), (1, 1), (2, 2), (20, 3)])
def test_resize_is_opencv_bilinear(size: tuple[int, int]) -> None:
    planes = RNG.random((3, 7, 5)).astype(np.float32) * 255
    for plane, got in zip(planes, resize(planes, size), strict=True):
        expected = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(got, expected, rtol=0, atol=255e-6)


def test_resize_of_one_pixel_repeats_it() -> None:
    assert (resize(np.full((1, 1, 1), 9.0, np.float32), (4, 3)) == 9).all()


def test_a_gray_picture_has_three_equal_channels(tmp_path: Path) -> None:
    path = _saved(tmp_path, Image.fromarray(PICTURE[:, :, 0]))
    assert (read_image(path) == PICTURE[:, :, :1]).all()


def test_palette_pictures_give_their_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert read_image(_saved(tmp_path, image)).tolist() == [
        [[10, 20, 30], [40, 50, 60]],
        [[40, 50, 60], [10, 20, 30]],
    ]


def test_transparency_is_dropped(tmp_path: Path) -> None:
    rgba = np.dstack([PICTURE, np.zeros((7, 5), np.uint8)])
    assert (read_image(_saved(tmp_path, Image.fromarray(rgba))) == PICTURE).all()


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 65535, 32768]], np.uint16)
    assert read_image(_saved(tmp_path, Image.fromarray(deep)))[0, :, 0].tolist() == [0, 1, 255, 128]


def test_one_bit_pictures_are_black_and_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert read_image(_saved(tmp_path, image))[0, :, 1].tolist() == [0, 255]


def test_exif_turns_the_picture_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the first row is the right side
    path = _saved(tmp_path, Image.fromarray(PICTURE), exif=exif)
    assert (read_image(path) == np.rot90(PICTURE, -1)).all()


def test_a_picture_of_one_pixel(tmp_path: Path) -> None:
    assert read_image(_saved(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif", "x.bmp", "x.tif"])
def test_a_cut_picture_is_one_line(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    whole = _saved(tmp_path, image, name).read_bytes()
    for end in (1, 10, len(whole) // 3):
        (tmp_path / name).write_bytes(whole[:end])
        with pytest.raises(FormatError, match="not a readable picture") as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_not_a_picture(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("hello")
    with pytest.raises(FormatError, match="unknown format"):
        read_image(tmp_path / "x.jpg")


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(FileError, match="folder"):
        read_image(tmp_path)


def test_floating_point_pictures_are_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path, Image.fromarray(np.zeros((2, 2), np.float32)), "x.tif")
    with pytest.raises(FormatError, match="floating point"):
        read_image(path)


@pytest.mark.parametrize("side", [10_001, 60_000])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_header(side, side))
    with pytest.raises(FileError, match="at most"):
        read_image(path)


def test_mean_numbers() -> None:
    assert parse_mean("1,2.5,-3e1").tolist() == [1, 2.5, -30]


@pytest.mark.parametrize("text", ["1,,2", "nan,1,2", "1,2,inf", "1;2"])
def test_bad_mean_numbers(text: str) -> None:
    with pytest.raises(InputError):
        parse_mean(text)


def test_mean_file_of_another_size_is_resized_and_said(tmp_path: Path) -> None:
    blob = BlobProto(num=1, channels=1, height=2, width=2, data=[0, 4, 8, 12])
    (tmp_path / "m.binaryproto").write_bytes(blob.SerializeToString())
    mean = parse_mean(str(tmp_path / "m.binaryproto"))
    assert fit_mean(mean, (1, 1, 1)).tolist() == [[[6]]]
    assert "resized to 1x1" in mean_note(mean, (1, 1))
    assert mean_note(mean, (2, 2)) == ""
    assert Preprocess("gray", mean)(np.full((2, 2, 3), 20, np.uint8)).tolist() == [[[[20, 16], [12, 8]]]]


@pytest.mark.parametrize("mean", [np.zeros(2), np.zeros((1 + 1, 4, 4), np.float32)])
def test_mean_of_other_channels(mean: np.ndarray) -> None:
    with pytest.raises(InputError, match="--mean: 2 .*wanted 3"):
        fit_mean(mean, (3, 4, 4))


def test_one_mean_value_serves_all_channels() -> None:
    assert Preprocess(mean=np.array([10.0]))(np.full((1, 1, 3), 30, np.uint8)).ravel().tolist() == [
        20,
        20,
        20,
    ]


def test_write_image_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "x.png"
    target.write_text("mine")
    with pytest.raises(FileError, match="exists"):
        images.write_image(Image.new("L", (1, 1)), target)
    assert target.read_text() == "mine"
    images.write_image(Image.new("L", (1, 1)), target, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
