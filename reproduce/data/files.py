"""Reading one picture, one label map, one MATLAB file of a data set.

Pictures are read as the reference does, by PIL and without regard to an EXIF orientation, since the label
maps lie on the stored pixels.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from caffe_weights.errors import FormatError, InputError
from caffe_weights.files import open_input
from reproduce.images import MAX_PIXELS
from reproduce.label_maps import read_label_map

MOST_MAT_BYTES = 1 << 28


def read_picture(path: Path) -> np.ndarray:
    """A picture as uint8 H x W x 3, RGB."""
    image = _open(path)
    if image.mode not in ("RGB", "L", "P", "RGBA", "1"):
        raise FormatError(str(path), f"a picture of kind {image.mode}", "RGB of 8 bits")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_depth(path: Path) -> np.ndarray:
    """A depth map, float32 H x W, every value above 0 (its logarithm is taken)."""
    image = _open(path)
    if image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
        raise FormatError(str(path), f"a picture of kind {image.mode}", "one channel of 8, 16 or 32 bits")
    depth = np.array(image).astype(np.float32)
    if not (depth > 0).all():
        row, column = (int(i) for i in np.argwhere(~(depth > 0))[0])
        raise FormatError(f"{path}: row {row}, column {column}", f"depth {depth[row, column]:g}",
                          "above 0, since its logarithm is taken", "give the in-painted depth")  # fmt: skip
    return depth


def read_labels(path: Path) -> np.ndarray:
    """A label map from a PNG, uint8 H x W; labels above 255 are an error."""
    labels = read_label_map(path)
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise FormatError(str(path), f"label {labels.max()}", "0 to 255")
    return labels.astype(np.uint8)


def read_mat(path: Path, *fields: str) -> np.ndarray:
    """A matrix H x W of a MATLAB file: the variable `fields[0]`, of a struct array its first element's field
    `fields[1]`. FormatError, that names the variables there are, where it is none."""
    variables = _load(path)
    where, wanted = str(path), ".".join(fields)
    if fields[0] not in variables:
        there = ", ".join(name for name in variables if not name.startswith("__")) or "none"
        raise FormatError(where, f"variables {there}", wanted)
    value: Any = variables[fields[0]]
    for field in fields[1:]:
        if not isinstance(value, np.ndarray) or value.size == 0 or field not in (value.dtype.names or ()):
            raise FormatError(where, f"{fields[0]} without a field {field}", f"the struct {wanted}")
        value = value.reshape(-1)[0][field]
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "uif":
        shape = getattr(value, "shape", type(value).__name__)
        raise FormatError(where, f"{wanted} of shape {shape}", "a matrix of numbers, height x width")
    return value


def whole(labels: np.ndarray, path: Path, least: int = 0, most: int = 255) -> np.ndarray:
    """Labels as int64; FormatError for fractions, and values outside of least to most."""
    with np.errstate(invalid="ignore"):
        numbers = labels.astype(np.int64)
    wrong = (numbers != labels) | (numbers < least) | (numbers > most)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise FormatError(f"{path}: row {row}, column {column}", f"label {labels[row, column]:g}",
                          f"a whole number, {least} to {most}")  # fmt: skip
    return numbers


def _open(path: Path) -> Image.Image:
    with open_input(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(stream)
            if image.width * image.height > MAX_PIXELS:
                found = f"{image.height} x {image.width} pixels"
                raise FormatError(str(path), found, f"at most {MAX_PIXELS}")
            image.load()
        except InputError:
            raise
        except Exception as error:  # PIL raises what its decoders raise
            raise FormatError(str(path), f"not a readable picture ({_reason(error)})", "PNG, JPEG") from None
    return image


def _load(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    with open_input(path) as stream:
        data = stream.read(MOST_MAT_BYTES + 1)
    if len(data) > MOST_MAT_BYTES:
        raise FormatError(str(path), "more than 256 MiB", "the label map of one picture")
    try:
        variables: dict[str, Any] = loadmat(io.BytesIO(data))
    except NotImplementedError:
        raise FormatError(str(path), "a MATLAB file of version 7.3", "version 7 or older",
                          "save it again with -v7") from None  # fmt: skip
    except Exception as error:  # scipy raises what its parts raise
        raise FormatError(str(path), f"not a readable MATLAB file ({_reason(error)})", "version 5 to 7",
                          "fetch it again") from None  # fmt: skip
    return variables


def _reason(error: Exception) -> str:
    text = " ".join(str(error).lower().split())
    return "unknown format" if "cannot identify" in text else text[:80] or type(error).__name__
