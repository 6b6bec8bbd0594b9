"""Protobuf by hand, for tests: literal bytes that no library of ours or theirs has formed."""

from __future__ import annotations

import struct


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out, value = out + bytes([value % 128 + 128]), value // 128
    return out + bytes([value])


def field(number: int, value: bytes) -> bytes:
    """A length-delimited field: a string, a message, packed values."""
    return varint(number * 8 + 2) + varint(len(value)) + value


def number(number: int, value: int) -> bytes:
    """A varint field."""
    return varint(number * 8) + varint(value)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def shape(*sizes: int) -> bytes:
    """BlobProto.shape (7) with packed dims (1)."""
    return field(7, field(1, b"".join(varint(size) for size in sizes)))


def blob(sizes: tuple[int, ...], *values: float) -> bytes:
    """A BlobProto as Caffe writes it: data (5), then shape (7)."""
    return field(5, floats(*values)) + shape(*sizes)


def layer(name: str, kind: str, *blobs: bytes) -> bytes:
    """A V2 layer as a field of a net: name (1), type (2), blobs (7)."""
    inner = field(1, name.encode()) + field(2, kind.encode()) + b"".join(field(7, b) for b in blobs)
    return field(100, inner)
