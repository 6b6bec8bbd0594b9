"""IMAGE_SEG_DATA and WINDOW_SEG_DATA, the data layers that DeconvNet is trained from, as data sets.

Follows `image_seg_data_layer.cpp`, `window_seg_data_layer.cpp` and `TransformImgAndSeg` of HyeonwooNoh/caffe
at d9e8494a. A line of a list is `image labels`, of windows `image labels x1 y1 x2 y2`; both files are named
from root_folder without a separator, so they begin with '/'. Pictures are resized without regard to their
shape, bilinear and not antialiased, labels by the nearest; then both are cut and mirrored alike, in the
phase TEST from the middle, and mirrored there too.

Departures: label maps with a palette are read by their indices (the fork reads colours' brightness); a
resized picture is rounded from exact weights, where OpenCV has its own of 11 bits (one level apart); each
pass through a shuffled list has a permutation of its own that follows from the seed and its number; the third
top, which no net reads, is not made; mean_file is not read.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from caffe_weights.caffe_pb2 import ImageDataParameter, LayerParameter
from caffe_weights.errors import FormatError, NetError
from reproduce.data.base import VOID, Dataset, Split, lines_of
from reproduce.data.files import read_labels, read_picture
from reproduce.data.loading import Feed, Numbers
from reproduce.data.sampling import SEED, ListOrder, Order
from reproduce.data.transforms import picture_blob
from reproduce.images import resize

IMAGE, WINDOW = "ImageSegData", "WindowSegData"
WORDS = {IMAGE: 2, WINDOW: 6}  # in a line
LEAST_WINDOW, MOST_WINDOW = -(1 << 20), 1 << 20


class SegList(Dataset):
    """Pictures with label maps in a list, resized; of windows if its lines have them.

    `root_folder` is put in front of the names in the list. An id is a line.
    """

    kind = "seg-list"
    layout = "lines of: image labels, or image labels x1 y1 x2 y2"
    marker = ""
    class_names: ClassVar = {"label": tuple(f"class {label}" for label in range(VOID))}

    def __init__(
        self, source: Path, root_folder: str, kind: str, size: tuple[int, int] | None,
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
    ) -> None:  # fmt: skip
        """Read the list `source`, of `kind` ImageSegData or WindowSegData; `size` is (height, width).

        FileError, FormatError.
        """
        self.root_folder, self.layer, self.size = root_folder, kind, size
        self.means = {"image": mean}
        self.root = source.parent
        self.split = self.parse_list(source.stem, source)

    def parse_list(self, name: str, path: Path) -> Split:
        found = lines_of(path)
        for number, line in found:
            _words(line, self.layer, f"{path} line {number}")
        if not found:
            raise FormatError(str(path), "an empty list", f"lines of {WORDS[self.layer]} words")
        return Split(name, tuple(line for _, line in found), str(path), tuple(n for n, _ in found))

    def path(self, part: str, identity: str) -> Path:
        return Path(self.root_folder + identity.split()[part == "label"])

    def read_label(self, part: str, path: Path) -> np.ndarray:
        return read_labels(path)

    def item(self, identity: str) -> dict[str, np.ndarray]:
        """`image` float32 3 x H x W, BGR minus mean, and `label` uint8 1 x H x W, 255 where void."""
        image = read_picture(self.existing("image", identity))
        label = read_labels(self.existing("label", identity))
        if image.shape[:2] != label.shape:
            sizes = ["x".join(map(str, array.shape[:2])) for array in (label, image)]
            raise FormatError(str(self.path("label", identity)), f"{sizes[0]} pixels",
                              f"{sizes[1]}, as {self.path('image', identity)}")  # fmt: skip
        if self.layer == WINDOW:
            window = np.array([int(word) for word in identity.split()[2:]])
            image, label = cut_array(image, window, 0), cut_array(label, window, VOID)
        if self.size is not None:
            image, label = resize_picture(image, self.size), resize_labels(label, self.size)
        return {"image": picture_blob(image, self.means["image"]), "label": label[np.newaxis]}


@dataclass(frozen=True)
class CropMirror:
    """Cut a square out of picture and labels alike and mirror half of them; `middle`: cut it from there.

    A side of 0 cuts nothing. What is smaller is filled up, below and right, with the mean and void.
    """

    side: int = 0
    mirror: bool = False
    middle: bool = False
    seed: int = SEED

    def __call__(self, blobs: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
        """Change all blobs C x H x W alike; `number` is the picture's in the run and fixes how."""
        random = np.random.default_rng([self.seed, number])
        flip = bool(random.integers(2)) and self.mirror
        parts = tuple(random.random(2)) if not self.middle else (0.5, 0.5)
        result = {}
        for name, blob in blobs.items():
            if self.side:
                blob = self._cut(blob, parts)
            result[name] = np.ascontiguousarray(blob[:, :, ::-1] if flip else blob)
        return result

    def _cut(self, blob: np.ndarray, parts: tuple[float, ...]) -> np.ndarray:
        lacking = [max(0, self.side - length) for length in blob.shape[1:]]
        if any(lacking):
            fill = VOID if blob.dtype == np.uint8 else 0
            blob = np.pad(blob, ((0, 0), *((0, lack) for lack in lacking)), constant_values=fill)
        room = [length - self.side for length in blob.shape[1:]]
        spread = [r / 2 if self.middle else part * (r + 1) for part, r in zip(parts, room, strict=True)]
        top, left = (int(value) for value in spread)
        return blob[:, top : top + self.side, left : left + self.side]


class Permutations:
    """A list again and again, in another order each time, which follows from the seed."""

    def __init__(self, count: int, seed: int = SEED) -> None:
        self.count, self.seed = count, seed
        self._pass, self._order = -1, np.empty(0, np.int64)

    def __call__(self, number: int) -> int:
        """The index of the `number`-th picture."""
        turn, place = divmod(number, self.count)
        if turn != self._pass:
            self._pass, self._order = turn, np.random.default_rng([self.seed, turn]).permutation(self.count)
        return int(self._order[place])


def seg_feed(
    layer: LayerParameter,
    folder: Path,
    phase: str = "TRAIN",
    seed: int = SEED,
    workers: int = 0,
    numbers: Numbers = itertools.count,
) -> Feed:
    """The batches of an ImageSegData or WindowSegData layer; its files are looked for in `folder` first.

    NetError for settings that mean nothing here; FileError, FormatError as when the list is read.
    """
    p, where = layer.image_data_param, f"layer {layer.name} ({layer.type})"
    _check(layer, where)
    transform = layer.transform_param
    means = tuple(transform.mean_value) or (0.0,)
    size = (p.new_height, p.new_width) if p.new_height else None
    data = SegList(_place(p.source, folder), _root(p.root_folder, folder), layer.type, size,
                   means if len(means) == 3 else means * 3)  # fmt: skip
    order: Order = Permutations(len(data.ids), seed) if p.shuffle else ListOrder(len(data.ids))
    change = CropMirror(transform.crop_size, transform.mirror, phase == "TEST", seed)
    return Feed(data, tuple(layer.top), order, p.batch_size, workers, change, numbers)


def cut_array(image: np.ndarray, window: np.ndarray, fill: int) -> np.ndarray:
    """A window x1, y1, x2, y2 of an array H x W ..., both ends belonging to it; `fill` beyond the array."""
    left, top, right, bottom = (int(value) for value in window)
    height, width = image.shape[:2]
    result = np.full((bottom - top + 1, right - left + 1, *image.shape[2:]), fill, image.dtype)
    rows, columns = range(max(top, 0), min(bottom + 1, height)), range(max(left, 0), min(right + 1, width))
    if len(rows) and len(columns):
        part = image[rows.start : rows.stop, columns.start : columns.stop]
        y, x = rows.start - top, columns.start - left
        result[y : y + len(rows), x : x + len(columns)] = part
    return result


def resize_picture(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture uint8 H x W x 3 resized as OpenCV's INTER_LINEAR does, to whole values."""
    planes = resize(image.transpose(2, 0, 1), size)
    return np.rint(planes).astype(np.uint8).transpose(1, 2, 0)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map H x W resized as OpenCV's INTER_NEAREST does: the value at floor(i * old / new)."""
    rows, columns = (np.floor(np.arange(new) * (old / new)).astype(int)
                     for old, new in zip(labels.shape, size, strict=True))  # fmt: skip
    return labels[np.minimum(rows, labels.shape[0] - 1)][:, np.minimum(columns, labels.shape[1] - 1)]


def _words(line: str, kind: str, where: str) -> None:
    words = line.split()
    wanted = "image labels" + (" x1 y1 x2 y2" if kind == WINDOW else "")
    if len(words) != WORDS[kind]:
        raise FormatError(where, f"{len(words)} words", wanted)
    try:
        left, top, right, bottom = (int(word) for word in words[2:]) if kind == WINDOW else (0, 0, 0, 0)
    except ValueError:
        raise FormatError(where, repr(" ".join(words[2:])), wanted, "in whole numbers") from None
    if right < left or bottom < top or min(left, top) < LEAST_WINDOW or max(right, bottom) > MOST_WINDOW:
        raise FormatError(where, f"the window {left} {top} {right} {bottom}", "x1 <= x2 and y1 <= y2")


def _check(layer: LayerParameter, where: str) -> None:
    p, transform = layer.image_data_param, layer.transform_param
    if layer.type not in WORDS:
        raise NetError(where, "another type", " or ".join(WORDS))
    if len(layer.top) != 2:
        raise NetError(where, f"{len(layer.top)} tops", "2: picture and labels", "leave out the third")
    if p.label_type != ImageDataParameter.PIXEL:
        raise NetError(where, "a label_type other than PIXEL", "label_type: PIXEL")
    if p.batch_size < 1:
        raise NetError(where, f"batch_size {p.batch_size}", "at least 1", "set batch_size")
    if bool(p.new_height) != bool(p.new_width):
        raise NetError(where, "one of new_height and new_width", "both, or none")
    unused = [name for name in ("mean_file", "scale") if transform.HasField(name)]
    unused += ["rand_skip"] if p.rand_skip else []
    if unused:
        raise NetError(where, unused[0], "mean_value, crop_size and mirror", "leave it out")
    if len(transform.mean_value) not in (0, 1, 3):
        raise NetError(where, f"{len(transform.mean_value)} values of mean_value", "1 or 3")


def _place(given: str, folder: Path) -> Path:
    return folder / given if (folder / given).exists() else Path(given)


def _root(given: str, folder: Path) -> str:
    return str(folder / given) if given and (folder / given).is_dir() else given
