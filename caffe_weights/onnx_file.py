"""The convolutions of an ONNX file: weights and biases as stored, in the order of the graph.

ONNX files are protobuf messages (onnx/onnx.proto of github.com/onnx/onnx, whose field numbers stand below);
they are walked as caffemodels are, over a memory map, so no onnx package is needed. Only float32 initialisers
that lie in the file itself are read, and of the graph only which of them a Conv node takes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np

from caffe_weights.errors import FormatError
from caffe_weights.mapped import MappedFile, open_mapped
from caffe_weights.wire import LEN, VARINT, Field, fields

GRAPH = 7  # of ModelProto
NODE, INITIALIZER = 1, 5  # of GraphProto
NODE_INPUT, NODE_NAME, NODE_TYPE = 1, 3, 4  # of NodeProto
DIMS, TYPE, FLOATS, NAME, RAW, LOCATION = 1, 2, 4, 8, 9, 14  # of TensorProto
FLOAT32 = 1
MOST_NAME_BYTES = 1 << 12


class Convolution(NamedTuple):
    """A Conv node: its name, and its blobs (out, in / group, kh, kw) and perhaps (out,), read-only."""

    name: str
    blobs: list[np.ndarray]


def read_convolutions(path: str | os.PathLike[str]) -> list[Convolution]:
    """The Conv nodes of an ONNX file in the order of its graph. FileError, FormatError."""
    where = os.fspath(path)
    data = open_mapped(path)
    tensors: dict[str, Field] = {}
    nodes: list[tuple[str, list[str]]] = []
    for item in _inside(data, _graph(data, where), where):
        if item.number == INITIALIZER and item.wire == LEN:
            tensors[_words(data, item, where).get(NAME, [""])[-1]] = item
        elif item.number == NODE and item.wire == LEN:
            words = _words(data, item, where)
            if words.get(NODE_TYPE) == ["Conv"]:
                nodes.append((words.get(NODE_NAME, [""])[-1], words.get(NODE_INPUT, [])))
    if not nodes:
        raise FormatError(where, "no convolution", "an ONNX file of a convolutional net")
    return [
        Convolution(name, [_tensor(data, tensors, blob, f"{where}: node {name}") for blob in inputs[1:]])
        for name, inputs in nodes
    ]


def _graph(data: MappedFile, where: str) -> Field:
    for item in fields(data, 0, len(data), where):
        if item.number == GRAPH and item.wire == LEN:
            return item
    raise FormatError(where, "no graph in it", "an ONNX file")


def _inside(data: MappedFile, item: Field, where: str) -> Iterator[Field]:
    return fields(data, item.start, item.end, where)


def _words(data: MappedFile, message: Field, where: str) -> dict[int, list[str]]:
    """The short texts of a message by field number."""
    found: dict[int, list[str]] = {}
    for item in _inside(data, message, where):
        if item.wire == LEN and item.end - item.start <= MOST_NAME_BYTES:
            text = data[item.start : item.end].decode("utf-8", errors="replace")
            found.setdefault(item.number, []).append(text)
    return found


def _tensor(data: MappedFile, tensors: dict[str, Field], name: str, where: str) -> np.ndarray:
    if name not in tensors:
        raise FormatError(where, f"{name!r} is no stored tensor", "weights in the file", "export it again")
    where, values = f"{where}: {name}", np.empty(0, "<f4")
    shape: list[int] = []
    for item in _inside(data, tensors[name], where):
        if item.number == DIMS:
            shape += _numbers(data, item)
        elif item.number == TYPE and _numbers(data, item) != [FLOAT32]:
            raise FormatError(where, f"data of type {_numbers(data, item)[0]}", "float32 (type 1)")
        elif item.number == LOCATION and _numbers(data, item) != [0]:
            raise FormatError(where, "values in another file", "values in this one", "export it so")
        elif item.number in (RAW, FLOATS) and item.wire == LEN:
            values = data.array(item.start, (item.end - item.start) // 4, "<f4")
    if values.size != prod(shape):
        raise FormatError(where, f"{values.size} values", f"{prod(shape)}, as its shape says")
    return values.reshape(shape)


def _numbers(data: MappedFile, item: Field) -> list[int]:
    """The varints of a field, packed or one alone."""
    start = item.start if item.wire == LEN else item.at + 1
    numbers, value, shift = [], 0, 0  # type: list[int], int, int
    for byte in data[start : item.end] if item.wire in (LEN, VARINT) else b"":
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    return numbers
