"""Protobuf's wire format, as far as finding the payloads of blobs needs it.

The protobuf library parses everything but the numbers: `strip` cuts the long float and double fields of
every BlobProto out of a message, notes where in the file they lie, and returns the small rest, with the
enclosing lengths made to fit, for the library to parse. So the structure is read as protobuf reads it
(merging, unknown fields, either packing), and 553 MB of weights are never copied.

Follows the protobuf encoding specification. Bounded: the rest of a message may hold `MOST_REST_BYTES`,
and the payloads may come in `MOST_PIECES` pieces, so that a hostile file costs neither memory nor time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, Union

import numpy as np

from caffe_weights.errors import FormatError
from caffe_weights.mapped import MappedFile

Buffer: TypeAlias = MappedFile | bytes

VARINT, FIXED64, LEN, GROUP, END_GROUP, FIXED32 = range(6)
MOST_REST_BYTES = 4 << 20
MOST_PIECES = 1 << 16
FIELD_BYTES = 16  # what a field counts for besides its content
MESSAGE_BYTES = 128  # what a layer or a blob counts for
MOST_GROUP_DEPTH = 100


class Field(NamedTuple):
    """One field: its tag starts at byte `at`, its value is [start, end)."""

    number: int
    wire: int
    at: int
    start: int
    end: int


class Piece(NamedTuple):
    """`values` numbers of a payload from byte `start` on, `stride` bytes apart."""

    start: int
    values: int
    stride: int


@dataclass
class Payloads:
    """Where the numbers of one BlobProto lie: its field number -> pieces, in order."""

    pieces: dict[int, list[Piece]] = field(default_factory=dict)

    def count(self, number: int) -> int:
        """How many values field `number` holds."""
        return sum(piece.values for piece in self.pieces.get(number, ()))

    def array(self, mapped: MappedFile, number: int) -> np.ndarray:
        """All values of field `number`, flat; a view of the file when they are one packed piece."""
        dtype = BLOB[number]
        views = [_view(mapped, piece, dtype) for piece in self.pieces.get(number, ())]
        if len(views) == 1:
            return views[0]
        return np.concatenate(views) if views else np.empty(0, dtype)


# Field numbers on the way from a message to its blobs. A str is the dtype of a payload to cut out.
Plan: TypeAlias = Mapping[int, Union[str, "Plan"]]
BLOB: dict[int, str] = {5: "<f4", 6: "<f4", 8: "<f8", 9: "<f8"}  # data, diff, double_data, double_diff
NET: Plan = {100: {7: BLOB}, 2: {6: BLOB, 1: {50: BLOB}}}  # layer.blobs, layers.blobs, layers.layer.blobs
SOLVER_STATE: Plan = {3: BLOB}  # history


@dataclass
class Stripped:
    """A message without its payloads, and where these are: one entry a BlobProto, in file order."""

    rest: bytes
    blobs: list[Payloads]


def strip(mapped: MappedFile, start: int, end: int, plan: Plan, where: str) -> Stripped:
    """Cut the payloads that `plan` names out of the message in bytes [start, end). FormatError if broken."""
    stripper = _Stripper(mapped, where)
    if plan is BLOB:
        blob = Payloads()
        return Stripped(stripper.blob(start, end, blob), [blob])
    return Stripped(stripper.message(start, end, plan), stripper.blobs)


class _Stripper:
    """State of one walk: the blobs found and the budget left."""

    def __init__(self, mapped: MappedFile, where: str) -> None:
        self.mapped, self.where = mapped, where
        self.blobs: list[Payloads] = []
        self.rest_bytes = self.piece_count = 0

    def message(self, start: int, end: int, plan: Plan) -> bytes:
        kept = bytearray()
        for item in fields(self.mapped, start, end, self.where):
            inner = plan.get(item.number)
            if inner is None or isinstance(inner, str) or item.wire != LEN:
                kept += self.kept(item.at, item.end)
                continue
            if inner is BLOB:
                self.blobs.append(Payloads())
                rest = self.blob(item.start, item.end, self.blobs[-1])
            else:
                rest = self.message(item.start, item.end, inner)
            kept += encode_tag(item.number, LEN) + encode_varint(len(rest)) + rest
            self.spend(MESSAGE_BYTES)
        return bytes(kept)

    def blob(self, start: int, end: int, payloads: Payloads) -> bytes:
        """Fill `payloads` from the BlobProto in [start, end) and return the rest of it."""
        kept = bytearray()
        at = start
        while at < end:
            item = next(fields(self.mapped, at, end, self.where))
            dtype = BLOB.get(item.number)
            piece = self.piece(item, dtype, end) if dtype else None
            if piece is None:
                kept += self.kept(item.at, item.end)
                at = item.end
                continue
            payloads.pieces.setdefault(item.number, []).append(piece[0])
            at = piece[1]
        return bytes(kept)

    def piece(self, item: Field, dtype: str, end: int) -> tuple[Piece, int] | None:
        """The values at `item` and where they end; None if its wire type makes it an unknown field."""
        size = np.dtype(dtype).itemsize
        if item.wire not in (LEN, FIXED32 if size == 4 else FIXED64):
            return None
        self.piece_count += 1
        if self.piece_count > MOST_PIECES:
            raise self.broken(item.at, f"blob values in more than {MOST_PIECES} pieces", "packed values")
        if item.wire != LEN:
            return self.unpacked(item, size, end)
        length = item.end - item.start
        if length % size:
            raise self.broken(
                item.at,
                f"{length} bytes of {size}-byte values",
                f"a multiple of {size}",
                "the file is damaged",
            )
        return Piece(item.start, length // size, size), item.end

    def unpacked(self, item: Field, size: int, end: int) -> tuple[Piece, int]:
        """A run of fields that each hold one value, as protobuf writes without [packed = true]."""
        if item.start - item.at != 1:
            return Piece(item.start, 1, size), item.end
        stride = size + 1
        most = (end - item.at) // stride
        tags = np.ndarray((most,), np.uint8, self.mapped, item.at, (stride,))
        count = _leading_equal(tags, tags[0])
        return Piece(item.start, count, stride), item.at + count * stride

    def kept(self, start: int, end: int) -> bytes:
        self.spend(FIELD_BYTES + end - start)
        return self.mapped[start:end]

    def spend(self, size: int) -> None:
        self.rest_bytes += size
        if self.rest_bytes > MOST_REST_BYTES:
            raise FormatError(
                self.where,
                f"more than {MOST_REST_BYTES} bytes that are not blob values",
                "a caffemodel",
                "this is another kind of file, or a damaged one",
            )

    def broken(self, at: int, found: str, wanted: str = "", do: str = "") -> FormatError:
        return FormatError(f"{self.where}: byte {at}", found, wanted, do)


def fields(data: Buffer, start: int, end: int, where: str) -> Iterator[Field]:
    """The fields of the message in bytes [start, end). FormatError at the first that cannot be one."""
    at = start
    while at < end:
        item = _field(data, at, end, where, 0)
        yield item
        at = item.end


def encode_varint(value: int) -> bytes:
    """A non-negative integer as protobuf writes it: seven bits a byte, least significant first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_tag(number: int, wire: int) -> bytes:
    """The bytes in front of a field's value."""
    return encode_varint(number << 3 | wire)


def _field(data: Buffer, at: int, end: int, where: str, depth: int) -> Field:
    tag, start = _varint(data, at, end, where)
    number, wire = tag >> 3, tag & 7
    if number == 0 or tag >= 1 << 32:
        raise _not_protobuf(where, at, f"field number {number}")
    if wire == VARINT:
        _, stop = _varint(data, start, end, where)
    elif wire == LEN:
        length, start = _varint(data, start, end, where)
        stop = start + length
    elif wire in (FIXED64, FIXED32):
        stop = start + (8 if wire == FIXED64 else 4)
    elif wire == GROUP:
        stop = _group_end(data, number, start, end, where, depth + 1)
    else:
        raise _not_protobuf(where, at, f"wire type {wire}")
    if stop > end:
        raise FormatError(
            f"{where}: byte {at}",
            f"field {number} of {stop - start} bytes, but {max(end - start, 0)} are left",
            "a whole file",
            "the file is cut off or damaged, copy it again",
        )
    return Field(number, wire, at, start, stop)


def _group_end(data: Buffer, number: int, at: int, end: int, where: str, depth: int) -> int:
    if depth > MOST_GROUP_DEPTH:
        raise _not_protobuf(where, at, f"groups more than {MOST_GROUP_DEPTH} deep")
    while True:
        tag, after = _varint(data, at, end, where)
        if tag == number << 3 | END_GROUP:
            return after
        at = _field(data, at, end, where, depth).end


def _varint(data: Buffer, at: int, end: int, where: str) -> tuple[int, int]:
    value = shift = 0
    for position in range(at, min(at + 10, end)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position + 1
        shift += 7
    if end - at >= 10:
        raise _not_protobuf(where, at, "a number of more than ten bytes")
    raise FormatError(
        f"{where}: byte {at}", "the end of the data inside a number", "a whole file",
        "the file is cut off or damaged, copy it again",
    )  # fmt: skip


def _not_protobuf(where: str, at: int, found: str) -> FormatError:
    return FormatError(f"{where}: byte {at}", found, "protobuf", "the file is damaged or of another format")


def _view(mapped: MappedFile, piece: Piece, dtype: str) -> np.ndarray:
    if piece.stride == np.dtype(dtype).itemsize:
        return mapped.array(piece.start, piece.values, dtype)
    return np.ndarray((piece.values,), dtype, mapped, piece.start, (piece.stride,))


def _leading_equal(values: np.ndarray, wanted: int) -> int:
    """How many values from the first on equal `wanted`, looked for in growing steps."""
    done, step = 0, 64
    while done < len(values):
        different = np.flatnonzero(values[done : done + step] != wanted)
        if len(different):
            return done + int(different[0])
        done, step = done + step, min(step * 8, 1 << 24)
    return len(values)
