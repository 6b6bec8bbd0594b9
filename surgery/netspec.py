"""Write a net in Python, get a NetParameter.

    n = NetSpec()
    n.data = L.Input(shape=[1, 3, 224, 224])
    n.conv1 = L.Convolution(n.data, num_output=64, kernel_size=3, param=[dict(lr_mult=1), dict(lr_mult=2)])
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n["pool1/2x2"] = L.Pooling(n.relu1, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    net = n.to_proto(name="two-layers")

The language is that of pycaffe's `NetSpec` (python/caffe/net_spec.py, commit 9b891540), so that its scripts
run here and give the same message: layers take the name of their first top, tops the name they are assigned
to, and layers stand in the order of assignment, each after what it needs. It departs in checking: an
argument, a layer type or a value that the schema lacks is a NetError where it is written, not a failure
when the net is loaded; two names for one blob are refused. A shape may be written as a plain list.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import Message

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from surgery.shapes import known_types

Field = Any  # a protobuf FieldDescriptor; the stubs of its two implementations do not agree
_LAYER: Any = caffe_pb2.LayerParameter.DESCRIPTOR
# set by the builder itself, from the assignments
_NOT_ARGUMENTS = frozenset(["type", "bottom", "top", "blobs"])
# layer types whose settings stand in a message of another name
_BORROWED = {
    "Deconvolution": "convolution_param",
    "Im2col": "convolution_param",
    "LSTM": "recurrent_param",
    "RNN": "recurrent_param",
    "SoftmaxWithLoss": "loss_param",
    "SigmoidCrossEntropyLoss": "loss_param",
    "EuclideanLoss": "loss_param",
    "MultinomialLogisticLoss": "loss_param",
}


class Function:
    """A layer that has been written down: its settings, the tops it reads and the tops it makes."""

    def __init__(self, kind: str, bottoms: tuple[Top, ...], arguments: dict[str, Any]) -> None:
        self.bottoms = bottoms
        self.in_place = bool(arguments.pop("in_place", False))
        self.tops = tuple(Top(self, index) for index in range(arguments.pop("ntop", 1)))
        self.layer = caffe_pb2.LayerParameter(type=kind)
        for name, value in arguments.items():
            _assign_argument(self.layer, name, value)
        if self.in_place and len(self.tops) > len(bottoms):
            raise NetError(
                f"layer of type {kind}",
                f"{len(self.tops)} tops in place of {len(bottoms)} bottoms",
                "a bottom for each top",
            )


class Top:
    """A blob that a layer makes: the `index`-th top of `function`."""

    def __init__(self, function: Function, index: int) -> None:
        self.function, self.index = function, index

    def to_proto(self, name: str = "") -> caffe_pb2.NetParameter:
        """The net of all that this blob needs, with names made from the layer types."""
        return to_proto(self, name=name)


class NetSpec:
    """A net under construction: assign tops to its attributes or items, then call `to_proto`.

    Items (`n["inception_3a/1x1"]`) take the names that are no Python identifiers. A layer without tops
    is assigned too. Reading a name that was not assigned is a NetError.
    """

    tops: dict[str, Top | Function]

    def __init__(self) -> None:
        super().__setattr__("tops", {})

    def __setitem__(self, name: str, value: Top | Function) -> None:
        if not isinstance(value, (Top, Function)):
            raise NetError(
                f"net spec, {name}",
                f"a {type(value).__name__} is assigned",
                "a layer's top, such as L.ReLU(n.conv1)",
                _hint_for_tuple(value),
            )
        self.tops[name] = value

    def __getitem__(self, name: str) -> Any:  # Top, or Function for a layer without tops
        if name not in self.tops:
            raise NetError(
                "net spec", f"nothing is named {name}", _nearest(name, self.tops), "assign it first"
            )
        return self.tops[name]

    def __setattr__(self, name: str, value: Top | Function) -> None:
        self[name] = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tops

    def to_proto(self, name: str = "") -> caffe_pb2.NetParameter:
        """All assigned layers and what they need, as a new message; NetError when names clash."""
        return _Writer(self.tops).net(self.tops.values(), name)


def to_proto(*tops: Top | Function, name: str = "") -> caffe_pb2.NetParameter:
    """The net of all layers that `tops` need, with names made from the layer types: Convolution1, ..."""
    return _Writer({}).net(tops, name)


class Layers:
    """`L`: an attribute for each layer type, a function of bottoms and settings.

    `in_place=True` writes over the bottom, `ntop=2` makes two tops (a tuple; `ntop=0` gives the layer
    itself). Settings are fields of the layer (`param`, `include`, `loss_weight`, ...; also the `..._param`
    messages whole) or of the message of its type. A dict stands for a message, a list for a repeated field,
    a single value for a list of one.
    """

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        if kind.startswith("__"):
            raise AttributeError(kind)
        if kind not in known_types():
            raise NetError("net spec", f"no layer type {kind}", _nearest(kind, known_types()))

        def layer(*bottoms: Top, **arguments: Any) -> Any:  # Top, or a tuple of them, or Function
            for index, bottom in enumerate(bottoms):
                if not isinstance(bottom, Top):
                    raise NetError(
                        f"layer of type {kind}",
                        f"bottom {index} is a {type(bottom).__name__}",
                        "a top of another layer",
                        _hint_for_tuple(bottom),
                    )
            function = Function(kind, bottoms, arguments)
            tops = function.tops
            return function if not tops else tops[0] if len(tops) == 1 else tops

        return layer


class Parameters:
    """`P`: the named values of the schema, such as `P.Pooling.MAX` or `P.Eltwise.SUM`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Values(name)


class _Values:
    def __init__(self, name: str) -> None:
        message = getattr(caffe_pb2, f"{name}Parameter", None)
        if message is None:
            known = [key.removesuffix("Parameter") for key in caffe_pb2.DESCRIPTOR.message_types_by_name]
            raise NetError("net spec", f"no settings P.{name}", _nearest(name, known))
        self._name, self._numbers = name, dict(message.DESCRIPTOR.enum_values_by_name)

    def __getattr__(self, value: str) -> int:
        if value.startswith("__"):
            raise AttributeError(value)
        if value not in self._numbers:
            raise NetError("net spec", f"no value P.{self._name}.{value}", ", ".join(self._numbers))
        return int(self._numbers[value].number)


class _Writer:
    """Names blobs and layers and puts layers in order."""

    def __init__(self, assigned: Mapping[str, Top | Function]) -> None:
        self.names: dict[Top | Function, str] = {}
        for name, value in assigned.items():
            if value in self.names:
                raise NetError(
                    "net spec",
                    f"{self.names[value]} and {name} name one blob",
                    "one name",
                    "give the second a layer of its own, such as Split",
                )
            self.names[value] = name
        self.counts: Counter[str] = Counter()
        self.layers: dict[Function, caffe_pb2.LayerParameter] = {}

    def net(self, roots: Iterable[Top | Function], name: str) -> caffe_pb2.NetParameter:
        for root in roots:
            self._add(root if isinstance(root, Function) else root.function)
        self._check_names()
        net = caffe_pb2.NetParameter(layer=self.layers.values())
        if name:
            net.name = name
        return net

    def _add(self, root: Function) -> None:
        """Write `root` after all it needs. A stack of its own, since nets are deeper than Python's."""
        stack = [root]
        while stack:
            function = stack[-1]
            missing = [b.function for b in function.bottoms if b.function not in self.layers]
            if missing:
                stack.append(missing[0])
            else:
                stack.pop()
                if function not in self.layers:
                    self.layers[function] = self._written(function)

    def _written(self, function: Function) -> caffe_pb2.LayerParameter:
        layer = caffe_pb2.LayerParameter()
        layer.CopyFrom(function.layer)
        layer.bottom.extend(self.layers[b.function].top[b.index] for b in function.bottoms)
        layer.top.extend(
            layer.bottom[: len(function.tops)] if function.in_place else map(self._name_of, function.tops)
        )
        if not layer.HasField("name"):
            layer.name = self._name_of(function.tops[0] if function.tops else function)
        return layer

    def _name_of(self, value: Top | Function) -> str:
        if value not in self.names:
            kind = (value.function if isinstance(value, Top) else value).layer.type
            self.counts[kind] += 1
            self.names[value] = f"{kind}{self.counts[kind]}"
        return self.names[value]

    def _check_names(self) -> None:
        makers: dict[str, str] = {}
        for function, layer in self.layers.items():
            for top in () if function.in_place else layer.top:
                if top in makers:
                    raise NetError(
                        f"layer {layer.name}",
                        f"its top {top} is made by layer {makers[top]} too",
                        "names that differ from those made up, such as ReLU1",
                    )
                makers[top] = layer.name


def _assign_argument(layer: caffe_pb2.LayerParameter, name: str, value: Any) -> None:
    """Set a field of the layer, else of the message of its type."""
    where = f"layer of type {layer.type}"
    own = _LAYER.fields_by_name.get(name)
    if own is not None and name not in _NOT_ARGUMENTS:
        _assign(layer, own, value, where)
        return
    settings = _settings_field(layer.type)
    inner = settings.message_type.fields_by_name if settings else {}
    if settings is None or name not in inner:
        general = (n for n in _LAYER.fields_by_name if n not in _NOT_ARGUMENTS and not n.endswith("_param"))
        raise NetError(
            where, f"no argument {name}", "one of " + ", ".join([*inner, *general, "in_place", "ntop"])
        )
    _assign(getattr(layer, settings.name), inner[name], value, where)


def _assign(message: Message, field: Field, value: Any, where: str) -> None:
    where = f"{where}, {field.name}"
    if field.message_type is None:
        with _schema_errors(where, value):
            if field.is_repeated:
                getattr(message, field.name).extend(
                    _plain(field, item, where) for item in _items(field, value)
                )
            else:
                setattr(message, field.name, _plain(field, value, where))
    elif field.is_repeated:
        for item in _items(field, value):
            _fill(getattr(message, field.name).add(), item, where)
    else:
        inner = getattr(message, field.name)
        inner.SetInParent()
        _fill(inner, value, where)


def _fill(message: Message, value: Any, where: str) -> None:
    """Copy a dict, a message of the same kind, or for a BlobShape a list of sizes, into `message`."""
    kind: Any = message.DESCRIPTOR
    if isinstance(value, Message):
        with _schema_errors(where, value):
            message.MergeFrom(value)
        return
    if kind.name == "BlobShape" and not isinstance(value, Mapping):
        value = {"dim": value}
    if not isinstance(value, Mapping):
        raise NetError(where, f"{value!r}", f"a dict of {', '.join(kind.fields_by_name)}")
    for name, item in value.items():
        if name not in kind.fields_by_name:
            raise NetError(where, f"no field {name}", "one of " + ", ".join(kind.fields_by_name))
        _assign(message, kind.fields_by_name[name], item, where)


def _items(field: Field, value: Any) -> Iterable[Any]:
    """The elements of a repeated field; a single value, or one shape as a list of sizes, is a list of one."""
    single = isinstance(value, (str, bytes, Mapping, Message)) or not isinstance(value, Iterable)
    if not single and field.message_type is not None and field.message_type.name == "BlobShape":
        value = list(value)
        single = bool(value) and not isinstance(value[0], (Iterable, Message))
    return [value] if single else value


def _plain(field: Field, value: Any, where: str) -> Any:
    """A scalar as protobuf takes it; the value of an enum may be given by name."""
    if field.enum_type is None or not isinstance(value, str):
        return value
    if value not in field.enum_type.values_by_name:
        raise NetError(where, f"no value {value}", ", ".join(field.enum_type.values_by_name))
    return field.enum_type.values_by_name[value].number


@contextmanager
def _schema_errors(where: str, value: Any) -> Iterator[None]:
    """What protobuf says of a value of the wrong kind, as a NetError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, NetError):
            raise
        raise NetError(where, f"{value!r} does not fit the schema ({error})") from None


def _settings_field(kind: str) -> Field | None:
    for field in _LAYER.fields:
        if field.name == _BORROWED.get(kind) or (
            field.name.endswith("_param") and field.message_type.name == f"{kind}Parameter"
        ):
            return field
    return None


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return "perhaps " + " or ".join(close) if close else ""


def _hint_for_tuple(value: object) -> str:
    return "unpack the tuple of tops first" if isinstance(value, tuple) else ""


L = Layers()
P = Parameters()
