"""The Data layer: items of an LMDB, read with the optional package lmdb.

Follows `data_layer.cpp`, `util/db_lmdb.cpp`, `util/io.cpp` and `data_transformer.cpp` of BVLC/caffe at
9b891540: Datum records in the order of their keys, round and round, raw bytes, floats or encoded pictures.
The database is opened for each batch and closed again, so that a net can be copied and two nets can read
the same one. Departures: a LevelDB is not read; an encoded picture of 16 bits comes out in 8.

A record that is damaged is an error. The database's own pages are read by the LMDB library, which trusts
them: open only databases from a source you trust.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image

from caffe_weights.caffe_pb2 import DataParameter, Datum, LayerParameter
from caffe_weights.errors import FileError, FormatError, NetError
from caffe_weights.files import open_input
from reproduce.images import decode_image, to_planes
from reproduce.layers.sources import Shape, Source, skipped
from reproduce.layers.transform import Transformer
from surgery.geometry import dims

MAGIC = b"\xde\xc0\xef\xbe"  # of an LMDB page 0, after the page's header
GRAY_MODES = ("1", "L", "LA", "I", "I;16", "F")


class Data(Source):
    """Items and labels of an LMDB."""

    places = ("next",)

    def __init__(self, definition: LayerParameter, phase: str) -> None:
        super().__init__(definition, phase)
        self.param = definition.data_param
        self.size = self.batch(self.param.batch_size)
        t = definition.transform_param
        if t.force_color and t.force_gray:
            raise NetError(self.where, "both force_color and force_gray", "one of them", "remove the other")
        self.color = "bgr" if t.force_color else "gray" if t.force_gray else ""
        self.transform = Transformer(t, phase, self.where)
        self.next: bytes | None = None  # the key to go on with

    def missing(self) -> str:
        if self.param.backend != DataParameter.LMDB:
            return "its backend is LEVELDB, which is not read here (make an LMDB of it)"
        if not self.param.source:
            return "it names no source"
        return "" if os.path.exists(self.param.source) else f"{self.param.source} does not exist"

    def shapes(self) -> list[Shape]:
        with self._cursor() as cursor:
            item = self._item(cursor.key(), cursor.value())[0]
        return [(self.size, *self.transform.shape(item.shape)), (self.size,)][: len(self.definition.top)]

    def read(self) -> list[np.ndarray]:
        data, labels = [], []
        with self._cursor() as cursor:
            for _ in range(self.size):
                item, label = self._item(cursor.key(), cursor.value())
                data.append(self.transform(item))
                labels.append(label)
                if data[-1].shape != data[0].shape:
                    raise FormatError(f"{self.param.source}: {cursor.key()!r}",
                                      f"an item of {dims(data[-1].shape)} in a batch",
                                      f"{dims(data[0].shape)}, as the first one")  # fmt: skip
                if not cursor.next():
                    cursor.first()
            self.next = bytes(cursor.key())
        return [np.stack(data), np.array(labels, np.float32)][: len(self.definition.top)]

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        """A cursor at the next item."""
        lmdb, path = _library(), self.param.source
        _check_magic(path)
        try:
            options = {"readonly": True, "lock": False, "subdir": os.path.isdir(path), "create": False}
            with lmdb.open(path, readahead=False, **options) as base, base.begin() as transaction:
                cursor = transaction.cursor()
                if not cursor.first():
                    raise FormatError(path, "an empty database", "Datum records")
                if self.next is None:
                    for _ in range(skipped(self.param.rand_skip, self.where, transaction.stat()["entries"])):
                        cursor.next()
                else:
                    cursor.set_range(self.next)
                self.next = bytes(cursor.key())
                yield cursor
        except lmdb.Error as error:
            raise FormatError(path, f"not a readable LMDB ({error})", "the folder of one") from None

    def _item(self, key: bytes, value: bytes) -> tuple[np.ndarray, int]:
        """One record as planes (C, H, W) and label."""
        where = f"{self.param.source}: {bytes(key)!r}"
        try:
            datum = Datum.FromString(bytes(value))
        except DecodeError:
            raise FormatError(where, "no Datum record", "one") from None
        if datum.encoded:
            return _decode(datum.data, self.color, where), datum.label
        shape = (datum.channels, datum.height, datum.width)
        raw = np.frombuffer(datum.data, np.uint8) if datum.data else np.array(datum.float_data, np.float32)
        if min(shape) < 1 or raw.size != shape[0] * shape[1] * shape[2]:
            raise FormatError(where, f"{raw.size} values for {dims(shape)}", "as many as it says")
        return raw.reshape(shape), datum.label


def _decode(data: bytes, color: str, where: str) -> np.ndarray:
    """An encoded picture as planes; without a `color` as it is: gray in one plane, colour as BGR."""
    picture = decode_image(io.BytesIO(data), where)
    if not color:
        with Image.open(io.BytesIO(data)) as image:
            color = "gray" if image.mode in GRAY_MODES else "bgr"
    return to_planes(picture, color)


def _library() -> Any:
    try:
        import lmdb
    except ImportError:
        found = "the package lmdb is not installed"
        raise FileError("Data layer", found, "it", "pip install 'fcn-reproduce[lmdb]'") from None
    return lmdb


def _check_magic(path: str) -> None:
    name = Path(path) / "data.mdb" if os.path.isdir(path) else Path(path)
    with open_input(name) as stream:
        if stream.read(24)[16:20] != MAGIC:
            raise FormatError(str(name), "no LMDB by its first bytes", "an LMDB")
