"""Files as read-only memory.

A 553 MB caffemodel is opened by mapping it: its blobs are numpy views of the map, nothing is read until
a value is used, and the memory is the page cache's. Views are written a mebibyte at a time, its pages
mapped in one call first: that costs about what `shutil.copyfile` costs, where one write of a whole blob
takes twice as long (benchmarks/conversion.py).

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
from contextlib import ExitStack, suppress
from typing import IO, Any

import numpy as np

from caffe_weights.errors import FileError, FormatError
from caffe_weights.files import open_input

CAFFE_MOST_BYTES = 2**31 - 1  # io.cpp: Caffe reads no binary file of more than INT_MAX bytes
CHUNK_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
_MADV_POPULATE_READ = 22  # linux/mman.h; not yet named by the mmap module


class MappedFile(mmap.mmap):
    """The bytes of a file. The map lives as long as a view of it does."""

    address: int

    @classmethod
    def of(cls, file: IO[bytes]) -> MappedFile:
        """Map all of `file`, which must not be empty and may be closed afterwards."""
        mapped = cls(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.address = np.frombuffer(mapped, np.uint8).ctypes.data
        return mapped

    def prefault(self, address: int, size: int) -> None:
        """Map the pages of `size` bytes at `address` in one call, where the system can (Linux 5.14)."""
        start = (address - self.address) // mmap.PAGESIZE * mmap.PAGESIZE
        with suppress(OSError, AttributeError):
            self.madvise(_MADV_POPULATE_READ, start, address - self.address + size - start)

    def release(self, address: int, size: int) -> None:
        """Give back the pages of `size` bytes at `address`, if the system can; reading brings them again."""
        start = (address - self.address) // mmap.PAGESIZE * mmap.PAGESIZE
        with suppress(OSError, AttributeError, ValueError):
            self.madvise(mmap.MADV_DONTNEED, start, address - self.address + size - start)

    def array(self, start: int, count: int, dtype: str) -> np.ndarray:
        """Values `count` of `dtype` from byte `start` on, as a read-only view of shape (count,)."""
        if count == 0:
            return np.empty(0, dtype)
        return np.frombuffer(self, dtype, count, start)


def open_mapped(path: str | os.PathLike[str]) -> MappedFile:
    """Map the file at `path`, unpacked first when it is gzip. FileError or FormatError if that fails."""
    file: IO[bytes] = open_input(path)
    with ExitStack() as stack:
        stack.enter_context(file)
        if file.read(len(GZIP_MAGIC)) == GZIP_MAGIC:
            file = stack.enter_context(_unpacked(file, str(path)))
        if os.fstat(file.fileno()).st_size == 0:
            raise FormatError(str(path), "an empty file", "a model", "copy it again")
        return MappedFile.of(file)


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
        if error.errno is None:  # of the chunks, as gzip's of damaged data
            raise
        raise FileError(where, f"cannot be unpacked to a temporary file ({error.strerror})") from None
    except BaseException:
        spooled.close()
        raise
    return spooled


def portions(array: np.ndarray) -> Iterator[np.ndarray]:
    """The values of `array` in C order, some at a time; those in a map do not stay in memory."""
    mapped, flat = _map_of(array), array.reshape(-1)
    step = max(1, CHUNK_BYTES // array.itemsize)
    for start in range(0, flat.size, step):
        portion = flat[start : start + step]
        yield portion
        if mapped is not None:
            mapped.release(portion.ctypes.data, portion.nbytes)


def write_array(array: np.ndarray, out: IO[bytes]) -> None:
    """Append the values of `array` to the unbuffered file `out`, in C order."""
    write_bytes(raw_bytes(array), out, _map_of(array), array.ctypes.data)


def write_bytes(view: memoryview, out: IO[bytes], mapped: MappedFile | None = None, address: int = 0) -> None:
    """Append `view` to the unbuffered file `out`; `mapped` and `address` say where it lies, if in a map."""
    for start in range(0, len(view), CHUNK_BYTES):
        chunk = view[start : start + CHUNK_BYTES]
        if mapped is not None:
            mapped.prefault(address + start, len(chunk))
        while len(chunk):
            chunk = chunk[out.write(chunk) :]


def _map_of(array: np.ndarray) -> MappedFile | None:
    """The map that `array` is a contiguous view of, if it is one."""
    base: Any = array if array.flags.c_contiguous else None
    while isinstance(base, np.ndarray):
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    return base if isinstance(base, MappedFile) else None


def raw_bytes(array: np.ndarray) -> memoryview:
    """The bytes of the values in C order; a copy only where they do not lie so."""
    return memoryview(np.asarray(array, order="C").reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def _unpacked(file: IO[bytes], path: str) -> IO[bytes]:
    file.seek(0)
    try:
        with gzip.open(file) as packed:
            return spool(iter(lambda: packed.read(CHUNK_BYTES), b""), path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FormatError(path, f"broken gzip data ({error})", "a whole .gz file", "copy it again") from None
