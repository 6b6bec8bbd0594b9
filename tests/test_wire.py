"""The wire walk against hand-made bytes, and every way it can be broken."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
from wire_bytes import field, floats, number, varint

from caffe_weights import wire
from caffe_weights.errors import FormatError
from caffe_weights.mapped import MappedFile


def mapped(data: bytes) -> MappedFile:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return MappedFile.of(file)


def strip_blob(data: bytes) -> tuple[bytes, wire.Payloads, MappedFile]:
    view = mapped(data)
    stripped = wire.strip(view, 0, len(view), wire.BLOB, "f")
    return stripped.rest, stripped.blobs[0], view


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (2**35, "808080808001")]
)
def test_varints_are_those_of_the_specification(value: int, encoded: str) -> None:
    assert wire.encode_varint(value) == bytes.fromhex(encoded)


def test_packed_values_are_cut_out_and_viewed_in_place() -> None:
    data = number(1, 5) + field(5, floats(1.5, -2.0)) + number(2, 7)
    rest, payloads, view = strip_blob(data)
    assert rest == number(1, 5) + number(2, 7)
    assert payloads.array(view, 5).tolist() == [1.5, -2.0]
    assert not payloads.array(view, 5).flags.owndata


def test_unpacked_values_are_one_piece() -> None:
    values = [float(i) for i in range(1000)]
    data = b"".join(b"\x2d" + floats(value) for value in values) + number(1, 9)
    rest, payloads, view = strip_blob(data)
    assert rest == number(1, 9)
    assert payloads.array(view, 5).tolist() == values
    assert len(payloads.pieces[5]) == 1


def test_pieces_packed_and_not_are_joined_in_order() -> None:
    data = field(5, floats(1, 2)) + b"\x2d" + floats(3) + number(1, 1) + field(5, b"") + field(5, floats(4))
    rest, payloads, view = strip_blob(data)
    assert rest == number(1, 1)
    assert payloads.array(view, 5).tolist() == [1, 2, 3, 4]


def test_a_payload_field_of_another_wire_type_is_unknown_and_kept() -> None:
    data = number(5, 300) + b"\x29" + bytes(8)  # data as varint, data as fixed64
    rest, payloads, _ = strip_blob(data)
    assert rest == data
    assert payloads.count(5) == 0


def test_groups_are_passed_over_whole() -> None:
    group = b"\x0b" + field(3, b"abc") + b"\x1b\x1c" + b"\x0c"  # group 1 { field 3, group 3 {} }
    rest, payloads, view = strip_blob(group + field(5, floats(1)))
    assert rest == group
    assert payloads.array(view, 5).tolist() == [1]


def test_lengths_of_enclosing_messages_are_made_to_fit() -> None:
    net = field(1, b"net") + field(100, field(1, b"c") + field(7, field(5, floats(*range(100)))))
    view = mapped(net)
    stripped = wire.strip(view, 0, len(net), wire.NET, "f")
    assert stripped.rest == field(1, b"net") + field(100, field(1, b"c") + field(7, b""))
    assert np.array_equal(stripped.blobs[0].array(view, 5), np.arange(100, dtype=np.float32))


BROKEN = {
    "cut inside a value": (field(5, floats(1, 2))[:-3], "field 5 of 8 bytes, but 5 are left"),
    "cut inside a length": (b"\x2a\x80", "inside a number"),
    "a length of 2^60": (b"\x2a" + varint(2**60), "bytes, but 0 are left"),
    "a number without end": (b"\x08" + b"\xff" * 11, "more than ten bytes"),
    "field number 0": (b"\x02\x00", "field number 0"),
    "wire type 7": (b"\x0f", "wire type 7"),
    "a group that never ends": (b"\x0b" + number(1, 1), "inside a number"),
    "an end of no group": (b"\x0c", "wire type 4"),
    "groups too deep": (b"\x0b" * 200, "groups more than"),
    "half a float": (field(5, floats(1) + b"\x00\x00"), "6 bytes of 4-byte values"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_bytes_are_an_error_that_says_where(case: str) -> None:
    data, message = BROKEN[case]
    with pytest.raises(FormatError, match=message) as error:
        strip_blob(data)
    assert "f: byte" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_payload_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_REST_BYTES", 1000)
    with pytest.raises(FormatError, match="more than 1000 bytes that are not blob values"):
        strip_blob(field(1, bytes(2000)))


def test_pieces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_PIECES", 10)
    with pytest.raises(FormatError, match="more than 10 pieces"):
        strip_blob(field(5, floats(1)) * 11)
