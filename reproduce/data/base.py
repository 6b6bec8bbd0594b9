"""What every data set here is: ids of a split, pictures, label maps, and the blobs that a net is fed.

Follows the `*_layers.py` files of shelhamer/fcn.berkeleyvision.org at 1305c73: one picture at a time, in its
own size, nothing resized. Departures: whatever is missing or broken is an error that names the file, the
line of the list and the layout; a label that is no class is an error too; a picture that is not RGB is made
RGB. Label maps come out with 255 for void whatever the files hold.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

import numpy as np

from caffe_weights.errors import FileError, FormatError, InputError
from caffe_weights.files import PathLike, as_file_error
from reproduce.data.files import read_picture
from reproduce.data.transforms import picture_blob
from reproduce.visualize import voc_palette

VOID = 255
MOST_LIST_BYTES = 1 << 24


@dataclass(frozen=True)
class Published:
    """What is known of a published split: how many ids, and their SHA-256 ("" where unknown)."""

    count: int
    sha256: str = ""


@dataclass(frozen=True)
class Split:
    """The ids of a split in their order; `lines` are their line numbers in the file `source`.

    `packaged`: they came with this package, since the data set lacks the list; `source` says so.
    """

    name: str
    ids: tuple[str, ...]
    source: str
    lines: tuple[int, ...] = ()
    packaged: bool = False

    @property
    def sha256(self) -> str:
        """The hash of the ids, one a line, each line ended."""
        return ids_hash(self.ids)

    def place(self, identity: str) -> str:
        """Where the list names an id, in words."""
        if identity not in self.ids:
            return f"the id {identity}, which {self.source} does not name"
        number = self.lines[self.ids.index(identity)] if self.lines else self.ids.index(identity) + 1
        return f"{self.source} line {number}"


class Dataset(ABC):
    """Pictures with label maps. `inputs` and `targets` name the parts of an item, in the order of the blobs.

    `classes` are the names of the labels of the first target, from 0; `mean` what is taken off the channels
    of an input, in BGR.
    """

    kind: ClassVar[str]
    layout: ClassVar[str]  # one line, shown in every error about a missing file
    roots: ClassVar[tuple[str, ...]] = ("",)  # where below the given folder the data set may begin
    marker: ClassVar[str]  # a file or folder that tells the beginning
    list_file: ClassVar[str] = "{split}.txt"
    published: ClassVar[Mapping[str, Published]] = {}
    train_split: ClassVar[str] = "train"
    score_split: ClassVar[str] = "val"
    class_names: ClassVar[Mapping[str, tuple[str, ...]]]  # by target
    means: Mapping[str, tuple[float, ...]]  # by input
    inputs: tuple[str, ...] = ("image",)
    targets: tuple[str, ...] = ("label",)
    void: int = VOID

    def __init__(self, root: PathLike, split: str | None = None) -> None:
        """Open the data set in the folder `root`, or below where its layout is usually found.

        `split` is that of training by default, and the first that there is where it is empty. FileError where
        the data set is not there, or has no such split; FormatError for a broken list.
        """
        self.root = self.find_root(Path(root))
        names = [self.train_split] if split is None else [split] if split else self.splits()
        self.split = self.read_split(names[0] if names else self.train_split)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the split."""
        return self.split.ids

    @property
    def parts(self) -> tuple[str, ...]:
        """Inputs and targets, in the order of the reference's tops."""
        return (*self.inputs, *self.targets)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the first target's labels."""
        return self.class_names[self.targets[0]]

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of the first input."""
        return self.means[self.inputs[0]]

    @property
    def palette(self) -> np.ndarray:
        """Colours of the labels, uint8 256 x 3 in RGB."""
        return voc_palette()

    @abstractmethod
    def path(self, part: str, identity: str) -> Path:
        """The file of one part of an item."""

    def image(self, identity: str, part: str = "") -> np.ndarray:
        """A picture as it lies in its file: uint8 H x W x 3, RGB. FileError, FormatError."""
        return read_picture(self.existing(part or self.inputs[0], identity))

    def label(self, identity: str, part: str = "") -> np.ndarray:
        """A label map, uint8 H x W with 255 for void. FileError; FormatError also for labels of no class."""
        part = part or self.targets[0]
        path = self.existing(part, identity)
        labels = self.read_label(part, path)
        _check_labels(labels, len(self.class_names[part]), path)
        return labels

    @abstractmethod
    def read_label(self, part: str, path: Path) -> np.ndarray:
        """The label map in a file, uint8 H x W with 255 for void, not yet checked."""

    def blob(self, part: str, identity: str) -> np.ndarray:
        """What Caffe's layer would give, without the axis of the batch: an input float32 C x H x W, BGR minus
        mean; a target uint8 1 x H x W."""
        if part in self.targets:
            return self.label(identity, part)[np.newaxis]
        return picture_blob(self.image(identity, part), self.means[part])

    def item(self, identity: str) -> dict[str, np.ndarray]:
        """All blobs of an item by part, of one size. FormatError where sizes differ."""
        blobs = {part: self.blob(part, identity) for part in self.parts}
        first = self.parts[0]
        for part, blob in blobs.items():
            if blob.shape[1:] != blobs[first].shape[1:]:
                height, width = blob.shape[1:]
                wanted = f"{blobs[first].shape[1]}x{blobs[first].shape[2]}, as {self.path(first, identity)}"
                raise FormatError(str(self.path(part, identity)), f"{height}x{width} pixels", wanted,
                                  "give each picture the label map of its own size")  # fmt: skip
        return blobs

    def existing(self, part: str, identity: str) -> Path:
        """The file of a part; FileError, with line and layout, where there is none."""
        path = self.path(part, identity)
        if not path.is_file():
            where = self.split.place(identity)
            raise FileError(str(path), f"no such file, but {where} asks for it",
                            f"the layout {self.layout}",
                            f"complete it; fcn data check {self.kind} lists what is missing")  # fmt: skip
        return path

    def expected(self, split: str) -> Published | None:
        """What is known of a split; None of one that was not published."""
        return self.published.get(split)

    def splits(self) -> list[str]:
        """Names of the splits that have a list in the data set or in this package."""
        pattern = Path(self.list_file.format(split="*"))
        names = {path.stem for path in (self.root / pattern.parent).glob(pattern.name)}
        names |= {name for name in self.published if self.packaged(name) is not None}
        return sorted(names)

    @classmethod
    def find_root(cls, given: Path) -> Path:
        """Where the data set begins at or below a folder. FileError."""
        if not given.is_dir():
            found = "a file" if given.exists() else "no such folder"
            raise FileError(str(given), found, f"the folder of {cls.kind}: {cls.layout}")
        for below in cls.roots:
            if (given / below / cls.marker).exists():
                return given / below
        raise FileError(str(given), f"no {cls.marker} in it", f"the layout {cls.layout}",
                        "give the folder that holds it")  # fmt: skip

    def read_split(self, name: str) -> Split:
        """A split from the data set's own list, else from this package. FileError, FormatError."""
        path = self.root / self.list_file.format(split=name)
        if path.is_file() and _plain(name):
            return self.parse_list(name, path)
        ids = self.packaged(name)
        if ids is None:
            raise FileError(str(path), f"no list of split {name}",
                            " or ".join(self.splits()) or f"the layout {self.layout}",
                            "add the list, one id a line, or choose another split")  # fmt: skip
        return Split(name, ids, f"the package's list of {self.kind} {name}", packaged=True)

    def packaged(self, name: str) -> tuple[str, ...] | None:
        """The ids of a published split that this package carries, or None."""
        if name not in self.published or not _plain(name):
            return None
        resource = files("reproduce.data") / "splits" / f"{self.kind}_{name}.txt"
        return tuple(resource.read_text("utf-8").split()) if resource.is_file() else None

    def parse_list(self, name: str, path: Path) -> Split:
        """The ids of a list, one a line."""
        pairs = [(number, self.parse_line(line, f"{path} line {number}")) for number, line in lines_of(path)]
        if not pairs:
            raise FormatError(str(path), "no ids", "one id a line")
        return Split(name, tuple(identity for _, identity in pairs), str(path), tuple(n for n, _ in pairs))

    def parse_line(self, line: str, where: str) -> str:
        """The id in a line. FormatError for what can be none."""
        if any(mark in line for mark in "/\\\0") or line in (".", "..") or len(line.split()) > 1:
            raise FormatError(where, f"{line[:60]!r}", "an id without folder and extension")
        return line


def ids_hash(ids: Iterable[str]) -> str:
    """SHA-256 of ids, one a line, each line ended by a newline."""
    return hashlib.sha256("".join(f"{identity}\n" for identity in ids).encode()).hexdigest()


def lines_of(path: Path) -> list[tuple[int, str]]:
    """The lines of a small text file that hold something, stripped, with their numbers from 1."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_LIST_BYTES + 1)
    except OSError as error:
        raise as_file_error(path, error) from None
    if len(data) > MOST_LIST_BYTES:
        raise FormatError(str(path), "more than 16 MiB", "a list, one id a line")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise FormatError(str(path), "no text", "a list, one id a line") from None
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def choose(what: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The given names, each once; InputError for one that is not known."""
    for name in given:
        if name not in known:
            raise InputError(what, repr(name), " or ".join(known))
    if not given or len(set(given)) != len(given):
        raise InputError(what, ", ".join(given) or "none", "each at most once, of " + ", ".join(known))
    return tuple(given)


def _plain(name: str) -> bool:
    return bool(name) and not any(mark in name for mark in "/\\\0")


def _check_labels(labels: np.ndarray, classes: int, path: Path) -> None:
    wrong = (labels >= classes) & (labels != VOID)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise FormatError(f"{path}: row {row}, column {column}", f"label {labels[row, column]}",
                          f"0 to {classes - 1}, or {VOID} for void")  # fmt: skip
