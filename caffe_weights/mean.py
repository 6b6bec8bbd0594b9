"""Mean images: a `.binaryproto` is one BlobProto (io.cpp `ReadProtoFromBinaryFile`; data_transformer.cpp)."""

from __future__ import annotations

import os

import numpy as np
from google.protobuf.message import DecodeError

from caffe_weights import wire
from caffe_weights.caffe_pb2 import BlobProto
from caffe_weights.caffemodel import blob_proto_array
from caffe_weights.errors import FormatError
from caffe_weights.mapped import open_mapped


def read_mean(path: str | os.PathLike[str]) -> np.ndarray:
    """The mean image of a `.binaryproto`: float32 (C, H, W), channels as stored (Caffe's are BGR)."""
    where = str(path)
    mapped = open_mapped(path)
    stripped = wire.strip(mapped, 0, len(mapped), wire.BLOB, where)
    try:
        blob = BlobProto.FromString(stripped.rest)
    except DecodeError as error:
        raise FormatError(where, f"no binaryproto ({error})", "a BlobProto") from None
    array = blob_proto_array(blob, stripped.blobs[0], mapped, where)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or not array.size:
        sizes = " x ".join(map(str, array.shape))
        raise FormatError(where, f"a blob of {sizes or 'no axes'}", "one image, C x H x W")
    return array.astype(np.float32)
