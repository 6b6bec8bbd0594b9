"""What is to be compared: the definitions and weights of both sides, and the tensors that go into both.

A net runs in its deploy form, data and loss layers dropped, unless labels are given or gradients are asked
for: then it is whole, and labels that nobody gave are drawn at random. Data layers become Input layers, so
that every oracle is fed the same arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from caffe_weights import caffe_pb2
from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import InputError, NetError
from caffe_weights.export import read_weights
from caffe_weights.filtering import filter_net
from caffe_weights.upgrade import load_net
from caffe_weights.weights import Weights
from reproduce.definition import Definition, input_shapes, load_definition
from surgery.coordinates import fill_crops
from surgery.deploy import deploy_net
from surgery.shapes import SOURCES, infer_shapes

Arrays = dict[str, np.ndarray]
Shape = tuple[int, ...]

# Loss layers and the kind of their second bottom: class indices, 0 or 1, or real numbers in the first's shape
TARGETS = {
    "Accuracy": "index", "EuclideanLoss": "real", "HingeLoss": "index", "InfogainLoss": "index",
    "MultinomialLogisticLoss": "index", "SigmoidCrossEntropyLoss": "bit", "SoftmaxWithLoss": "index",
}  # fmt: skip
VOID_SHARE = 16  # where a loss has an ignore_label, one in this many random labels is it
RANDOM_MIDDLE = 127.5  # taken off random bytes


@dataclass
class Side:
    """A definition with its inputs declared, the file of its weights, and the weights once they were read."""

    net: NetParameter
    path: str
    weights_path: str
    loaded: Weights | None = None

    @property
    def weights(self) -> Weights:
        """The weights, read on first use."""
        if self.loaded is None:
            self.loaded = read_weights(self.weights_path)
        return self.loaded


@dataclass
class Case:
    """Both sides, and what is done with them. `seeds` start the gradients of a net without losses."""

    ours: Side
    theirs: Side
    inputs: Arrays
    their_inputs: Arrays
    phase: str
    backward: bool
    same_files: bool
    seeds: Arrays = field(default_factory=dict)
    their_seeds: Arrays = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def digests(self) -> dict[str, str]:
        """SHA-256 of each input's float32 values."""
        return {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in self.inputs.items()}


@dataclass(frozen=True)
class Request:
    """What the user asked for, see `fcn parity --help`; `stored` are inputs that come with the oracle.

    `inputs` are `[NAME=]IMAGE`, `[NAME=]FILE.npy` or `[NAME=]random[:SEED]`; `picture` is mean, scale
    and color.
    """

    prototxt: str
    weights: str
    against_net: str | None = None
    against_weights: str | None = None
    inputs: Sequence[str] = ()
    size: tuple[int, int] | None = None
    phase: str = "TEST"
    backward: bool = False
    crop: str = "bvlc"
    picture: tuple[str | None, float, str | None] = (None, 1.0, None)
    stored: Mapping[str, np.ndarray] = field(default_factory=dict)
    deploy_only: bool = False


def make_case(request: Request) -> Case:
    """Read the definitions and make the inputs. InputError for whatever cannot be used."""
    net = _filtered(request.prototxt, request)
    inputs, notes, whole = _inputs(net, request)
    ours = Side(_declared(net, whole, inputs), request.prototxt, request.weights)
    _refuse_chance(ours.net, request.phase)
    theirs = replace(ours, weights_path=request.against_weights or request.weights, loaded=None)
    their_inputs = inputs
    if request.against_net:
        other = _filtered(request.against_net, request)
        their_inputs = _renamed(inputs, list(input_shapes(_form(other, whole, inputs))), request.against_net)
        theirs = replace(theirs, net=_declared(other, whole, their_inputs), path=request.against_net)
        _refuse_chance(theirs.net, request.phase)
    same = not (request.against_net or request.against_weights)
    return Case(ours, theirs, inputs, their_inputs, request.phase, request.backward, same, notes=notes)


def _filtered(path: str, request: Request) -> NetParameter:
    net = filter_net(load_net(path), request.phase)
    for layer in net.layer:
        if layer.type.endswith("Loss") and not layer.top:
            layer.top.append(layer.name)  # the name that our runtime gives it
    return fill_crops(net) if request.crop == "auto" else net


def _form(net: NetParameter, whole: bool, inputs: Arrays) -> NetParameter:
    if whole:
        return net
    known = input_shapes(net)
    return deploy_net(net, {name: a.shape for name, a in inputs.items() if name in known})


def _declared(net: NetParameter, whole: bool, inputs: Arrays) -> NetParameter:
    """The net with its inputs as Input layers of the arrays' shapes."""
    result = NetParameter()
    result.CopyFrom(_form(net, whole, inputs))
    for layer in result.layer:
        if layer.type in SOURCES and not layer.bottom:
            fresh = caffe_pb2.LayerParameter(name=layer.name, type="Input", top=layer.top)
            for top in layer.top:
                fresh.input_param.shape.add(dim=inputs[top].shape)
            layer.CopyFrom(fresh)
    infer_shapes(result)
    return result


def _inputs(net: NetParameter, request: Request) -> tuple[Arrays, list[str], bool]:
    """The arrays of all inputs that will be fed, remarks, and whether the net runs whole."""
    everything = input_shapes(net)
    definition = load_definition(request.prototxt, (), request.phase)
    needed = definition.inputs
    given = _named(request.inputs, everything, needed)
    named = given.keys() - {""}
    known = {*named, *(name for name in request.stored if name in everything)}
    whole = not request.deploy_only and (request.backward or any(name not in needed for name in known))
    if not whole:
        given = {name: spec for name, spec in given.items() if name in needed or not name}
    arrays = {name: _checked(a, name) for name, a in request.stored.items() if name in known}
    arrays, notes = _read(definition, given, arrays, request)
    for name, shape in needed.items():
        if name not in arrays:
            seed = _seed(given.get(name, given.get("", "random")))
            arrays[name] = _picture(name, shape, request, np.random.default_rng(seed))
            notes.append(f"input {name}: random bytes less {RANDOM_MIDDLE:g}, seed {seed}")
    if whole:
        seed = _seed(given.get("", "random"))
        for name in [name for name in everything if name not in arrays]:
            arrays[name] = _target(net, name, arrays, np.random.default_rng([seed, 1]))
            notes.append(f"input {name}: a random target, seed {seed}")
    order = everything if whole else needed
    return {name: np.ascontiguousarray(arrays[name], np.float32) for name in order}, notes, whole


def _named(specs: Sequence[str], everything: Mapping[str, Any], needed: Mapping[str, Any]) -> dict[str, str]:
    """Input name -> what to feed it; a `random` without a name stands under ''."""
    result: dict[str, str] = {}
    for spec in specs:
        name, equals, value = spec.partition("=")
        if not equals or name.startswith((".", "/")):
            name, value = "" if _is_random(spec) else _only(needed, spec), spec
        if name and name not in everything:
            raise InputError("--input", f"no input {name!r}", f"one of {', '.join(everything)}")
        if name in result:
            raise InputError("--input", f"two values for {name or 'all inputs'}", "one")
        result[name] = value
    return result


def _only(needed: Mapping[str, Any], spec: str) -> str:
    if len(needed) != 1:
        names = ", ".join(needed)
        raise InputError("--input", f"{spec} for {len(needed)} inputs ({names})", f"NAME={spec}")
    return next(iter(needed))


def _is_random(spec: str) -> bool:
    return spec.partition(":")[0] == "random"


def _seed(spec: str) -> int:
    text = spec.partition(":")[2] or "0"
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise InputError("--input", repr(spec), "random or random:SEED with a whole number")
    return int(text)


def _read(
    definition: Definition, given: Mapping[str, str], stored: Arrays, request: Request
) -> tuple[Arrays, list[str]]:
    """Arrays from files, by the rules of `fcn run`; a stored input must be what is given, if that is too."""
    from reproduce.commands.run import read_inputs

    files = {name: spec for name, spec in given.items() if not _is_random(spec)}
    if not files:
        return dict(stored), []
    known = {**dict.fromkeys(files), **definition.inputs}
    part = replace(definition, inputs={name: known[name] for name in files})
    triples = [(name, "=", path) for name, path in files.items()]
    arrays, notes = read_inputs(part, triples, (*request.picture, request.size))
    for name in set(arrays) & set(stored):
        if not np.array_equal(arrays[name], stored[name]):
            raise InputError("--input", f"another input {name} than the one stored with the blobs",
                             "the same", "leave it out: the stored one is taken")  # fmt: skip
    return {**stored, **arrays}, notes


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise InputError(f"stored input {name}", f"values of type {array.dtype}", "numbers")
    return array


def _picture(name: str, shape: Shape | None, request: Request, draw: np.random.Generator) -> np.ndarray:
    if shape is None and request.size is None:
        raise InputError(f"input {name}", "its shape is not known", "--size HxW, or --input")
    if shape is None:
        shape = (1, 1 if request.picture[2] == "gray" else 3, 0, 0)
    if request.size is not None and len(shape) == 4:
        shape = (*shape[:2], *request.size)
    bytes_ = draw.integers(0, 256, shape)
    return ((bytes_ - RANDOM_MIDDLE) * request.picture[1]).astype(np.float32)


def _target(net: NetParameter, name: str, arrays: Arrays, draw: np.random.Generator) -> np.ndarray:
    """Values that the loss can use which reads this input as its second bottom."""
    for layer in net.layer:
        if layer.type in TARGETS and len(layer.bottom) > 1 and layer.bottom[1] == name:
            judged = _shape_of(net, layer.bottom[0], arrays)
            return _values(layer, judged, draw)
    raise NetError(f"input {name}", "no loss layer reads it, so what it should be is not known", "--input",
                   f"give --input {name}=FILE.npy")  # fmt: skip


def _shape_of(net: NetParameter, blob: str, arrays: Arrays) -> Shape:
    known = input_shapes(net)
    form = deploy_net(net, {name: a.shape for name, a in arrays.items() if name in known})
    return infer_shapes(form).blobs[blob]


def _values(layer: caffe_pb2.LayerParameter, judged: Shape, draw: np.random.Generator) -> np.ndarray:
    kind = TARGETS[layer.type]
    if kind != "index":
        return draw.integers(0, 2, judged) if kind == "bit" else draw.normal(size=judged)
    axis = layer.accuracy_param.axis if layer.type == "Accuracy" else layer.softmax_param.axis
    shape = [*judged]
    shape[axis] = 1
    labels = draw.integers(0, judged[axis], shape)
    if layer.loss_param.HasField("ignore_label"):
        labels[draw.integers(0, VOID_SHARE, shape) == 0] = layer.loss_param.ignore_label
    return labels


def _renamed(inputs: Arrays, wanted: list[str], path: str) -> Arrays:
    """The arrays under the names of the other net; a single input may have another name."""
    if set(wanted) == set(inputs):
        return inputs
    if len(wanted) == len(inputs) == 1:
        return {wanted[0]: next(iter(inputs.values()))}
    raise NetError(path, f"inputs {', '.join(wanted)}", ", ".join(inputs), "both nets need the same inputs")


def _refuse_chance(net: NetParameter, phase: str) -> None:
    for layer in net.layer:
        own = caffe_pb2.Phase.Name(layer.phase) if layer.HasField("phase") else phase
        train = own == "TRAIN"
        if (
            (train and layer.type == "Dropout" and layer.dropout_param.dropout_ratio > 0)
            or (train and layer.type == "Pooling" and layer.pooling_param.pool == 2)
            or (layer.type == "DummyData"
                and any(f.type != "constant" for f in layer.dummy_data_param.data_filler))
        ):  # fmt: skip
            raise NetError(f"layer {layer.name} ({layer.type})", "it draws at random in each run",
                           "a net without chance", "use --phase TEST, or take it out")  # fmt: skip
