"""Blobs stored in an .npz or HDF5 file as an oracle.

A key says what it holds; HDF5 groups count as the slashes of a key:

    NAME, out/NAME, blob/NAME     the final content of blob NAME (what `fcn run --out` writes)
    NAME@LAYER                    the content that LAYER wrote, of a blob that in-place layers change
    in/NAME                       an input: it is fed to both sides
    grad/LAYER/I, grad_in/NAME    gradients of a parameter and of an input
    probe/NAME/{shape,idx,val,sum,norm}   some values of a blob, likewise below grad/ and grad_in/

Probes are the layout of the golden files of this project. Other keys are named and left alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import h5py
import numpy as np

from caffe_weights.errors import FormatError
from caffe_weights.files import open_input
from reproduce.parity.blame import Key, Version
from reproduce.parity.measure import Content, Probe
from reproduce.parity.ours import Answer

PARTS = ("idx", "norm", "shape", "sum", "val")
PREFIXES = ("out/", "blob/", "probe/", "")
MOST_NAMED = 6


@dataclass
class Store:
    """An open file of blobs: its keys, and how to read one."""

    path: str
    keys: list[str]
    read: Callable[[str], np.ndarray]
    used: set[str] = field(default_factory=set)

    def content(self, key: str) -> Content | None:
        """The array or probe under `key`, None if there is none. FormatError for a broken one."""
        if key in self.keys:
            self.used.add(key)
            return self._numbers(key)
        parts = [f"{key}/{part}" for part in PARTS]
        if not set(parts) <= set(self.keys):
            return None
        self.used.update(parts)
        idx, norm, shape, total, val = map(self._numbers, parts)
        sizes = tuple(int(n) for n in shape)
        if (
            idx.shape != val.shape
            or idx.ndim != 1
            or (idx.size and not 0 <= idx.min() <= idx.max() < prod(sizes))
        ):
            raise FormatError(f"{self.path}: {key}", "a probe whose indices do not fit its shape",
                              "indices into the flattened blob, one value each")  # fmt: skip
        return Probe(sizes, idx.astype(np.int64), val, float(total), float(norm))

    def inputs(self) -> dict[str, np.ndarray]:
        """What lies under in/."""
        return {key[3:]: self._numbers(key) for key in self.keys if key.startswith("in/")}

    def _numbers(self, key: str) -> np.ndarray:
        try:
            value = np.asarray(self.read(key))
        except (ValueError, OSError, KeyError, zipfile.BadZipFile, EOFError) as error:
            reason = " ".join(str(error).split())[:80]
            raise FormatError(f"{self.path}: {key}", f"cannot be read ({reason})") from None
        if value.dtype.kind not in "fiub":
            raise FormatError(f"{self.path}: {key}", f"values of type {value.dtype}", "numbers")
        return value


def open_store(path: str) -> Store:
    """Open an .npz or HDF5 file, told by its first bytes. FileError, FormatError."""
    with open_input(path) as stream:
        start = stream.read(8)
    try:
        if start == b"\x89HDF\r\n\x1a\n":
            file = h5py.File(path, "r")
            keys: list[str] = []
            file.visititems(lambda name, item: keys.append(name) if isinstance(item, h5py.Dataset) else None)
            return Store(path, keys, lambda key: file[key][()])
        if not start.startswith(b"PK"):
            raise ValueError("wrong first bytes")
        archive = np.load(path, allow_pickle=False)
        return Store(path, list(archive.files), archive.__getitem__)
    except (ValueError, OSError, AttributeError, zipfile.BadZipFile, EOFError) as error:
        reason = " ".join(str(error).split())[:80]
        raise FormatError(path, f"no file of blobs ({reason})", ".npz or HDF5") from None


def answer_from(
    store: Store, story: Sequence[Version], parameters: Iterable[tuple[str, int]], backward: bool
) -> Answer:
    """What a file knows of a net's blobs. FormatError if that is nothing."""
    blobs: dict[Key, Content] = {}
    finals: dict[str, Content] = {}
    gradients: dict[str, Content] = {}
    by_parameter: dict[tuple[str, int], Content] = {}
    for v in story:
        _enter(blobs, v.key, store, [f"{v.blob}@{v.layer}"])
        if v.final:
            inputs = ["in/"] if not v.bottoms else []
            _enter(finals, v.blob, store, [prefix + v.blob for prefix in (*PREFIXES, *inputs)])
            if backward:
                _enter(gradients, v.blob, store, [f"grad_in/{v.blob}"])
    if backward:
        for layer, index in parameters:
            _enter(by_parameter, (layer, index), store, [f"grad/{layer}/{index}"])
    if not blobs and not finals:
        raise FormatError(store.path, f"keys {_some(store.keys)}", "blobs of the net, under their names")
    return Answer(f"blobs of {store.path}", blobs, finals, final_gradients=gradients,
                  parameter_gradients=by_parameter, notes=_notes(store, backward))  # fmt: skip


def _enter(table: dict[Any, Content], name: Any, store: Store, keys: Sequence[str]) -> None:
    for key in keys:
        content = store.content(key)
        if content is not None:
            table.setdefault(name, content)


def _notes(store: Store, backward: bool) -> list[str]:
    skipped = ("meta", "in/") if backward else ("meta", "in/", "grad/", "grad_in/")
    left = [key for key in store.keys if key not in store.used and not key.startswith(skipped)]
    return [f"{store.path}: not of this net, left alone: {_some(left)}"] if left else []


def _some(keys: Collection[str]) -> str:
    named = [*keys][:MOST_NAMED]
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    return ", ".join(named) + more if named else "none"
