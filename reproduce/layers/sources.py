"""Layers that bring data in: HDF5Data, ImageData, MemoryData. Data has a module of its own, `database`.

Follows `hdf5_data_layer.cpp`, `image_data_layer.cpp` and `memory_data_layer.cpp` of BVLC/caffe at 9b891540.
A source is asked for a batch when a call of the net gives none of its tops, and goes on where it stopped;
nothing is read ahead. Departures: what a list names is looked for beside the list where the working directory
has it not; chance comes from PyTorch's generator; files of unlike shapes, missing
pictures and unreadable lines are errors, which Caffe skips or reads beyond; a picture that is resized is
rounded to whole grey levels from exact weights, where OpenCV has its own of 11 bits (one level apart).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch

from caffe_weights.caffe_pb2 import LayerParameter
from caffe_weights.errors import FormatError, NetError
from caffe_weights.files import open_input
from reproduce.images import read_image, resize, to_planes
from reproduce.layers.transform import Transformer
from surgery.geometry import dims

Shape = tuple[int, ...]
MOST_VALUES = 2**31 - 1  # of one dataset, as Caffe can count
MOST_RATIO = 1100  # a little above what the deflate of HDF5 can reach
MOST_LIST_BYTES = 1 << 28


class Source:
    """One layer that brings data in. `read` gives the next batch, one float32 array a top."""

    places: ClassVar[tuple[str, ...]] = ()  # attributes that say where it stands

    def __init__(self, definition: LayerParameter, phase: str) -> None:
        self.definition, self.phase = definition, phase
        self.where = f"layer {definition.name} ({definition.type})"

    def missing(self) -> str:
        """Why there is nothing to read, "" if there is something."""
        raise NotImplementedError

    def shapes(self) -> list[Shape]:
        """Shapes of the tops that the next batch will have."""
        raise NotImplementedError

    def read(self) -> list[np.ndarray]:
        """The next batch."""
        raise NotImplementedError

    def position(self) -> dict[str, Any]:
        """Where it stands, in plain values: what `go_to` needs to read on from here."""
        return {name: getattr(self, name) for name in self.places}

    def go_to(self, position: dict[str, Any]) -> None:
        """Go on from a position, of this source with the same files. FileError, FormatError."""
        for name in self.places:
            setattr(self, name, position[name])

    def batch(self, size: int) -> int:
        """A batch_size, checked."""
        if size < 1:
            raise NetError(self.where, f"batch_size {size}", "at least 1", "set batch_size")
        return size


class HDF5Data(Source):
    """Datasets of the files in a list, each top the dataset of its name; rows cross from file to file."""

    places = ("files", "file", "rows", "row")

    def __init__(self, definition: LayerParameter, phase: str) -> None:
        super().__init__(definition, phase)
        param = definition.hdf5_data_param
        self.source, self.shuffle, self.size = param.source, param.shuffle, self.batch(param.batch_size)
        if definition.HasField("transform_param"):
            raise NetError(self.where, "transform_param", "none: this layer does not transform", "remove it")
        self.files: list[str] = []
        self.file = self.row = 0
        self.rows: list[int] = []
        self.arrays: list[np.ndarray] = []

    def missing(self) -> str:
        return _no_file(self.source)

    def shapes(self) -> list[Shape]:
        self._open()
        return [(self.size, *array.shape[1:]) for array in self.arrays]

    def read(self) -> list[np.ndarray]:
        self._open()
        tops: list[list[np.ndarray]] = [[] for _ in self.arrays]
        for _ in range(self.size):
            for top, array in zip(tops, self.arrays, strict=True):
                top.append(array[self.rows[self.row]])
            self._step()
        return [np.stack(top) for top in tops]

    def go_to(self, position: dict[str, Any]) -> None:
        super().go_to(position)
        if self.files:
            self.arrays = read_datasets(self.files[self.file], list(self.definition.top))
            if len(self.rows) != len(self.arrays[0]):
                found = f"{len(self.arrays[0])} rows"
                raise FormatError(self.files[self.file], found, f"{len(self.rows)}, as it had", "restore it")

    def _open(self) -> None:
        if self.files:
            return
        files = [near(word, self.source) for _, line in _lines(self.source) for word in line.split()]
        if not files:
            raise FormatError(f"{self.where}: {self.source}", "no file in this list", "one HDF5 file a line")
        for name in files:
            open_input(name).close()
        self.files = _mixed(files) if self.shuffle else files
        self._load()

    def _step(self) -> None:
        self.row += 1
        if self.row < len(self.rows):
            return
        self.file += 1
        if self.file == len(self.files):
            self.file, self.files = 0, _mixed(self.files) if self.shuffle else self.files
        self._load()

    def _load(self) -> None:
        before, name = self.arrays, self.files[self.file]
        if not before or len(self.files) > 1:
            self.arrays = read_datasets(name, list(self.definition.top))
        for top, old, new in zip(self.definition.top, before, self.arrays, strict=False):
            if old.shape[1:] != new.shape[1:]:
                raise FormatError(f"{name}: dataset {top}", f"items of {dims(new.shape[1:])}",
                                  f"{dims(old.shape[1:])}, as in the files before")  # fmt: skip
        rows = list(range(len(self.arrays[0])))
        self.row, self.rows = 0, _mixed(rows) if self.shuffle else rows


class ImageData(Source):
    """Pictures and labels by a list of `path label` lines."""

    places = ("items", "at")

    def __init__(self, definition: LayerParameter, phase: str) -> None:
        super().__init__(definition, phase)
        self.param = definition.image_data_param
        self.size, self.to = self.batch(self.param.batch_size), (self.param.new_height, self.param.new_width)
        if any(self.to) != all(self.to):
            raise NetError(self.where, f"new_height {self.to[0]} and new_width {self.to[1]}",
                           "both, or neither", "set the other")  # fmt: skip
        self.transform = Transformer(definition.transform_param, phase, self.where)
        self.items: list[tuple[str, int]] = []
        self.at = 0

    def missing(self) -> str:
        return _no_file(self.param.source)

    def shapes(self) -> list[Shape]:
        self._open()
        return [(self.size, *self.transform.shape(self._picture(self.at).shape)), (self.size,)]

    def read(self) -> list[np.ndarray]:
        self._open()
        data, labels = [], []
        for _ in range(self.size):
            data.append(self.transform(self._picture(self.at)))
            labels.append(self.items[self.at][1])
            if data[-1].shape != data[0].shape:
                raise FormatError(self._path(self.at), f"a picture of {dims(data[-1].shape)} in a batch",
                                  f"{dims(data[0].shape)}, as the first one",
                                  "set new_height and new_width, or crop_size")  # fmt: skip
            self.at += 1
            if self.at == len(self.items):
                self.at, self.items = 0, _mixed(self.items) if self.param.shuffle else self.items
        return [np.stack(data), np.array(labels, np.float32)]

    def _open(self) -> None:
        if self.items:
            return
        items = list(self._items())
        if not items:
            raise FormatError(
                f"{self.where}: {self.param.source}", "no picture in this list", "path and label"
            )
        self.items = _mixed(items) if self.param.shuffle else items
        self.at = skipped(self.param.rand_skip, self.where, len(items))

    def _items(self) -> Iterator[tuple[str, int]]:
        for number, line in _lines(self.param.source):
            path, _, label = line.rstrip().rpartition(" ")
            try:
                yield path, int(label)
            except ValueError:
                where = f"{self.param.source}:{number}"
                raise FormatError(where, repr(line[:60]), "a path, a space and a whole number") from None

    def _path(self, index: int) -> str:
        return near(self.param.root_folder + self.items[index][0], self.param.source)

    def _picture(self, index: int) -> np.ndarray:
        planes = to_planes(read_image(self._path(index)), "bgr" if self.param.is_color else "gray")
        return np.rint(resize(planes, self.to)) if any(self.to) else planes


class MemoryData(Source):
    """Arrays handed over with `reset`, a batch at a time, over and over."""

    places = ("at",)

    def __init__(self, definition: LayerParameter, phase: str) -> None:
        super().__init__(definition, phase)
        p = definition.memory_data_param
        self.size, self.item = self.batch(p.batch_size), (p.channels, p.height, p.width)
        if min(self.item) < 1:
            raise NetError(
                self.where, f"items of {dims(self.item)}", "channels, height and width of at least 1"
            )
        self.data, self.labels = np.empty(0), np.empty(0)
        self.at = 0

    def reset(self, data: Any, labels: Any) -> None:
        """Take items (N, C, H, W) and labels (N), N a multiple of batch_size, from now on. NetError."""
        data, labels = np.asarray(data, np.float32), np.asarray(labels, np.float32)
        if data.shape[1:] != self.item or len(data) % self.size or not len(data):
            raise NetError(self.where, f"data of {dims(data.shape)}",
                           f"N x {dims(self.item)}, N a multiple of {self.size}")  # fmt: skip
        if labels.shape != (len(data),):
            raise NetError(self.where, f"labels of {dims(labels.shape)}", f"{len(data)}, one an item")
        self.data, self.labels, self.at = data, labels, 0

    def missing(self) -> str:
        return "" if len(self.data) else "nothing has been handed over with reset"

    def shapes(self) -> list[Shape]:
        return [(self.size, *self.item), (self.size,)]

    def read(self) -> list[np.ndarray]:
        part = slice(self.at, self.at + self.size)
        self.at = (self.at + self.size) % len(self.data)
        return [self.data[part], self.labels[part]]


def read_datasets(path: str, names: Iterable[str]) -> list[np.ndarray]:
    """Datasets of an HDF5 file as float32, all with as many rows. FileError, FormatError."""
    import h5py

    open_input(path).close()
    try:
        with h5py.File(path, "r", locking=False) as file:
            arrays = [_dataset(file, name, f"{path}: dataset {name}") for name in names]
    except (OSError, KeyError, RuntimeError) as error:
        detail = str(error).split("\n")[0]
        raise FormatError(path, f"a broken HDF5 file ({detail})", do="copy it again") from None
    counts = {len(array) for array in arrays}
    if len(counts) > 1 or counts == {0}:
        raise FormatError(path, f"datasets of {', '.join(map(str, sorted(counts)))} rows", "equal numbers")
    return arrays


def near(name: str, source: str) -> str:
    """The file that a list names: as Caffe finds it, from the working directory, else beside the list."""
    beside = os.path.join(os.path.dirname(source), name)
    return beside if not os.path.exists(name) and os.path.exists(beside) else name


def skipped(limit: int, where: str, count: int) -> int:
    """How many of `count` items to skip at the start: a random number below rand_skip."""
    skip = int(torch.randint(limit, ()).item()) if limit else 0
    if skip >= count:
        raise NetError(where, f"rand_skip {limit} skips {skip} items of {count}", f"at most {count}")
    return skip


def _dataset(file: Any, name: str, where: str) -> np.ndarray:
    import h5py

    if name not in file:
        raise FormatError(where, "the file has none of this name", " or ".join(sorted(file)) or "datasets")
    dataset = file[name]
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(dataset, h5py.Dataset):
        raise FormatError(where, "a group, or a link to elsewhere", "data in this file")
    if dataset.external or dataset.is_virtual:
        raise FormatError(where, "values kept in another file", "data in this file")
    if dataset.dtype.kind not in "fiu" or not dataset.shape:
        raise FormatError(where, f"values of {dataset.dtype}", "numbers with at least one axis")
    stored = dataset.id.get_storage_size()
    if math.prod(dataset.shape) > MOST_VALUES or dataset.nbytes > MOST_RATIO * stored:
        raise FormatError(where, f"{dims(dataset.shape)} values in {stored} bytes", "values that are stored")
    return np.asarray(dataset[()], np.float32)


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Lines of a list that hold something, with their numbers."""
    with open_input(path) as stream:
        if os.fstat(stream.fileno()).st_size > MOST_LIST_BYTES:
            raise FormatError(path, "a list of more than 256 MB", "a list of files")
        try:
            lines = stream.read().decode().splitlines()
        except UnicodeDecodeError:
            raise FormatError(path, "bytes that are no text", "a list of files") from None
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _no_file(path: str) -> str:
    if not path:
        return "it names no source"
    return "" if os.path.exists(path) else f"{path} does not exist"


def _mixed(values: list[Any]) -> list[Any]:
    return [values[i] for i in torch.randperm(len(values)).tolist()]
