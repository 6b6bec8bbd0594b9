"""Old nets and solvers in today's form, as Caffe upgrades them when it reads a file.

Follows src/caffe/util/upgrade_proto.cpp (BVLC/caffe, commit 9b891540): V0 layers to V1 with their padding
layers folded in, transformation fields of data layers, V1 layers to V2, input fields to an Input
layer in front, three-parameter BatchNorm, solver_type. Works on binary nets too: blobs move along.

Departure: where Caffe reports a field, drops it and goes on (exit code 1 of its upgrade tool), and
where it drops a layer, its fields or an input's shape without a word, we raise UpgradeError.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from caffe_weights.caffe_pb2 import (
    LayerParameter,
    NetParameter,
    SolverParameter,
    V0LayerParameter,
    V1LayerParameter,
)
from caffe_weights.errors import UpgradeError
from caffe_weights.files import PathLike
from caffe_weights.prototxt import read_net, read_solver
from caffe_weights.upgrade_tables import (
    PARAM_LISTS,
    SOLVER_TYPES,
    TRANSFORM_FIELDS,
    TRANSFORM_OWNERS,
    V0_COMMON,
    V0_FIELDS,
    V0_TYPES,
    V1_TYPES,
)


def load_net(path: PathLike) -> NetParameter:
    """The net in a prototxt file of any age, in today's form. FileError, PrototxtError or UpgradeError."""
    net = read_net(path)
    try:
        return upgrade_net(net)
    except UpgradeError as error:
        raise _in_file(path, error) from None


def load_solver(path: PathLike) -> SolverParameter:
    """The solver in a prototxt file of any age, in today's form.

    As in Caffe, snapshot_prefix becomes the file's own path without extension where it is not given,
    and a file in the folder where it is one (relative to the working directory).
    """
    solver = read_solver(path)
    try:
        solver = upgrade_solver(solver)
    except UpgradeError as error:
        raise _in_file(path, error) from None
    if not solver.HasField("snapshot_prefix"):
        solver.snapshot_prefix = str(Path(path).with_suffix(""))
    elif Path(solver.snapshot_prefix).is_dir():
        solver.snapshot_prefix = str(Path(solver.snapshot_prefix) / Path(path).stem)
    return solver


def net_version(net: NetParameter) -> str:
    """The generation of the net's layers: "V0", "V1" or "V2" (also a net without layers)."""
    if any(layer.HasField("layer") for layer in net.layers):
        return "V0"
    return "V1" if net.layers else "V2"


def upgrade_net(net: NetParameter) -> NetParameter:
    """A new net in today's form (V2, inputs as an Input layer), with the blobs of the old one.

    UpgradeError names the layer and the field that have no meaning today. A V1 layer of an enum value
    that the schema does not know comes out without a type.
    """
    if net.layers and net.layer:
        raise UpgradeError("net", "both 'layer' and 'layers' blocks", "one of them", "write all as 'layer'")
    new = _v0_to_v1(net) if net_version(net) == "V0" else NetParameter()
    if net_version(net) != "V0":
        new.CopyFrom(net)
    _move_transform_fields(new.layers)
    new.layer.extend(_v1_to_v2(layer) for layer in new.layers)
    new.ClearField("layers")
    _inputs_to_layer(new)
    _freeze_batch_norm(new.layer)
    return new


def upgrade_solver(solver: SolverParameter) -> SolverParameter:
    """A new solver with `type` in place of `solver_type`; UpgradeError when both are given."""
    new = SolverParameter()
    new.CopyFrom(solver)
    if not solver.HasField("solver_type"):
        return new
    if solver.HasField("type"):
        raise UpgradeError("solver", "both type and solver_type", "one of them", "remove solver_type")
    new.type = SOLVER_TYPES[SolverParameter.SolverType.Name(solver.solver_type)]
    new.ClearField("solver_type")
    return new


# ---- V0 to V1 ----


def _v0_to_v1(net: NetParameter) -> NetParameter:
    """Caffe keeps these fields only; `state` and `debug_info` have no meaning in nets of that age."""
    if net.input_shape:
        raise UpgradeError("net", "input_shape in a net of V0 layers", "4 input_dim an input")
    new = NetParameter(input=net.input, input_dim=net.input_dim)
    if net.HasField("name"):
        new.name = net.name
    if net.HasField("force_backward"):
        new.force_backward = net.force_backward
    new.layers.extend(_v0_layer(layer) for layer in _fold_padding(net))
    return new


def _fold_padding(net: NetParameter) -> list[V1LayerParameter]:
    """The layers without padding layers; a convolution or pooling that reads one pads by itself."""
    producers: dict[str, V1LayerParameter | None] = dict.fromkeys(net.input)
    kept = []
    for old in net.layers:
        layer = V1LayerParameter()
        layer.CopyFrom(old)
        for index, bottom in enumerate(old.bottom):
            if bottom not in producers:
                raise UpgradeError(_v0_where(old), f"unknown bottom '{bottom}'", "a top of an earlier layer")
            source = producers[bottom]
            if source is not None and source.layer.type == "padding":
                _check_foldable(old, source)
                layer.layer.pad = source.layer.pad
                layer.bottom[index] = source.bottom[0]
        if old.layer.type != "padding":
            kept.append(layer)
        producers.update(dict.fromkeys(old.top, old))
    return kept


def _check_foldable(layer: V1LayerParameter, padding: V1LayerParameter) -> None:
    where = _v0_where(layer)
    if layer.layer.type not in ("conv", "pool"):
        raise UpgradeError(where, f"'{layer.layer.type}' after padding {_v0_where(padding)}", "conv or pool")
    if len(layer.bottom) != 1:
        raise UpgradeError(where, f"{len(layer.bottom)} bottoms after a padding layer", "one")
    if len(padding.bottom) != 1 or len(padding.top) != 1:
        found = f"{len(padding.bottom)} bottoms and {len(padding.top)} tops"
        raise UpgradeError(_v0_where(padding), found, "one of each in a padding layer")
    if layer.layer.pad and padding.layer.pad:
        found = f"pad {layer.layer.pad} of its own after padding by {padding.layer.pad}"
        raise UpgradeError(where, found, "one of the two", "add them up in one place")


def _v0_layer(old: V1LayerParameter) -> V1LayerParameter:
    """A V1 layer of what the wrapped V0 layer says."""
    where = _v0_where(old)
    extra = [field.name for field, _ in old.ListFields() if field.name not in ("layer", "bottom", "top")]
    if extra or not old.HasField("layer"):
        found = f"{extra[0]} outside of the V0 layer" if extra else "no V0 layer, beside others that are"
        raise UpgradeError(where, found, "layers { layer { .. } bottom top }", "write all in one form")
    v0 = old.layer
    if v0.type not in V0_TYPES:
        raise UpgradeError(where, f"unknown V0 type '{v0.type}'", f"one of {', '.join(V0_TYPES)}")
    new = V1LayerParameter(bottom=old.bottom, top=old.top, type=V0_TYPES[v0.type])
    for field, value in v0.ListFields():
        if field.name in V0_COMMON:
            _put(new, field.name, value)
        elif field.name != "type":
            _put(new, _v0_target(v0, field.name, where), value)
    return new


def _v0_target(v0: V0LayerParameter, name: str, where: str) -> str:
    targets = V0_FIELDS.get(name, {})
    target = targets.get(v0.type) or targets.get("")
    if target is None:
        owners = ", ".join(targets) or "no type that Caffe upgrades"
        raise UpgradeError(where, f"field {name} in type '{v0.type}'", f"it in {owners}", "remove it")
    return target


def _v0_where(layer: V1LayerParameter) -> str:
    return f"layer {layer.layer.name or layer.name or '(no name)'}"


def _put(message: Message, path: str, value: Any) -> None:
    """Set the field at a dotted path; one value given for a list becomes its only element."""
    *owners, name = path.split(".")
    for owner in owners:
        message = getattr(message, owner)
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.is_repeated:
        many = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
        getattr(message, name).extend(value if many else [value])
    elif field.message_type:
        getattr(message, name).CopyFrom(value)
    else:
        setattr(message, name, value)


# ---- V1 to V2 ----


def _move_transform_fields(layers: Iterable[V1LayerParameter]) -> None:
    for layer in layers:
        name = TRANSFORM_OWNERS.get(V1LayerParameter.LayerType.Name(layer.type))
        if name is None or not layer.HasField(name):
            continue
        owner = getattr(layer, name)
        for field in TRANSFORM_FIELDS:
            if owner.HasField(field):
                setattr(layer.transform_param, field, getattr(owner, field))
                owner.ClearField(field)


def _v1_to_v2(old: V1LayerParameter) -> LayerParameter:
    new = LayerParameter()
    for field, value in old.ListFields():
        if field.name == "type":
            new.type = V1_TYPES[V1LayerParameter.LayerType.Name(old.type)]
        elif field.name in PARAM_LISTS:
            for index, one in enumerate(value):
                if len(new.param) <= index:
                    new.param.add()
                setattr(new.param[index], PARAM_LISTS[field.name], one)
        else:
            _put(new, field.name, value)
    return new


# ---- today's nets with older parts ----


def _inputs_to_layer(net: NetParameter) -> None:
    """`input` with shapes becomes a layer named "input" in front; without any it is dropped."""
    if not net.input:
        return
    shapes = _input_shapes(net)
    if shapes:
        layer = LayerParameter(name="input", type="Input", top=net.input)
        for dims in shapes:
            layer.input_param.shape.add(dim=dims)
        net.layer.insert(0, layer)
    for field in ("input", "input_shape", "input_dim"):
        net.ClearField(field)


def _input_shapes(net: NetParameter) -> list[list[int]]:
    """One shape an input; input_shape wins over input_dim, which has 4 numbers an input."""
    count, dims = len(net.input), list(net.input_dim)
    if net.input_shape:
        if len(net.input_shape) != count:
            raise UpgradeError("net", f"{len(net.input_shape)} input_shape for {count} input", "one each")
        return [list(shape.dim) for shape in net.input_shape]
    if dims and len(dims) != 4 * count:
        raise UpgradeError("net", f"{len(dims)} input_dim for {count} input", f"{4 * count}, 4 each")
    return [dims[start : start + 4] for start in range(0, len(dims), 4)]


def _freeze_batch_norm(layers: Iterable[LayerParameter]) -> None:
    """The three blobs of a BatchNorm are statistics: no learning rate, no decay."""
    for layer in layers:
        if layer.type == "BatchNorm" and len(layer.param) == 3:
            for param in layer.param:
                param.lr_mult = param.decay_mult = 0


def _in_file(path: PathLike, error: UpgradeError) -> UpgradeError:
    return UpgradeError(f"{path}: {error.where}", error.found, error.wanted, error.do)
