"""NumPy's `.npz`: a zip of `.npy` members, read over a memory map.

Members that are stored (as `numpy.savez` does) are views of the file; compressed ones are unpacked into a
temporary file first, unless that would fill the disk. Headers are checked against the member's size before
anything is allocated, and object arrays, which are pickles, are refused. Format: numpy/lib/format.py, .ZIP
application note 6.3.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import IO

import numpy as np
from numpy.lib import format as npy

from caffe_weights.errors import FormatError, InputError
from caffe_weights.files import open_input
from caffe_weights.mapped import CAFFE_MOST_BYTES, CHUNK_BYTES, MappedFile, open_mapped, raw_bytes, spool

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # magic, then the lengths of name and extra field at 26
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# What zipfile and zlib raise over damaged bytes, from wrong offsets to names in no encoding.
BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)
MOST_HEADER_BYTES = 10_000
MOST_RATIO = 16  # what compressed members may hold, in sizes of the file, beyond 2 GiB: weights pack by 1.1


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` by name, in file order; read-only.

    FormatError where a member is no array or has the name of another, or where they unpack to far too much.
    """
    where = str(path)
    mapped = open_mapped(path)
    try:
        with open_input(path) as file, zipfile.ZipFile(file) as archive:
            _check_members(archive, len(mapped), where)
            return {
                info.filename.removesuffix(".npy"): _member(archive, info, mapped, where)
                for info in archive.infolist()
            }
    except InputError:
        raise
    except BROKEN_ZIP as error:
        raise FormatError(where, f"a broken zip ({error})", "an .npz file", "copy it again") from None


def write_npz(tensors: Mapping[str, np.ndarray], out: IO[bytes]) -> None:
    """Write `tensors` as `numpy.savez` does, stored and with fixed dates, to the unbuffered file `out`."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in tensors.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                npy.write_array_header_1_0(member, _header_of(array))
                view = raw_bytes(array)
                for start in range(0, len(view), CHUNK_BYTES):
                    member.write(view[start : start + CHUNK_BYTES])


def _header_of(array: np.ndarray) -> dict[str, object]:
    return {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}


def _check_members(archive: zipfile.ZipFile, size: int, where: str) -> None:
    packed = sum(info.file_size for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED)
    if packed > MOST_RATIO * size + CAFFE_MOST_BYTES:
        raise FormatError(where, f"{packed} bytes packed in a file of {size}", "values that are stored",
                          "unpack it and save it with numpy.savez")  # fmt: skip
    twice = [name for name, count in Counter(archive.namelist()).items() if count > 1]
    if twice:
        raise FormatError(where, f"two members {twice[0]!r}", "each name once", "rename one of them")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, mapped: MappedFile, path: str) -> np.ndarray:
    where = f"{path}: member {info.filename!r}"
    with archive.open(info) as member:
        shape, fortran, dtype, header_bytes = _header(member, where)
        count = math.prod(shape)
        if any(size < 0 for size in shape):
            raise FormatError(where, f"shape {shape}", "sizes of 0 and above", "the file is damaged")
        if info.file_size != header_bytes + count * dtype.itemsize:
            raise FormatError(where, f"shape {shape} with {info.file_size - header_bytes} bytes",
                              f"{count * dtype.itemsize} bytes", "the file is damaged")  # fmt: skip
        if info.compress_type == zipfile.ZIP_STORED:
            _, name, extra = _LOCAL_HEADER.unpack_from(mapped, info.header_offset)
            start = info.header_offset + _LOCAL_HEADER.size + name + extra + header_bytes
            if start + count * dtype.itemsize > len(mapped):
                raise FormatError(where, "data beyond the end of the file", "a whole file", "copy it again")
        else:
            mapped, start = _unpack(member, info.file_size, where), 0
    flat = mapped.array(start, count, dtype.str) if count else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _header(member: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, Fortran order, dtype and length of the header of an .npy member."""
    try:
        read = _HEADERS[npy.read_magic(member)]
        shape, fortran, dtype = read(member, max_header_size=MOST_HEADER_BYTES)
    except (ValueError, KeyError, SyntaxError, TypeError, RecursionError) as error:
        detail = str(error).split("\n")[0]
        raise FormatError(where, f"no array ({detail})", "an .npy member", "the file is damaged") from None
    if dtype.hasobject:
        raise FormatError(where, f"an array of {dtype}", "numbers", "save it without pickled objects")
    return shape, fortran, dtype, member.tell()


def _unpack(member: IO[bytes], most_bytes: int, where: str) -> MappedFile:
    """The rest of a compressed member, mapped from a temporary file (with a byte, should it be empty)."""
    return MappedFile.of(spool(iter(lambda: member.read(CHUNK_BYTES), b""), where, most_bytes))
