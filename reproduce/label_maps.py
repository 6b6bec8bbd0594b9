"""Label maps from picture files, and pairing predictions with truths.

A label map is a PNG: with a palette (VOC's own; the indices are the labels), gray (the values are), or RGB in
VOC's colours. Follows the PASCAL VOC development kit for these colours.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from caffe_weights.errors import FileError, FormatError, InputError
from caffe_weights.files import PathLike, open_input
from reproduce.images import MAX_PIXELS
from reproduce.visualize import voc_palette

LOSSY = ("JPEG", "WEBP")
_GRAY = ("P", "L", "1", "I")


def read_label_map(path: PathLike) -> np.ndarray:
    """The labels of a picture, int64 H x W.

    FileError or FormatError, which names colour and place where a colour is not one of VOC's.
    """
    image = _open(path)
    if image.mode in _GRAY or image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.int64)
    if image.mode not in ("RGB", "RGBA"):
        raise FormatError(os.fspath(path), f"a picture of kind {image.mode}", "palette, gray or RGB")
    pixels = np.asarray(image)
    if image.mode == "RGBA" and (pixels[:, :, 3] != 255).any():
        raise FormatError(os.fspath(path), "transparent pixels", "a label everywhere")
    return _from_colours(pixels[:, :, :3], path)


def find_pairs(
    prediction: PathLike, truth: PathLike, ids: Iterable[str] | None = None
) -> list[tuple[Path, Path]]:
    """Prediction and truth of each picture: two files, or the PNGs of two folders with equal stems, sorted.

    `ids` are the stems wanted of the folders, all by default. FileError for a picture without its partner.
    """
    first, second = Path(prediction), Path(truth)
    for path in (first, second):
        if not path.exists():
            raise FileError(str(path), "no such file or folder")
    if first.is_dir() != second.is_dir():
        folder = first if first.is_dir() else second
        raise FileError(str(folder), "a folder beside a file", "two files or two folders")
    if not first.is_dir():
        return [(first, second)]
    ours, theirs = _by_stem(first), _by_stem(second)
    stems = sorted(ours.keys() | theirs.keys()) if ids is None else list(dict.fromkeys(ids))
    for folder, files, other in ((first, ours, theirs), (second, theirs, ours)):
        missing = [stem for stem in stems if stem not in files]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            partner = f", the partner of {other[missing[0]]}" if missing[0] in other else ""
            raise FileError(str(folder), f"no {missing[0]}.png{partner}{more}", "a file for each picture",
                            "add it, or name the pictures to score with --ids")  # fmt: skip
    if not stems:
        raise FileError(str(first), "no .png in it", "label maps")
    return [(ours[stem], theirs[stem]) for stem in stems]


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".png" or path.name.startswith("."):
            continue
        if path.stem in files:
            raise FileError(str(folder), f"both {files[path.stem].name} and {path.name}", "one of them")
        files[path.stem] = path
    return files


def _open(path: PathLike) -> Image.Image:
    name = os.fspath(path)
    with open_input(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(stream)
            if image.width * image.height > MAX_PIXELS:
                raise FileError(name, f"{image.height} x {image.width} pixels", f"at most {MAX_PIXELS}")
            if image.format in LOSSY:
                raise FormatError(name, f"a {image.format}, which changes labels", "a PNG")
            image.load()
        except InputError:
            raise
        except Exception as error:
            text = " ".join(str(error).lower().split())[:80] or type(error).__name__
            detail = "unknown format" if "cannot identify" in text else text
            raise FormatError(name, f"not a readable picture ({detail})", "a PNG") from None
    return image


def _from_colours(pixels: np.ndarray, path: PathLike) -> np.ndarray:
    codes, known = _codes(pixels), _codes(voc_palette())
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known[order], codes), len(known) - 1)
    labels = order[place]
    unknown = known[labels] != codes
    if unknown.any():
        row, column = (int(i) for i in np.argwhere(unknown)[0])
        colour = ", ".join(str(int(value)) for value in pixels[row, column])
        raise FormatError(f"{os.fspath(path)}: row {row}, column {column}", f"the colour ({colour})",
                          "one of VOC's", "store labels as a palette or gray PNG")  # fmt: skip
    return labels


def _codes(pixels: np.ndarray) -> np.ndarray:
    wide = pixels.astype(np.int64)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
