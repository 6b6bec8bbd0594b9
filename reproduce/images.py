"""Pictures in and out: reading, what Caffe does to a picture before the net sees it, label maps as PNG.

Two conventions are followed, which agree where both apply:
* the published FCN inference (fcn.berkeleyvision.org 1305c73, infer.py): PIL's RGB as float32, channels
  reversed to BGR, minus the mean, C x H x W, no resizing;
* pycaffe's Transformer (BVLC/caffe 9b891540, python/caffe/io.py): resize, transpose, channel swap,
  raw scale, minus mean, input scale. Its raw scale of 255 only undoes its loader's division, so bytes are
  kept as 0..255 here, and `scale` is its input scale, which is also DataTransformer's.

Departures, all at the edges: a picture is turned upright by its EXIF tag (Caffe's readers ignore it);
16-bit values are divided by 257, where PIL would clip them; resizing repeats the border pixel (as the C++
tools with OpenCV do) where scikit-image blends it with the smallest value. Transparency is dropped, as in
pycaffe: hidden pixels count with the colour they have. Gray is PIL's and OpenCV's luma, 0.299 R + 0.587 G +
0.114 B, as in the C++ tools; pycaffe's own loader weighs slightly otherwise.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from caffe_weights.errors import FileError, FormatError, InputError
from caffe_weights.files import PathLike, open_input, replace_file

VOC_MEAN_BGR = (104.00699, 116.66877, 122.67892)
CHANNELS = {"bgr": 3, "rgb": 3, "gray": 1}
MAX_PIXELS = 100_000_000  # a picture of 10,000 x 10,000; more is taken for a decompression bomb


@dataclass(frozen=True)
class Preprocess:
    """What is done to a picture: colour order, size, mean, scale, in pycaffe's order.

    `mean` is one value a channel, in the channel order of `color`, or an array C x H x W, or None;
    `size` is (height, width), None for the picture's own; `scale` multiplies after the mean is taken off.
    """

    color: str = "bgr"
    mean: np.ndarray | None = None
    scale: float = 1.0
    size: tuple[int, int] | None = None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Picture uint8 H x W x 3 (RGB) to blob float32 1 x C x H' x W'."""
        planes = to_planes(image, self.color).astype(np.float32)
        if self.size is not None:
            planes = resize(planes, self.size)
        if self.mean is not None:
            planes = (planes - fit_mean(self.mean, planes.shape)).astype(np.float32)
        return planes[np.newaxis] * np.float32(self.scale)

    def words(self) -> str:
        """The same in words, for a report."""
        parts = [self.color, "own size" if self.size is None else f"resized to {self.size[0]}x{self.size[1]}"]
        if self.mean is not None and self.mean.ndim == 1:
            parts.append("mean " + ", ".join(f"{value:g}" for value in self.mean))
        elif self.mean is not None:
            parts.append("mean image " + "x".join(map(str, self.mean.shape)))
        return ", ".join([*parts, *([f"scale {self.scale:g}"] if self.scale != 1 else [])])


def read_image(path: PathLike) -> np.ndarray:
    """A picture as uint8 H x W x 3, RGB, upright; FileError or FormatError for what is none."""
    with open_input(path) as stream:
        return decode_image(stream, os.fspath(path))


def decode_image(stream: BinaryIO, name: str) -> np.ndarray:
    """A picture from an open file, as `read_image`; `name` is for its errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(stream)
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(name, f"{image.height} x {image.width} pixels")
            return _rgb(ImageOps.exif_transpose(image), name)
        except InputError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise _too_large(name, "a picture of more pixels") from None
        except Exception as error:
            raise FormatError(name, f"not a readable picture ({_reason(error)})", "PNG, JPEG, ...") from None


def to_planes(image: np.ndarray, color: str) -> np.ndarray:
    """RGB picture H x W x 3 to planes C x H x W in the order of `color`: bgr, rgb or gray (one plane)."""
    if color == "gray":
        return np.asarray(Image.fromarray(image).convert("L"))[np.newaxis]
    return np.ascontiguousarray((image[:, :, ::-1] if color == "bgr" else image).transpose(2, 0, 1))


def resize(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Planes C x H x W to C x H' x W', float32: bilinear between pixel centres, no smoothing beforehand."""
    if planes.shape[1:] == tuple(size):
        return planes.astype(np.float32)
    result = planes.astype(np.float64)
    for axis, length in ((1, size[0]), (2, size[1])):
        result = _interpolate(result, axis, length)
    return result.astype(np.float32)


def parse_mean(text: str) -> np.ndarray:
    """`104,117,123` as float64 (C,), or the name of a .binaryproto as float32 (C, H, W)."""
    from caffe_weights.mean import read_mean

    try:
        values = np.array([float(part) for part in text.split(",")])
    except ValueError:
        if not Path(text).exists() and text.replace(",", "").strip("0123456789.+-e ") == "":
            raise InputError("--mean", f"{text!r}", "numbers as 104.0,116.7,122.7 or a file") from None
        return read_mean(text)
    if not np.isfinite(values).all():
        raise InputError("--mean", f"{text!r}", "finite numbers")
    return values


def fit_mean(mean: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The mean as it is taken off a blob C x H x W: one value serves all channels, an image is resized."""
    if mean.shape[0] not in (1, shape[0]):
        found = f"{mean.shape[0]} values" if mean.ndim == 1 else f"{mean.shape[0]} channels"
        raise InputError("--mean", found, f"{shape[0]}, one for each channel", "set --mean or --color")
    return mean[:, np.newaxis, np.newaxis] if mean.ndim == 1 else resize(mean, (shape[1], shape[2]))


def mean_note(mean: np.ndarray | None, size: tuple[int, int]) -> str:
    """What to say of a mean image whose size is not that of the input; "" if there is nothing to say."""
    if mean is None or mean.ndim == 1 or mean.shape[1:] == tuple(size):
        return ""
    return (
        f"the mean image of {mean.shape[1]}x{mean.shape[2]} is resized to {size[0]}x{size[1]}, as in pycaffe"
        " (Caffe's own data layers cut the same window out of mean and image instead)"
    )


def write_image(image: Image.Image, path: PathLike, force: bool = False) -> None:
    """A PIL image as PNG, complete or not at all."""
    with replace_file(path, force) as temporary:
        image.save(temporary, "PNG")


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode == "I":
        gray = np.clip(np.asarray(image).astype(np.float64) / 257, 0, 255)
        return np.repeat(np.rint(gray).astype(np.uint8)[:, :, np.newaxis], 3, axis=2)
    if image.mode == "F":
        raise FormatError(name, "a picture of floating point values", "8 or 16 bits", "give it as .npy")
    return np.array(image.convert("RGB"))


def _interpolate(values: np.ndarray, axis: int, length: int) -> np.ndarray:
    old = values.shape[axis]
    place = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
    low = np.minimum(place.astype(int), max(old - 2, 0))
    high = np.minimum(low + 1, old - 1)
    part = (place - low).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    return values.take(low, axis) * (1 - part) + values.take(high, axis) * part


def _too_large(name: str, found: str) -> FileError:
    return FileError(name, found, f"at most {MAX_PIXELS}", "make it smaller first")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).lower().split())
    return "unknown format" if "cannot identify" in text else text[:80] or type(error).__name__
