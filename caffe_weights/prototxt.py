"""Prototxt: text to NetParameter and SolverParameter and back.

Reading is protobuf's text format as `ReadProtoFromTextFile` (src/caffe/util/io.cpp, commit 9b891540) uses
it: a field of one value given twice, an unknown field and a missing required one are errors. The
library's errors are put in words here, with the names that were possible and, where a fork of Caffe
is known for the field, that fork.

Departures, all tried against a running Caffe: a file that is empty, binary or over `MAX_BYTES` is
refused; text inside quotes must be UTF-8, where Caffe takes any bytes, and a backslash with a question mark
is no escape there; a blank between '-' and a number is an error, and '+3' and '1_000' are not. Writing
prints what Caffe prints, other characters than ASCII as octal escapes, but floats always with the fewest
digits, from six on, that give the same float32: Caffe goes from six to nine at once and shows a mean of
104.00699 as 104.006989.
"""

from __future__ import annotations

import difflib
import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

from google.protobuf import text_encoding, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from caffe_weights import caffe_pb2
from caffe_weights.caffe_pb2 import NetParameter, SolverParameter
from caffe_weights.errors import PrototxtError
from caffe_weights.files import PathLike, open_input, replace_file
from caffe_weights.prototxt_hints import BINARY_FORMATS, FIELD_HINTS

MAX_BYTES = 4 << 20  # GoogLeNet has 30 KiB
MAX_BLOCKS = 100_000  # a block takes about 700 bytes of memory, however short its text

_TOKENS = re.compile(r"#[^\n]*|\"(?:\\.|[^\"\\\n])*\"?|'(?:\\.|[^'\\\n])*'?|[{}<>]")
_ESCAPES = "abfnrtvxuU01234567\\'\""  # what may follow a backslash; the library keeps any other pair as it is

_M = TypeVar("_M", NetParameter, SolverParameter)
_Rule = Callable[[re.Match[str], "_Place"], PrototxtError]


def read_net(path: PathLike) -> NetParameter:
    """The net in a prototxt file as written, not upgraded; FileError, or PrototxtError with the place."""
    return _read(path, NetParameter())


def parse_net(text: str, name: str = "<text>") -> NetParameter:
    """The net that `text` states; PrototxtError says `name:line:column`, counted from 1."""
    return _parse(text, NetParameter(), name)


def read_solver(path: PathLike) -> SolverParameter:
    """The solver in a prototxt file as written, not upgraded."""
    return _read(path, SolverParameter())


def parse_solver(text: str, name: str = "<text>") -> SolverParameter:
    """The solver that `text` states; errors as in `parse_net`."""
    return _parse(text, SolverParameter(), name)


def format_net(net: NetParameter) -> str:
    """The net as text, as Caffe prints it. Fields that the schema does not know have no text form."""
    return "".join(_lines(net, ""))


def format_solver(solver: SolverParameter) -> str:
    """The solver as text, as Caffe prints it."""
    return "".join(_lines(solver, ""))


def write_net(net: NetParameter, path: PathLike, force: bool = False) -> None:
    """Write a prototxt; an existing file is replaced only with `force`, else FileError."""
    with replace_file(path, force) as sibling:
        sibling.write_text(format_net(net), encoding="utf-8")


# ---- reading ----


def _read(path: PathLike, message: _M) -> _M:
    with open_input(path) as file:
        data = file.read(MAX_BYTES + 1)
    name = str(path)
    if data[4:9] == b"\0\0\0\0{":  # the length of a header of JSON, which may begin like a pickle
        raise PrototxtError(name, "this is a safetensors file, not text", "a prototxt")
    for start, kind in BINARY_FORMATS.items():
        if data.startswith(start):
            raise PrototxtError(name, f"this is {kind}, not text", "a prototxt")
    if re.search(rb"[\x00-\x08\x0e-\x1f]", data):
        raise PrototxtError(name, "binary data, not text", "a prototxt", "is it a caffemodel?")
    # bytes that are not UTF-8 may stand in comments; inside quotes the escapes fail to make a string
    text = data.decode("utf-8-sig", errors="backslashreplace")
    _parse(text, message, name)
    if not message.ListFields():
        raise PrototxtError(name, "the file holds no field", f"the text of a {message.DESCRIPTOR.name}")
    return message


def _parse(text: str, message: _M, name: str) -> _M:
    if len(text) > MAX_BYTES or text.count("{") + text.count("<") > MAX_BLOCKS:
        limits = f"at most {MAX_BYTES >> 20} MiB and {MAX_BLOCKS} blocks"
        raise PrototxtError(name, f"{len(text)} characters of text", limits, "keep weights in a caffemodel")
    _check_escapes(text, name)
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise _explain(error, _Place(text, name, error)) from None
    missing = cast(Any, message).FindInitializationErrors()
    if missing:
        raise PrototxtError(name, f"{missing[0]} is not given", "a value", "add the field")
    return message


def _check_escapes(text: str, name: str) -> None:
    for token in _TOKENS.finditer(text):
        for escape in re.finditer(r"\\(.)", token[0] if token[0][0] in "'\"" else ""):
            if escape[1] not in _ESCAPES:
                at = token.start() + escape.start()
                line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
                where = f"{name}:{line}:{column}"
                raise PrototxtError(where, f"found {escape[0]}", "valid escapes", r"write \\ for a backslash")


class _Place:
    """Where parsing stopped: line and column from 1, and what surrounds them."""

    def __init__(self, text: str, name: str, error: text_format.ParseError) -> None:
        self.name, self.text = name, text
        self.line, self.column = error.GetLine() or 1, error.GetColumn() or 1
        lines = text.split("\n")
        self.source = lines[self.line - 1] if self.line <= len(lines) else ""
        field = re.search(r"(\w+)\s*:\s*$", self.source[: self.column - 1])
        self.field = f" for '{field[1]}'" if field else ""

    def token(self) -> str:
        """The word, number, quoted text or sign at the place."""
        found = re.match(r"\s*(\"[^\"]*\"?|'[^']*'?|[\w.+-]+|\S)", self.source[self.column - 1 :])
        return _cut(found[1]) if found else "the end of the text"

    def error(self, found: str, wanted: str = "", do: str = "") -> PrototxtError:
        return PrototxtError(f"{self.name}:{self.line}:{self.column}", found, wanted, do)

    def unclosed(self) -> tuple[int, int] | None:
        """Line and column of the first '{' of the text that no '}' closes."""
        stack: list[int] = []
        for match in _TOKENS.finditer(self.text):
            if match[0] in "{<":
                stack.append(match.start())
            elif match[0] in "}>" and stack:
                stack.pop()
        if not stack:
            return None
        before = self.text[: stack[0]]
        return before.count("\n") + 1, stack[0] - before.rfind("\n")


def _explain(error: text_format.ParseError, place: _Place) -> PrototxtError:
    """The library's error in this project's words."""
    message = str(error)
    for pattern, rule in _RULES.items():
        match = re.search(pattern, message, re.DOTALL)
        if match:
            return rule(match, place)
    return place.error(_cut(re.sub(r"^\d+:\d+ : ", "", message).lower(), 200))


def _no_field(match: re.Match[str], place: _Place) -> PrototxtError:
    owner, name = _descriptor(match[1]), match[2]
    inside = [f.name for f in owner.fields if f.message_type and name in f.message_type.fields_by_name]
    do = FIELD_HINTS.get((owner.name, name), "")
    near = difflib.get_close_matches(name, owner.fields_by_name, n=4)
    unclosed = place.unclosed()
    if not do and unclosed:
        do = f"a '}}' may be missing: the '{{' at {unclosed[0]}:{unclosed[1]} is never closed"
    elif not do and inside and len(inside) < 5:
        do = f"put it inside {_any_of(inside)}"
    wanted = _any_of(near or [f.name for f in owner.fields])
    return place.error(f"no field '{_cut(name)}' in {owner.name}", wanted, do)


def _no_enum_value(match: re.Match[str], place: _Place) -> PrototxtError:
    values = _enum_values(match[1])
    near = difflib.get_close_matches(match[2].strip("'\"").upper(), values, n=4) if len(values) > 12 else []
    return place.error(f"no value {_cut(match[2])} in {match[1].split('.')[-1]}", _any_of(near or values))


def _not_ended(match: re.Match[str], place: _Place) -> PrototxtError:
    unclosed = place.unclosed()
    if unclosed is None:
        return _expected(match, place)
    place.line, place.column = unclosed
    return place.error("this '{' is never closed", "a '}' for it")


def _expected(match: re.Match[str], place: _Place) -> PrototxtError:
    wanted = match[1].replace('"', "'").replace("identifier or number", "the name of a field")
    do = "there is one '}' too many before here or at it" if place.token() == "}" else ""
    return place.error(f"found {place.token()}", f"{wanted}{place.field}", do)


def _bad_value(kind: str) -> _Rule:
    return lambda match, place: place.error(f"found {place.token()}", f"{kind}{place.field}")


def _twice(match: re.Match[str], place: _Place) -> PrototxtError:
    return place.error(f"'{match[2]}' is given a second time", f"one in a {_descriptor(match[1]).name}")


def _not_utf8(match: re.Match[str], place: _Place) -> PrototxtError:
    return place.error("the text in quotes before this is not UTF-8", "UTF-8", "save the file as UTF-8")


def _extension(match: re.Match[str], place: _Place) -> PrototxtError:
    return place.error("a name in brackets", "the name of a field", "nets have no extensions")


_RULES: dict[str, _Rule] = {
    r'Message type "([\w.]+)" has no field named "([^"]*)"': _no_field,
    r'Enum type "([\w.]+)" has no value (?:named|with number) (.*)\.$': _no_enum_value,
    r'Message type "([\w.]+)" should not have multiple "(\w+)" fields': _twice,
    r"does not have extensions": _extension,
    r"Expected string but found": _bad_value("text in quotes"),
    r"String missing ending quote": _bad_value("a quote at the end of the text, on the same line"),
    r"Couldn't parse string": _not_utf8,
    r"codec can't": _bad_value("valid escapes"),
    r"Couldn't parse integer": _bad_value("an integer"),
    r"Value out of range": _bad_value("a number that fits the field (most take 0 and above)"),
    r"Couldn't parse float|octal float": _bad_value("a decimal number"),
    r'Expected ("true" or "false")': _expected,
    r'Expected ("}"|">")': _not_ended,
    r'Expected ("[^"]*"|identifier or number|identifier|[a-z ]+)': _expected,
}


def _descriptor(full_name: str) -> Descriptor:
    return caffe_pb2.DESCRIPTOR.pool.FindMessageTypeByName(full_name)


def _enum_values(full_name: str) -> list[str]:
    return [value.name for value in caffe_pb2.DESCRIPTOR.pool.FindEnumTypeByName(full_name).values]


def _any_of(names: Sequence[str]) -> str:
    if len(names) > 20:
        return f"one of {', '.join(names[:6])}, ... ({len(names)} names)"
    return f"one of {', '.join(names)}" if len(names) > 1 else names[0]


def _cut(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


# ---- writing ----


def _lines(message: Message, indent: str) -> Iterator[str]:
    for field, value in message.ListFields():
        for one in value if field.is_repeated else [value]:
            if field.message_type:
                yield f"{indent}{field.name} {{\n"
                yield from _lines(one, indent + "  ")
                yield f"{indent}}}\n"
            else:
                yield f"{indent}{field.name}: {_value(field, one)}\n"


def _value(field: FieldDescriptor, value: Any) -> str:
    if field.enum_type:
        known = field.enum_type.values_by_number.get(value)
        return str(known.name if known else value)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return _float(value, single=field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return f'"{text_encoding.CEscape(value, as_utf8=False)}"'
    return str(value).lower()  # integers, true, false


def _float(value: float, single: bool) -> str:
    """Fewest digits, from 6 (float32) or 15 (float64) on, that give the same value."""
    if not math.isfinite(value):
        return str(value)
    for digits in range(6, 10) if single else range(15, 18):
        text = f"{value:.{digits}g}"
        if _as_float32(text) == value if single else float(text) == value:
            break
    return text


def _as_float32(text: str) -> float:
    """Rounded to float32, overflow to infinity, as the parser does it."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", float(text)))[0])
    except OverflowError:
        return math.inf
