"""Weights in and out, in any of the five formats.

The extension says the format and the first bytes must agree: BVLC Caffe itself tells HDF5 from protobuf
by its magic, but a file under a wrong name has been loaded silently wrong before (BVLC/caffe#5371).

A caffemodel read and written again is byte-identical. Written from another format it needs the layer
types, so a net; a model that has a net can be written with another one, matched by layer name.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from caffe_weights.caffe_pb2 import LayerParameter, NetParameter, ParamSpec
from caffe_weights.caffemodel import (
    CaffeModel,
    LayerRecord,
    check_all_text,
    read_caffemodel,
    write_model,
    write_net,
)
from caffe_weights.dialects import AUTO
from caffe_weights.errors import FileError, FormatError, WeightsError
from caffe_weights.files import PathLike, open_input, replace_file
from caffe_weights.mapped import CAFFE_MOST_BYTES
from caffe_weights.safetensors_file import read_safetensors, write_safetensors
from caffe_weights.torch_file import read_torch, write_torch
from caffe_weights.torchvision import convert_vgg16, is_vgg16
from caffe_weights.upgrade import upgrade_net
from caffe_weights.weights import Weights, from_tensors, is_absent, to_tensors
from caffe_weights.zipped import BROKEN_ZIP, read_npz, write_npz

# Extension -> format. The longest that fits counts.
EXTENSIONS = {
    ".caffemodel": "caffemodel",
    ".caffemodel.gz": "caffemodel",
    ".caffemodel.h5": "hdf5",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".safetensors": "safetensors",
    ".pt": "torch",
    ".pth": "torch",
    ".npz": "npz",
}
_MAGIC = {b"\x89HDF\r\n\x1a\n": "hdf5", b"\x1f\x8b": "caffemodel", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip"}
_TITLES = {
    "caffemodel": "a caffemodel",
    "hdf5": "an HDF5 file",
    "safetensors": "a safetensors file",
    "torch": "a torch checkpoint",
    "npz": "an .npz file",
    "zip": "a zip file",
    "text": "a text file, perhaps a prototxt",
    "pickle": "a pickle",
}


def read_weights(path: PathLike, dialect: str = AUTO) -> Weights:
    """All blobs of a weight file by layer name; views of the file where the format allows.

    `dialect` is that of a caffemodel, as in `read_caffemodel`.
    FileError, FormatError or WeightsError (one line) where the file is missing, of another format than its
    extension says, damaged, or holds no parameters.
    """
    open_input(path).close()  # a missing file is told before the extension of its name
    kind = format_of(path)
    check_magic(path, kind)
    weights = from_model(read_caffemodel(path, dialect)) if kind == "caffemodel" else _READERS[kind](path)
    if not weights:
        raise WeightsError(
            str(path), "no parameters", "at least one blob", "the file is cut off or only a net"
        )
    return weights


def write_weights(
    weights: Weights, path: PathLike, net: NetParameter | None = None, force: bool = False
) -> None:
    """Write `weights` to `path` in the format of its extension, whole or not at all.

    `net` (V2) gives the layer types a `.caffemodel` needs when the weights bring none, or others than theirs.
    WeightsError where the format cannot hold them; FileError where the output exists or cannot be written.
    """
    kind = format_of(path)
    if str(path).endswith(".gz"):
        raise FileError(str(path), "a compressed output", "a plain .caffemodel", "compress it afterwards")
    checked = _checked(weights if net is None else with_shared(weights, net))
    cut = [name for name in checked if "\0" in name and kind in ("hdf5", "npz")]
    if cut:
        where = f"{path}: layer {cut[0]!r}"
        raise WeightsError(where, "a name with a zero byte, where this format ends it", do="choose another")
    with replace_file(path, force) as temporary:
        if kind == "hdf5":
            from caffe_weights.hdf5 import write_hdf5  # h5py is a tenth of the start of `fcn inspect`

            write_hdf5(checked, temporary, str(path))
            return
        # Not "wb": ext4 puts a file on the disk when it is closed if it was truncated, even from nothing.
        with open(temporary, "r+b", buffering=0) as out:
            if kind == "caffemodel":
                _write_caffemodel(checked, out, net, str(path))
            else:
                _WRITERS[kind](to_tensors(checked), out)


def format_of(path: PathLike) -> str:
    """The format that the extension says. FormatError when it says none."""
    name = Path(path).name.lower()
    for extension in sorted(EXTENSIONS, key=len, reverse=True):
        if name.endswith(extension):
            return EXTENSIONS[extension]
    raise FormatError(str(path), "an extension of no weight format", ", ".join(EXTENSIONS), "rename it")


def sniff(path: PathLike) -> str | None:
    """The format the first bytes say: a value of `EXTENSIONS`, 'zip', 'text' or 'pickle'; None if none."""
    with open_input(path) as file:
        head = file.read(512)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return _zip_kind(path) if kind == "zip" else kind
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "pickle"
    if head and not head.strip(bytes(range(32, 127)) + b"\t\n\r") and b"{" in head:
        return "text"
    return None


def check_magic(path: PathLike, kind: str) -> None:
    """FormatError when the first bytes say another format than `kind`, with the name it should have."""
    found = sniff(path)
    agree = {"torch": ("torch", "pickle"), "caffemodel": ("caffemodel", None)}.get(kind, (kind,))
    if found in agree:
        return
    right = next((extension for extension, name in EXTENSIONS.items() if name == found), None)
    raise FormatError(
        str(path),
        f"{_TITLES[found]} under the name of {_TITLES[kind]}"
        if found
        else f"not {_TITLES[kind]}: wrong first bytes",
        _TITLES[kind],
        f"rename it to end in {right}" if right else "give a weight file",
    )


def _zip_kind(path: PathLike) -> str:
    try:
        with open_input(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except BROKEN_ZIP:
        return "zip"
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    return "npz" if all(name.endswith(".npy") for name in names) else "zip"


def from_model(model: CaffeModel) -> Weights:
    """The blobs of a caffemodel by layer name. FormatError where two layers with blobs share a name."""
    blobs: dict[str, tuple[np.ndarray, ...]] = {}
    for layer in model.parameter_layers:
        if layer.name in blobs:
            where = f"{model.path}: layer {layer.name!r}"
            raise FormatError(where, "two layers of this name with parameters", "one", "rename one of them")
        blobs[layer.name] = layer.blobs
    return Weights(blobs, lambda: _definition(model), model.path, model)


def _definition(model: CaffeModel) -> NetParameter:
    check_all_text(model.net, model.path)
    return upgrade_net(model.net)


def _read_hdf5(path: PathLike) -> Weights:
    from caffe_weights.hdf5 import read_hdf5

    groups = read_hdf5(path)  # Caffe writes one for every layer, also where it has no blobs
    return Weights({name: blobs for name, blobs in groups.items() if blobs}, source=str(path))


def _read_tensors(read: Callable[[PathLike], Mapping[str, np.ndarray]]) -> Callable[[PathLike], Weights]:
    def reader(path: PathLike) -> Weights:
        tensors = {key: _native(array, f"{path}: tensor {key!r}") for key, array in read(path).items()}
        if is_vgg16(tensors):
            return convert_vgg16(tensors, str(path))
        return from_tensors(tensors, str(path))

    return reader


def _checked(weights: Weights) -> Weights:
    """The same weights as native float32 or float64; half precision is widened, which is exact."""
    checked = weights.copy()
    for name, blobs in weights.items():
        for index, array in enumerate(blobs):
            native = _native(array, f"blob {index} of layer {name!r}")
            wide = np.float64 if native.dtype.itemsize == 8 else np.float32
            checked[name][index] = native.astype(wide, copy=False)
    return checked


def _native(array: np.ndarray, where: str) -> np.ndarray:
    """The same values in this machine's byte order. WeightsError unless floats of 2, 4 or 8 bytes."""
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
        raise WeightsError(where, f"values of {array.dtype}", "float32 or float64", "convert it first")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _write_caffemodel(weights: Weights, out: IO[bytes], net: NetParameter | None, path: str) -> None:
    if weights.nbytes > CAFFE_MOST_BYTES - _room_for_the_rest(weights):
        raise WeightsError(path, f"{weights.nbytes} bytes of values", f"less than {CAFFE_MOST_BYTES}",
                           "choose another format; Caffe reads no larger caffemodel")  # fmt: skip
    if net is None and weights.model is not None:
        _check_names(weights, {layer.name for layer in weights.model.layers}, weights.model.path)
        write_model(weights.model, _blobs_once(weights, weights.model), out)
        return
    net = net if net is not None else weights.net
    if net is None:
        found = f"weights without layer types, from {weights.source or 'memory'}"
        raise WeightsError(path, found, "a net", "pass its prototxt with --net")
    _check_names(weights, {layer.name for layer in net.layer}, "the net")
    absent = next((name for name, blobs in weights.items() if any(map(is_absent, blobs))), None)
    if absent is not None:
        do = "pass the prototxt that says with whom, with --net"
        raise WeightsError(f"layer {absent!r}", "a shared blob that its owner keeps", "all blobs", do)
    write_net(net, lambda name: weights.get(name, []), out)


def with_shared(weights: Weights, net: NetParameter) -> Weights:
    """The same weights with the blobs that only their owner keeps (an HDF5 model) filled in by `net`'s names.

    WeightsError for a blob shared PERMISSIVE: the owner's shape may be another.
    """
    complete = weights.copy()
    owners: dict[str, np.ndarray] = {}
    for layer in net.layer:
        blobs = complete.get(layer.name, [])
        names = [spec.name for spec in layer.param]
        if not blobs and names and all(name in owners for name in names):
            blobs = complete[layer.name] = [owners[name] for name in names]
        for index, name in enumerate(names[: len(blobs)]):
            if name and not is_absent(blobs[index]) and blobs[index] is not owners.get(name):
                owners.setdefault(name, blobs[index])
            elif name in owners:
                _check_strict(layer, index)
                blobs[index] = owners[name]
    return complete


def _check_strict(layer: LayerParameter, index: int) -> None:
    if layer.param[index].share_mode == ParamSpec.PERMISSIVE:
        do = "convert from the .caffemodel, which keeps it with every user"
        raise WeightsError(
            f"layer {layer.name!r}", "a blob shared PERMISSIVE, kept in the shape of its owner", do=do
        )


def _room_for_the_rest(weights: Weights) -> int:
    """Room for all that is not values in a caffemodel, generously."""
    return (1 << 20) + 256 * len(weights)


def _blobs_once(weights: Weights, model: CaffeModel) -> Callable[[LayerRecord], list[np.ndarray]]:
    """The blobs of each layer; where several share a name, the one that had blobs gets them."""
    owners: dict[str, LayerRecord] = {}
    for layer in model.layers:
        if layer.name not in owners or (layer.blobs and not owners[layer.name].blobs):
            owners[layer.name] = layer
    return lambda layer: weights.get(layer.name, []) if owners[layer.name] is layer else []


def _check_names(weights: Weights, known: set[str], where: str) -> None:
    unknown = [name for name in weights if name not in known]
    if unknown:
        names = ", ".join(map(repr, unknown[:5]))
        do = "pass the net they belong to with --net, or drop them"
        raise WeightsError(where, f"no layer {names}", "every layer that has weights", do)


_READERS: dict[str, Callable[[PathLike], Weights]] = {
    "hdf5": _read_hdf5,
    "safetensors": _read_tensors(read_safetensors),
    "torch": _read_tensors(read_torch),
    "npz": _read_tensors(read_npz),
}
_WRITERS: dict[str, Callable[[Mapping[str, np.ndarray], IO[bytes]], None]] = {
    "safetensors": write_safetensors,
    "torch": write_torch,
    "npz": write_npz,
}
