"""What a net or weight file holds, found without torch and without reading the values.

`fcn inspect` prints it. `scan` does read the values, a piece at a time, for the three things that are wrong
in broken models people pass around: NaN, infinities, and up-sampling or convolution weights that are all
zero, which is what Caffe leaves where a filler was forgotten (its default is constant 0) or where the
up-sampling weights were never set by surgery.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caffe_weights.caffe_pb2 import LayerParameter, NetParameter
from caffe_weights.errors import InputError, NetError, PrototxtError, UpgradeError, WeightsError

if TYPE_CHECKING:
    import numpy as np

    from caffe_weights.weights import Weights

TEXT_EXTENSIONS = (".prototxt", ".pbtxt", ".prototext", ".txt")
CHUNK_VALUES = 1 << 20
FILTER_TYPES = ("Convolution", "Deconvolution")
NOT_RUN = frozenset({"Python"})  # known layer types that the runtime never executes

CROP_NOTE = (
    "has no crop_param: BVLC Caffe takes offset 0, the older fork that early FCN and HED prototxts were"
    " written for aligns automatically; pass --crop auto to run, segment and classify if this net is one of"
    " those"
)
SKIP_NOTE = (
    "pools with a stride above its kernel: some pixels are never seen, and windows outside the picture give"
    " -FLT_MAX (MAX) or NaN (AVE), as in Caffe"
)

BN_NOTE = (
    "and others like it have 4 blobs (slope, bias, mean, variance), as in the PSPNet fork: not the BN of 2"
    " blobs (scale, shift) that is run here"
)


@dataclass
class LayerRow:
    """One layer: its blobs by name, shapes of its tops where known, its parameters in Caffe's order."""

    name: str
    type: str
    bottoms: list[str] = field(default_factory=list)
    tops: list[str] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    parameters: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)

    @property
    def parameter_count(self) -> int:
        """Number of values in all parameters."""
        return sum(map(prod, self.parameters))


@dataclass
class Inspection:
    """What was found in one file. `problems` make `--check` fail; `notes` are worth knowing."""

    file: str
    kind: str  # net, solver, weights, mean
    format: str
    bytes: int
    net_name: str = ""
    layers: list[LayerRow] = field(default_factory=list)
    parameter_count: int | None = None
    parameter_bytes: int | None = None
    unknown_types: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    checked: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with each layer's parameter_count."""
        rows = [{**asdict(row), "parameter_count": row.parameter_count} for row in self.layers]
        return {**asdict(self), "layers": rows}


def inspect_file(path: str, check: bool = False, dialect: str = "auto") -> Inspection:
    """List a prototxt (net or solver), a weight file or a mean image; InputError where it is none.

    `dialect` is that of a caffemodel, found or given.
    """
    from caffe_weights.files import open_input

    with open_input(path) as stream:
        size = os.fstat(stream.fileno()).st_size
    name = Path(path).name.lower()
    if name.endswith(".binaryproto"):
        found = _inspect_mean(path, size)
    elif name.endswith(TEXT_EXTENSIONS) or _is_text(path):
        found = _inspect_text(path, size)
    else:
        found = _inspect_weights(path, size, check, dialect)
    found.checked = check
    return found


def scan(blobs: Mapping[str, Sequence[np.ndarray]], types: Mapping[str, str]) -> list[str]:
    """Problems in the values, one line each: NaN, infinities, all-zero filters.

    Blob 0 of a Convolution or Deconvolution counts as a filter, and any blob 0 of three or more axes where
    `types` does not say what the layer is.
    """
    problems = []
    for name, arrays in blobs.items():
        for index, array in enumerate(arrays):
            nans, infinities, zero = _scan_blob(array)
            where = f"layer {name!r}, blob {index} of shape {_dims(array.shape)}"
            problems += [f"{where}: {nans} NaN"] if nans else []
            problems += [f"{where}: {infinities} infinite"] if infinities else []
            kind = types.get(name, "")
            if zero and index == 0 and (kind in FILTER_TYPES or (not kind and array.ndim > 2)):
                what = "up-sampling weights" if kind == "Deconvolution" else "convolution weights"
                problems.append(f"{where}: all {what} are zero")
    return problems


def net_notes(layers: Iterable[LayerParameter]) -> list[str]:
    """What one should know about a V2 net before running it."""
    notes = []
    for layer in layers:
        if layer.type == "Crop" and not layer.HasField("crop_param"):
            notes.append(f"layer {layer.name!r} {CROP_NOTE}")
        if layer.type == "Python":
            called = f"{layer.python_param.module}.{layer.python_param.layer}"
            notes.append(f"layer {layer.name!r} is Python code ({called}), which is never run here")
        if layer.type == "Pooling" and _strides_over(layer):
            notes.append(f"layer {layer.name!r} {SKIP_NOTE}")
    dense = [layer.name for layer in layers if layer.type == "InnerProduct"]
    if dense:
        notes.append(f"fully connected ({', '.join(dense)}): takes one input size only;"
                     " convert-weights --convolutional lifts that")  # fmt: skip
    return notes


def unknown_types(layers: Iterable[LayerParameter]) -> list[str]:
    """Types of V2 layers that the runtime cannot execute, sorted. Python layers that bring data in can go."""
    from surgery.shapes import known_types

    known = known_types()
    return sorted({x.type for x in layers if x.type not in known or (x.type in NOT_RUN and x.bottom)})


def _is_text(path: str) -> bool:
    from caffe_weights.export import sniff

    return sniff(path) == "text"


def _inspect_text(path: str, size: int) -> Inspection:
    from caffe_weights.prototxt import read_net, read_solver
    from caffe_weights.upgrade import net_version, upgrade_net

    try:
        written = read_net(path)
    except PrototxtError as error:
        try:
            solver = read_solver(path)
        except PrototxtError:
            raise error from None
        fields = [f"{descriptor.name}: {value}" for descriptor, value in solver.ListFields()]
        return Inspection(
            path, "solver", "solver prototxt", size, notes=[" ".join(f.split()) for f in fields]
        )
    version = net_version(written)
    found = Inspection(path, "net", f"net prototxt {version}", size, written.name)
    try:
        net = upgrade_net(written)
    except UpgradeError as error:
        found.problems.append(str(error))
        return found
    _describe_net(found, net)
    return found


def _describe_net(found: Inspection, net: NetParameter) -> None:
    """Rows and notes of a V2 net in phase TEST, or of all its layers if it cannot be filtered."""
    from caffe_weights.filtering import filter_net

    found.unknown_types = unknown_types(net.layer)
    try:
        test = filter_net(net, "TEST")
    except InputError as error:
        found.problems.append(str(error))
        test = net
    found.layers = [LayerRow(item.name, item.type, list(item.bottom), list(item.top)) for item in test.layer]
    found.notes += net_notes(test.layer)
    if len(test.layer) < len(net.layer):
        left_out = len(net.layer) - len(test.layer)
        found.notes.append(f"{left_out} of {len(net.layer)} layers are not for phase TEST and not listed")
    if not found.problems:
        _add_shapes(found, test)


def _add_shapes(found: Inspection, net: NetParameter) -> None:
    from surgery.shapes import infer_shapes, known_types, needed_inputs

    if not {layer.type for layer in net.layer} <= known_types():
        found.notes.append("no shapes: the net has layers of unknown type")
        return
    missing = needed_inputs(net)
    if missing:
        found.notes.append(f"no shapes: the net does not say how large {', '.join(missing)} is")
        return
    try:
        shapes = infer_shapes(net)
    except NetError as error:
        found.problems.append(str(error))
        return
    for row in found.layers:
        row.shapes = list(shapes.layers[row.name].tops)
        row.parameters = list(shapes.layers[row.name].params)
        row.dtypes = ["float32"] * len(row.parameters)
    found.parameter_count = sum(row.parameter_count for row in found.layers)
    found.parameter_bytes = 4 * found.parameter_count


def _inspect_weights(path: str, size: int, check: bool, dialect: str) -> Inspection:
    weights, kind, notes = _open_weights(path, dialect)
    found = Inspection(path, "weights", _format_name(weights, kind), size, notes=notes)
    types = _layer_types(weights, found)
    names = [record.name for record in weights.model.layers] if weights.model else list(weights)
    for name in dict.fromkeys(names):
        arrays = weights.get(name, [])
        shapes = [tuple(array.shape) for array in arrays]
        row = LayerRow(name, types.get(name, ""), parameters=shapes, dtypes=[str(a.dtype) for a in arrays])
        found.layers.append(row)
    found.notes += [
        f"layer {row.name!r} {BN_NOTE}"
        for row in found.layers
        if row.type == "BN" and len(row.parameters) == 4
    ][:1]
    found.parameter_count, found.parameter_bytes = weights.count(), weights.nbytes
    if check:
        found.problems += scan(weights, types)
    return found


def _open_weights(path: str, dialect: str) -> tuple[Weights, str, list[str]]:
    """Weights, their format, remarks; an HDF5 file is read under any name."""
    from caffe_weights.export import format_of, read_weights, sniff

    if sniff(path) == "hdf5":
        from caffe_weights.hdf5 import read_hdf5
        from caffe_weights.weights import Weights

        if not path.lower().endswith((".h5", ".hdf5")):
            note = "an HDF5 file under the wrong name; rename it to end in .caffemodel.h5"
            blobs = read_hdf5(path)
            if not blobs:
                raise WeightsError(path, "no parameters", "at least one blob")
            return Weights(blobs, source=path), "hdf5", [note]
    weights = read_weights(path, dialect)
    return weights, format_of(path), list(getattr(weights, "notes", []))


def _format_name(weights: Weights, kind: str) -> str:
    from caffe_weights.upgrade import net_version

    if weights.model is not None:
        fork = f", {weights.model.dialect}" if weights.model.dialect else ""
        return f"caffemodel {net_version(weights.model.net)}{fork}"
    return {"hdf5": "HDF5", "torch": "torch zip"}.get(kind, kind)


def _layer_types(weights: Weights, found: Inspection) -> dict[str, str]:
    """V2 types by layer name where the file holds them; the file's own where it cannot be upgraded."""
    if weights.model is None:
        return {}
    found.net_name = weights.model.net.name
    try:
        net = weights.net
    except InputError as error:
        found.notes.append(f"has no form of today: {error}")
        net = None
    types = {record.name: record.type for record in weights.model.layers}
    if net is None:
        return types
    found.unknown_types = unknown_types(net.layer)
    found.notes += net_notes(net.layer)
    return types | {layer.name: layer.type for layer in net.layer}


def _inspect_mean(path: str, size: int) -> Inspection:
    from caffe_weights.mean import read_mean

    mean = read_mean(path)
    means = ", ".join(f"{value:.4f}" for value in mean.mean((1, 2), dtype="float64"))
    row = LayerRow("mean", "", shapes=[tuple(mean.shape)])
    return Inspection(path, "mean", "binaryproto", size, layers=[row], notes=[f"channel means {means}"])


def _scan_blob(array: np.ndarray) -> tuple[int, int, bool]:
    """Counts of NaN and infinities, and whether all is zero, of an array of any size."""
    import numpy as np

    nans = infinities = 0
    zero = array.size > 0
    flat = array.reshape(-1)
    for start in range(0, flat.size, CHUNK_VALUES):
        piece = flat[start : start + CHUNK_VALUES]
        if not np.isfinite(piece).all():
            nans += int(np.isnan(piece).sum())
            infinities += int(np.isinf(piece).sum())
        zero = zero and not piece.any()
    return nans, infinities, zero


def _strides_over(layer: LayerParameter) -> bool:
    pool = layer.pooling_param
    kernel = pool.kernel_size or min(pool.kernel_h, pool.kernel_w)
    stride = max(pool.stride, pool.stride_h, pool.stride_w)
    return not pool.global_pooling and not (pool.pad or pool.pad_h or pool.pad_w) and 0 < kernel < stride


def _dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
