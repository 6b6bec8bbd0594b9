"""Caffe's binary nets: read over a memory map, written as a stream.

Reading follows `Net::CopyTrainedLayersFrom` and `Blob::FromProto` (net.cpp, blob.cpp at 9b891540): a blob's
sizes are its `shape`, or the four legacy fields when any of them is set; `double_data` wins over `data`
when it is not empty; the number of values must be the product of the sizes. Nets of every generation are
read (V2 `layer`, V1 `layers`, V0 inside V1), plain or gzipped, packed or not.

A legacy blob has four sizes, whatever it holds: a bias is 1 x 1 x 1 x N. Where the layer's type tells the
natural rank, the leading ones are dropped, as Caffe's right-aligned comparison of shapes would.

Writing puts fields in the order of their numbers, as Caffe does. A layer whose blobs are the ones that
were read is written as the bytes that were read, so an unchanged model is byte-identical, also where
protobuf would write it otherwise (an unknown enum value, unpacked values, fields out of order).

A file of a fork is read and written in its dialect (`caffe_weights.dialects`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage

from caffe_weights import dialects, wire
from caffe_weights.caffe_pb2 import BlobProto, LayerParameter, NetParameter, V1LayerParameter
from caffe_weights.dialects import AUTO, Dialect
from caffe_weights.errors import FormatError
from caffe_weights.mapped import CAFFE_MOST_BYTES, MappedFile, open_mapped, write_array, write_bytes

DATA, DIFF, DOUBLE_DATA = 5, 6, 8  # fields of BlobProto
MOST_AXES = 32  # blob.hpp: kMaxBlobAxes
Message = LayerParameter | V1LayerParameter

# Ranks of the blobs of a layer, by its type in each generation; for legacy four-size blobs only.
_RANKS: dict[str, tuple[int, ...]] = {
    "Convolution": (4, 1), "CONVOLUTION": (4, 1), "conv": (4, 1),
    "Deconvolution": (4, 1), "DECONVOLUTION": (4, 1),
    "InnerProduct": (2, 1), "INNER_PRODUCT": (2, 1), "innerproduct": (2, 1),
    "Embed": (2, 1), "PReLU": (1,), "Scale": (1, 1), "Bias": (1,), "BatchNorm": (1, 1, 1),
}  # fmt: skip


@dataclass(frozen=True)
class LayerRecord:
    """One layer of a file: `message` holds its settings and, in `blobs`, shapes without values."""

    name: str
    type: str
    message: Message
    blobs: tuple[np.ndarray, ...]
    start: int  # of its tag
    end: int


@dataclass(frozen=True)
class CaffeModel:
    """A net as it stands in a file. `net` is of the file's generation; its blobs hold no values.

    `dialect` is that of the fork that wrote it, None for BVLC Caffe.
    """

    path: str
    mapped: MappedFile
    net: NetParameter
    layers: tuple[LayerRecord, ...]
    dialect: Dialect | None = None

    @property
    def parameter_layers(self) -> list[LayerRecord]:
        """The layers that hold blobs, in file order."""
        return [layer for layer in self.layers if layer.blobs]


def read_caffemodel(path: str | os.PathLike[str], dialect: str = AUTO) -> CaffeModel:
    """Map and index a `.caffemodel` or `.caffemodel.gz`. Blobs are read-only views, float32 or float64.

    `dialect` is found, or a name that the file has to fit: "bvlc" or one of `caffe_weights.dialects`.
    FormatError where it does not, the bytes are no net, a blob's shape does not match its values, or no layer
    is left.
    """
    mapped = open_mapped(path)
    where = str(path)
    stripped = wire.strip(mapped, 0, len(mapped), wire.NET, where)
    net, found = _parse_net(stripped.rest, dialect, where)
    spans = [
        item
        for item in wire.fields(mapped, 0, len(mapped), where)
        if item.wire == wire.LEN and item.number in (100, 2)
    ]
    messages = _in_file_order(net, spans)
    payloads = iter(stripped.blobs)
    layers = tuple(
        _record(mapped, message, [next(payloads) for _ in _blob_protos(message)], span, where)
        for message, span in zip(messages, spans, strict=True)
    )
    return CaffeModel(where, mapped, net, layers, found)


def write_model(
    model: CaffeModel, blobs_of: Callable[[LayerRecord], Sequence[np.ndarray]], out: IO[bytes]
) -> None:
    """Write `model` with the blobs that `blobs_of` gives each layer to the unbuffered file `out`."""
    whole = memoryview(model.mapped)
    at = 0
    for layer in model.layers:
        blobs = blobs_of(layer)
        write_bytes(whole[at : layer.start], out)
        at = layer.start
        if len(blobs) != len(layer.blobs) or any(a is not b for a, b in zip(blobs, layer.blobs, strict=True)):
            _write_layer(layer.message, blobs, out, model.dialect)
            at = layer.end
    write_bytes(whole[at:], out)


def write_net(net: NetParameter, blobs_of: Callable[[str], Sequence[np.ndarray]], out: IO[bytes]) -> None:
    """Write a V2 `net` with the blobs that `blobs_of` gives for each layer name to `out`, unbuffered.

    Layers of forks are written in the dialect of one that has them all. FormatError if there is none.
    """
    dialect = dialects.dialect_for(net, f"net {net.name}")
    head = NetParameter()
    head.CopyFrom(net)
    del head.layer[:]
    out.write(head.SerializeToString(deterministic=True))
    for layer in net.layer:
        _write_layer(layer, blobs_of(layer.name), out, dialect)


def blob_proto_array(blob: BlobProto, payloads: wire.Payloads, mapped: MappedFile, where: str) -> np.ndarray:
    """The values of a BlobProto in its own shape. FormatError when their number does not match it."""
    number = DOUBLE_DATA if payloads.count(DOUBLE_DATA) else DATA
    shape = blob_shape(blob, where)
    count = payloads.count(number)
    if math.prod(shape) != count:
        sizes = " x ".join(map(str, shape)) or "()"
        raise FormatError(where, f"shape {sizes} with {count} values", f"{math.prod(shape)} values",
                          "the file is damaged")  # fmt: skip
    return payloads.array(mapped, number).reshape(shape)


def blob_shape(blob: BlobProto, where: str) -> tuple[int, ...]:
    """The sizes a BlobProto declares, four for a legacy one. FormatError for impossible sizes."""
    shape = (blob.num, blob.channels, blob.height, blob.width) if is_legacy(blob) else tuple(blob.shape.dim)
    if len(shape) > MOST_AXES:
        raise FormatError(
            where, f"a blob of {len(shape)} axes", f"at most {MOST_AXES}", "the file is damaged"
        )
    if any(size < 0 for size in shape) or math.prod(shape) > CAFFE_MOST_BYTES:
        sizes = " x ".join(map(str, shape))
        raise FormatError(where, f"shape {sizes}", "sizes Caffe can hold", "the file is damaged")
    return shape


def is_legacy(blob: BlobProto) -> bool:
    """Whether the sizes are the four fields of before 2014."""
    return any(blob.HasField(name) for name in ("num", "channels", "height", "width"))


def _parse_net(rest: bytes, wanted: str, where: str) -> tuple[NetParameter, Dialect | None]:
    net = _decode(rest, where)
    dialect = dialects.choose(net, rest, wanted, where)
    if dialect is not None:
        net = _decode(dialect.read(rest), where)
    if not net.layer and not net.layers:
        raise FormatError(where, "no layers", "a net with layers", "the file is cut off or of another kind")
    if net.layer and net.layers:
        raise FormatError(where, "layers of both generations, `layer` and `layers`", "one of them")
    return net, dialect


def _decode(rest: bytes, where: str) -> NetParameter:
    try:
        return NetParameter.FromString(rest)
    except (DecodeError, UnicodeDecodeError, ValueError) as error:
        raise FormatError(
            where, f"no caffemodel ({error})", "a NetParameter", "the file is damaged"
        ) from None


def _in_file_order(net: NetParameter, spans: list[wire.Field]) -> list[Message]:
    new, old = iter(net.layer), iter(net.layers)
    return [next(new) if span.number == 100 else next(old) for span in spans]


def _blob_protos(message: Message) -> list[BlobProto]:
    """The blobs of a layer in the order of the walk: a V0 layer's own are in the layer it wraps."""
    if isinstance(message, V1LayerParameter) and message.HasField("layer"):
        return [*message.layer.blobs, *message.blobs]
    return list(message.blobs)


def _record(
    mapped: MappedFile, message: Message, payloads: list[wire.Payloads], span: wire.Field, path: str
) -> LayerRecord:
    name, kind = layer_identity(message, path)
    if isinstance(message, V1LayerParameter) and message.blobs and message.layer.blobs:
        raise FormatError(f"{path}: layer {name!r}", "blobs of both generations", "one of them")
    blobs = []
    for index, (blob, payload) in enumerate(zip(_blob_protos(message), payloads, strict=True)):
        where = f"{path}: blob {index} of layer {name!r}"
        array = blob_proto_array(blob, payload, mapped, where)
        blobs.append(_natural(array, kind, index) if is_legacy(blob) else array)
    return LayerRecord(name, kind, message, tuple(blobs), span.at, span.end)


def layer_identity(message: Message, path: str = "") -> tuple[str, str]:
    """Name and type of a layer of any generation; the type is spelled as that generation does."""
    if isinstance(message, V1LayerParameter) and message.HasField("layer"):
        name, kind = message.layer.name, message.layer.type
    elif isinstance(message, V1LayerParameter):
        name, kind = message.name, V1LayerParameter.LayerType.Name(message.type)
    else:
        name, kind = message.name, message.type
    check_text(name, path)
    check_text(kind, path)
    return name, kind


def check_text(value: object, path: str) -> None:
    """FormatError where protobuf gave a string back as bytes, since they are no UTF-8."""
    if isinstance(value, bytes):
        raise FormatError(path, f"a name that is no text, {value[:20]!r}", "UTF-8", "the file is damaged")


def check_all_text(message: ProtobufMessage, path: str) -> None:
    """`check_text` for every string in a message."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            for text in value if field.is_repeated else [value]:
                check_text(text, path)
        elif field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                check_all_text(inner, path)


def _natural(array: np.ndarray, kind: str, index: int) -> np.ndarray:
    ranks = _RANKS.get(kind, ())
    drop = 4 - ranks[index] if index < len(ranks) else 0
    return array.reshape(array.shape[drop:]) if all(size == 1 for size in array.shape[:drop]) else array


class EncodedBlob(NamedTuple):
    """A blob as a field of its layer: `head`, then the values, then `tail`."""

    head: bytes
    array: np.ndarray
    tail: bytes

    @property
    def size(self) -> int:
        return len(self.head) + self.array.nbytes + len(self.tail)

    def write(self, out: IO[bytes]) -> None:
        """Append all of it to the unbuffered file `out`."""
        out.write(self.head)
        write_array(self.array, out)
        out.write(self.tail)


def _write_layer(
    message: Message, blobs: Sequence[np.ndarray], out: IO[bytes], dialect: Dialect | None
) -> None:
    """Write one layer: its settings with the blobs between them, where their field number belongs."""
    four_sizes = dialect is not None and dialect.four_sizes
    tag = wire.encode_tag(100 if isinstance(message, LayerParameter) else 2, wire.LEN)
    encoded = [encode_blob(array, _blob_field(message), four_sizes) for array in blobs]
    before, after = _around_blobs(message, sum(blob.size for blob in encoded), dialect)
    total = len(before) + sum(blob.size for blob in encoded) + len(after)
    out.write(tag + wire.encode_varint(total) + before)
    for blob in encoded:
        blob.write(out)
    out.write(after)


def _blob_field(message: Message) -> int:
    if isinstance(message, LayerParameter):
        return 7
    return 50 if message.HasField("layer") else 6


def encode_blob(array: np.ndarray, number: int, four_sizes: bool = False) -> EncodedBlob:
    """A BlobProto of today's form around the values: data (5), shape (7), double_data (8).

    With `four_sizes` that of before 2014: num, channels, height, width (1 to 4), data (5) as float32.
    """
    if four_sizes and array.ndim <= 4:
        return _encode_old_blob(array.astype(np.float32, copy=False), number)
    payload = DOUBLE_DATA if array.dtype == np.float64 else DATA
    values = wire.encode_tag(payload, wire.LEN) + wire.encode_varint(array.nbytes) if array.size else b""
    declared = BlobProto()
    declared.shape.dim.extend(array.shape)
    shape = declared.SerializeToString()
    head, tail = (shape + values, b"") if payload == DOUBLE_DATA else (values, shape)
    size = len(head) + array.nbytes + len(tail)
    return EncodedBlob(wire.encode_tag(number, wire.LEN) + wire.encode_varint(size) + head, array, tail)


def _encode_old_blob(array: np.ndarray, number: int) -> EncodedBlob:
    num, channels, height, width = (1,) * (4 - array.ndim) + array.shape
    sizes = BlobProto(num=num, channels=channels, height=height, width=width).SerializeToString()
    head = sizes + wire.encode_tag(DATA, wire.LEN) + wire.encode_varint(array.nbytes)
    size = len(head) + array.nbytes
    return EncodedBlob(wire.encode_tag(number, wire.LEN) + wire.encode_varint(size) + head, array, b"")


def _around_blobs(message: Message, blobs_size: int, dialect: Dialect | None) -> tuple[bytes, bytes]:
    """The encoded layer without blobs, cut where its blobs, `blobs_size` bytes in all, belong."""
    bare = type(message)()
    bare.CopyFrom(message)  # type: ignore[arg-type]
    bare.ClearField("blobs")
    if not (isinstance(bare, V1LayerParameter) and bare.HasField("layer")):
        version = 1 if isinstance(bare, V1LayerParameter) else 2
        encoded = dialects.to_file(bare.SerializeToString(deterministic=True), version, dialect)
        return _split_at(encoded, _blob_field(message))
    bare.layer.ClearField("blobs")
    before, after = _split_at(bare.layer.SerializeToString(deterministic=True), 50)
    bare.ClearField("layer")
    wrapped = wire.encode_tag(1, wire.LEN) + wire.encode_varint(len(before) + blobs_size + len(after))
    return wrapped + before, after + bare.SerializeToString(deterministic=True)


def _split_at(encoded: bytes, number: int) -> tuple[bytes, bytes]:
    """Cut an encoded message in front of the first field with a greater number."""
    for item in wire.fields(encoded, 0, len(encoded), "a layer"):
        if item.number > number:
            return encoded[: item.at], encoded[item.at :]
    return encoded, b""
