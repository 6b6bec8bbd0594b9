"""Safetensors files: checked by the safetensors library, read as views, written as a stream.

The library validates a file (header size, offsets, no holes); the views are then made from its header,
because the library's own loading copies all values into memory. Writing is ours because the library sorts
tensors by name, and writes them at half the speed (`mapped`): an 8-byte little-endian header length, a JSON
header padded with spaces to a multiple of 8, the values. Tensors stand in Caffe's order; offsets keep it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import IO

import numpy as np
import safetensors
from safetensors import SafetensorError

from caffe_weights.errors import FormatError
from caffe_weights.files import open_input
from caffe_weights.mapped import open_mapped, write_array

_NAMES = {np.dtype("<f4"): "F32", np.dtype("<f8"): "F64", np.dtype("<f2"): "F16"}
_DTYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2"}


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors by name, in the order of their offsets; read-only views, bfloat16 widened to float32."""
    where = str(path)
    open_input(path).close()
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise FormatError(where, f"no safetensors file ({error})", do="copy it again") from None
    mapped = open_mapped(path)
    length = int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _DTYPES:
            raise FormatError(f"{where}: tensor {name!r}", f"dtype {entry['dtype']}", " or ".join(_DTYPES))
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        start, end = entry["data_offsets"]
        array = mapped.array(8 + length + start, (end - start) // dtype.itemsize, dtype.str)
        tensors[name] = (widen_bfloat16(array) if entry["dtype"] == "BF16" else array).reshape(entry["shape"])
    return tensors


def write_safetensors(tensors: Mapping[str, np.ndarray], out: IO[bytes]) -> None:
    """Write float tensors to the unbuffered file `out`, in the order given."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        end = offset + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": array.shape, "data_offsets": (offset, end)}
        offset = end
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    out.write(len(encoded).to_bytes(8, "little") + encoded)
    for array in tensors.values():
        write_array(array, out)


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 values whose upper halves are `bits` (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
