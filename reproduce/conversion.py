"""Weight files from one format to another, and classifiers into fully convolutional nets; torch-free.

What `convert-weights` and the demo call. The formats themselves, and the surgery, are in the floors below;
here they are joined: which net definition counts, whether the weights fit it, what is written, and what there
is to say about it. Nothing is written unless all of it can be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import FileError, InputError, NetError, WeightsError, in_net
from caffe_weights.export import EXTENSIONS, format_of, read_weights, write_weights
from caffe_weights.files import replace_file
from caffe_weights.filtering import filter_net
from caffe_weights.prototxt import format_net
from caffe_weights.upgrade import load_net
from caffe_weights.weights import Weights, is_absent
from surgery.convolutionize import convolutionize
from surgery.deploy import deploy_net
from surgery.shapes import infer_shapes, needed_inputs
from surgery.transplant import transplant

Shape = tuple[int, ...]
OTHER_NET = "pass the net that these weights belong to with --net"
HAVE_PARAMETERS = frozenset(
    {"Convolution", "Deconvolution", "InnerProduct", "BatchNorm", "BN", "PReLU", "Embed"}
)


@dataclass(frozen=True)
class Converted:
    """A fully connected layer that became a convolution: its weights before and after, its kernel."""

    layer: str
    kernel: Shape
    old_shape: Shape
    new_shape: Shape


@dataclass
class ConversionReport:
    """What was read and written. `dropped` are blobs that the net given with --net has no place for."""

    source: str
    out: str
    out_net: str | None
    format_from: str
    format_to: str
    layers: int
    parameter_count: int
    bytes: int
    convolutions: list[Converted] = field(default_factory=list)
    smallest_input: Shape | None = None
    stride: tuple[float, float] | None = None
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def convert(
    source: str,
    out: str,
    net_path: str | None = None,
    convolutional: bool = False,
    out_net: str | None = None,
    input_shape: Shape | None = None,
    force: bool = False,
    dialect: str = "auto",
) -> ConversionReport:
    """Read `source`, write `out` in the format of its extension; with `convolutional` also a new prototxt.

    `input_shape` is (C, H, W), the size the classifier was trained for, where the net does not say; `dialect`
    that of a source caffemodel, found or given. InputError, and no output at all, for anything that cannot
    be done.
    """
    format_to = format_of(out)
    if convolutional:
        out_net = out_net or default_out_net(out)
    _check_paths(source, out, net_path, out_net, force)
    weights = read_weights(source, dialect)
    report = ConversionReport(source, out, out_net, format_of(source), format_to, 0, 0, 0)
    report.notes += weights.notes
    if weights.model and weights.model.dialect:
        report.notes.append(f"read in {weights.model.dialect}")
    with in_net(net_path or source):
        net = _definition(weights, net_path, input_shape, convolutional)
        if convolutional:
            net, weights = _cut(net, weights, net_path, report)
        elif net_path is not None:
            weights = _fit(net, weights, report)
    report.layers, report.parameter_count = len(weights), weights.count()
    report.warnings += _zero_upsampling(net, weights)
    written = net if net_path is not None or convolutional else None
    with replace_file(out_net, force) if out_net else nullcontext() as net_file:
        if net_file is not None:
            net_file.write_text(format_net(_without_blobs(net)), encoding="utf-8")
        write_weights(weights, out, written, force)
    report.bytes = os.path.getsize(out)
    return report


def default_out_net(out: str) -> str:
    """`out` with `.prototxt` in place of its extension, `.caffemodel.h5` counted as one."""
    for extension in sorted(EXTENSIONS, key=len, reverse=True):
        if out.lower().endswith(extension):
            return out[: -len(extension)] + ".prototxt"
    return out + ".prototxt"


def _check_paths(source: str, out: str, net_path: str | None, out_net: str | None, force: bool) -> None:
    inputs = {"the source": source, "the net": net_path}
    for target in filter(None, (out, out_net)):
        for what, path in inputs.items():
            if path and _same_file(path, target):
                raise FileError(
                    target, f"{what} itself would be replaced", "another name", "nothing was written"
                )
        if not force and Path(target).exists():
            raise FileError(target, "the file exists", do="pass --force to replace it")
    if out_net and os.path.abspath(out) == os.path.abspath(out_net):
        raise FileError(out, "weights and net would both be written here", "two names", "set --out-net")


def _same_file(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return False


def _definition(
    weights: Weights, net_path: str | None, input_shape: Shape | None, convolutional: bool
) -> NetParameter | None:
    """The net that counts: the one given, else that of the weights; with `convolutional` its deploy form."""
    if net_path is not None:
        net = filter_net(load_net(net_path), "TEST")
    elif convolutional:
        net = _stored_net(weights)
    else:
        return None
    return _with_inputs(net, net_path or weights.source, input_shape) if convolutional else net


def _stored_net(weights: Weights) -> NetParameter:
    """The net that a caffemodel holds. Caffe saved it filtered, so rules that still stand in it are spent."""
    if weights.net is None:
        raise WeightsError(weights.source, "no net definition in this format", "one for --convolutional",
                           "pass its prototxt with --net")  # fmt: skip
    net = NetParameter()
    net.CopyFrom(weights.net)
    for layer in net.layer:
        del layer.include[:], layer.exclude[:]
    return net


def _with_inputs(net: NetParameter, where: str, input_shape: Shape | None) -> NetParameter:
    """The deploy form, its image input of `input_shape` where that is given."""
    names = [name for name in _live_inputs(net) if input_shape is not None or name in needed_inputs(net)]
    if input_shape is None:
        try:
            return deploy_net(net)
        except NetError:
            if not names:
                raise
            raise NetError(where, f"a train net that does not say how large {', '.join(names)} is",
                           "the size it was trained for", "pass --input-shape C,H,W, or a deploy prototxt"
                           " with --net") from None  # fmt: skip
    if len(names) != 1:
        raise NetError(where, f"{len(names)} inputs ({', '.join(names)})", "one for --input-shape",
                       "pass a deploy prototxt with --net")  # fmt: skip
    return deploy_net(net, {names[0]: (1, *input_shape)})


def _live_inputs(net: NetParameter) -> list[str]:
    """Inputs that are left when all that serves training is dropped."""
    unknown = dict.fromkeys(needed_inputs(net), (1, 1, 1, 1))
    return [top for layer in deploy_net(net, unknown).layer if layer.type == "Input" for top in layer.top]


def _cut(
    net: NetParameter | None, weights: Weights, net_path: str | None, report: ConversionReport
) -> tuple[NetParameter, Weights]:
    assert net is not None
    shared = _with_shared(net, weights, _parameter_shapes(net))
    with _told_to_the_command_line():
        new, cut, done = convolutionize(net, shared, drop=True)
    assert cut is not None
    if not done.layers:
        raise NetError(net_path or weights.source, "no InnerProduct layer", "a classifier with at least one",
                       "leave --convolutional out: this net takes any size already")  # fmt: skip
    report.convolutions = [Converted(c.new_name, c.kernel, c.old_shape, c.new_shape) for c in done.layers]
    report.notes += [f"layer {name} is not needed any more" for name in done.absorbed] + done.notes
    report.dropped += done.dropped
    report.smallest_input = done.smallest_input
    report.stride = (float(done.stride[0]), float(done.stride[1])) if done.stride else None
    return new, cut


def _fit(net: NetParameter | None, weights: Weights, report: ConversionReport) -> Weights:
    """The weights that `net` has a place for, in its order, checked for shape where the net tells shapes."""
    assert net is not None
    if needed_inputs(net):
        report.notes.append("the net does not tell its input's size: names were matched, shapes were not")
        return _by_name(net, weights, report)
    shapes = _parameter_shapes(net)
    with _told_to_the_command_line():
        fitted, moved = transplant(_with_shared(net, weights, shapes), shapes, drop=True)
    report.dropped += moved.dropped
    return Weights(fitted, net, weights.source, notes=weights.notes)


def _by_name(net: NetParameter, weights: Weights, report: ConversionReport) -> Weights:
    wanted = [layer for layer in net.layer if layer.type in HAVE_PARAMETERS]
    missing = [x.name for x in wanted if x.name not in weights and not any(spec.name for spec in x.param)]
    if missing:
        raise WeightsError(weights.source, f"no layer {', '.join(missing[:5])}", "every layer of the net",
                           OTHER_NET)  # fmt: skip
    names = [layer.name for layer in net.layer if layer.name in weights]
    report.dropped += [name for name in weights if name not in names]
    return Weights({name: weights[name] for name in names}, net, weights.source, notes=weights.notes)


def _parameter_shapes(net: NetParameter) -> dict[str, tuple[Shape, ...]]:
    return {name: layer.params for name, layer in infer_shapes(net).layers.items()}


def _with_shared(net: NetParameter, weights: Weights, shapes: Mapping[str, Sequence[Shape]]) -> Weights:
    """The weights with the blobs that only their owner keeps, as in an HDF5 model, given to every user."""
    complete = weights.copy()
    owners: dict[str, np.ndarray] = {}
    for layer in net.layer:
        blobs = list(complete.get(layer.name, []))
        for index, (shape, spec) in enumerate(zip(shapes.get(layer.name, ()), layer.param, strict=False)):
            kept = blobs[index] if index < len(blobs) and not is_absent(blobs[index]) else None
            owner = owners.get(spec.name) if spec.name else None
            if kept is not None and spec.name:
                owners.setdefault(spec.name, kept)
            elif kept is None and owner is not None and owner.size == prod(shape) and index <= len(blobs):
                blobs[index : index + 1] = [owner.reshape(shape)]
        if blobs:
            complete[layer.name] = blobs
    return complete


@contextmanager
def _told_to_the_command_line() -> Iterator[None]:
    """Surgery's advice is for callers of its functions; here it is for someone who has a command line."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(error.where, error.found, error.wanted, OTHER_NET) from None


def _zero_upsampling(net: NetParameter | None, weights: Weights) -> list[str]:
    """A warning for each Deconvolution whose weights are all zero, as a net without a filler has them."""
    definition = net
    if definition is None:
        try:
            definition = weights.net
        except InputError:
            definition = None
    kinds: Mapping[str, str] = {x.name: x.type for x in definition.layer} if definition is not None else {}
    return [
        f"layer {name}: all up-sampling weights are zero; every score will be 0"
        for name, blobs in weights.items()
        if kinds.get(name) == "Deconvolution" and blobs and not np.asarray(blobs[0]).any()
    ]


def _without_blobs(net: NetParameter | None) -> NetParameter:
    assert net is not None
    result = NetParameter()
    result.CopyFrom(net)
    for layer in result.layer:
        del layer.blobs[:]
    return result
