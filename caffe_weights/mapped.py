"""Files as read-only memory, and arrays that know which bytes of which file they are.

A 553 MB caffemodel is opened by mapping it: its blobs are numpy views of the map, nothing is read until
a value is used, and the memory is the page cache's. When such a view is written to another file, the
kernel copies the range (`sendfile`), which costs what copying the file costs: writing from the map
itself takes about twice as long, because every page must first be faulted in.

Compressed sources are unpacked into an unnamed temporary file and mapped there, so they cost disk and
not memory.
"""

from __future__ import annotations

import gzip
import mmap
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from caffe_weights.errors import FileError, FormatError
from caffe_weights.files import open_input

CAFFE_MOST_BYTES = 2**31 - 1  # io.cpp: Caffe reads no binary file of more than INT_MAX bytes
CHUNK_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"


class MappedFile(mmap.mmap):
    """The bytes of an open file. It stays open as long as a view of it lives."""

    file: IO[bytes]
    address: int

    @classmethod
    def of(cls, file: IO[bytes]) -> MappedFile:
        """Map all of `file`, which must not be empty; the map owns it from here on."""
        mapped = cls(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.file = file
        mapped.address = np.frombuffer(mapped, np.uint8).ctypes.data
        return mapped

    def array(self, start: int, count: int, dtype: str) -> np.ndarray:
        """Values `count` of `dtype` from byte `start` on, as a read-only view of shape (count,)."""
        if count == 0:
            return np.empty(0, dtype)
        return np.frombuffer(self, dtype, count, start)


def open_mapped(path: str | os.PathLike[str]) -> MappedFile:
    """Map the file at `path`, unpacked first when it is gzip. FileError or FormatError if that fails."""
    file: IO[bytes] = open_input(path)
    try:
        if file.read(len(GZIP_MAGIC)) == GZIP_MAGIC:
            file = _unpacked(file, str(path))
        if os.fstat(file.fileno()).st_size == 0:
            raise FormatError(str(path), "an empty file", "a model", "copy it again")
        return MappedFile.of(file)
    except BaseException:
        file.close()
        raise


def spool(chunks: Iterator[bytes], where: str, most_bytes: int = CAFFE_MOST_BYTES) -> IO[bytes]:
    """Write `chunks` to an unnamed temporary file and return it. FormatError beyond `most_bytes`."""
    spooled = tempfile.TemporaryFile()  # noqa: SIM115 - handed out open
    size = 0
    try:
        for chunk in chunks:
            size += len(chunk)
            if size > most_bytes:
                raise FormatError(where, f"more than {most_bytes} bytes when unpacked", "a smaller file")
            spooled.write(chunk)
        spooled.flush()
    except OSError as error:
        spooled.close()
        raise FileError(where, f"cannot be unpacked to a temporary file ({error.strerror})") from None
    except BaseException:
        spooled.close()
        raise
    return spooled


def write_array(array: np.ndarray, out: IO[bytes]) -> None:
    """Append the values of `array` to the unbuffered file `out`, little-endian, in C order."""
    if not array.nbytes:
        return
    source = mapped_range(array)
    if source is None:
        _write_all(raw_bytes(array), out)
    else:
        copy_range(*source, out)


def raw_bytes(array: np.ndarray) -> memoryview:
    """The bytes of the values in C order; a copy only where they do not lie so."""
    return memoryview(np.asarray(array, order="C").reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def mapped_range(array: np.ndarray) -> tuple[MappedFile, int, int] | None:
    """The (file, start, size in bytes) that `array` is a contiguous little-endian view of, if it is one."""
    if not array.flags.c_contiguous or array.dtype.byteorder == ">":
        return None
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if not isinstance(base, MappedFile):
        return None
    return base, array.ctypes.data - base.address, array.nbytes


def copy_range(mapped: MappedFile, start: int, size: int, out: IO[bytes]) -> None:
    """Append `size` bytes of `mapped` from `start` on to the unbuffered file `out`."""
    done = 0
    try:
        while done < size:
            sent = os.sendfile(out.fileno(), mapped.file.fileno(), start + done, size - done)
            if sent == 0:
                break
            done += sent
    except OSError as error:
        if done or error.errno not in _NO_SENDFILE:
            raise
    _write_all(memoryview(mapped)[start + done : start + size], out)


# The kernel cannot send between these two files (not Linux, or a file system without it): write instead.
_NO_SENDFILE = {22, 38, 45, 88, 95, 102}  # EINVAL ENOSYS ENOTSUP(BSD) ENOTSOCK EOPNOTSUPP EOPNOTSUPP(BSD)


def _write_all(view: memoryview, out: IO[bytes]) -> None:
    while len(view):
        view = view[out.write(view) :]


def _unpacked(file: IO[bytes], path: str) -> IO[bytes]:
    file.seek(0)
    try:
        with file, gzip.open(file) as packed:
            return spool(iter(lambda: packed.read(CHUNK_BYTES), b""), path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FormatError(path, f"broken gzip data ({error})", "a whole .gz file", "copy it again") from None


def is_gzip(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as gzip does."""
    with open_input(path) as file:
        return file.read(len(GZIP_MAGIC)) == GZIP_MAGIC


def suffixless(path: str | os.PathLike[str]) -> Path:
    """The path without a trailing `.gz`."""
    path = Path(path)
    return path.with_suffix("") if path.suffix == ".gz" else path
