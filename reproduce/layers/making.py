"""The layer objects of a net, each from its definition."""

from __future__ import annotations

import difflib

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from reproduce.layers import LAYERS, PYTHON_LAYERS
from reproduce.layers.base import Definition, Layer
from surgery.shapes import check_counts, is_source


def make_layers(net: caffe_pb2.NetParameter, phase: str) -> dict[str, Layer]:
    """The layers of a filtered net by name, without those whose tops are inputs. NetError."""
    made = {}
    for definition in net.layer:
        if definition.type == "Python" and definition.bottom:
            _check_python(definition)
        check_counts(definition)
        if not is_source(definition):
            own = caffe_pb2.Phase.Name(definition.phase) if definition.HasField("phase") else phase
            made[definition.name] = _find_class(definition)(definition, own)
    return made


def _find_class(definition: Definition) -> type[Layer]:
    if definition.type == "Python":
        return PYTHON_LAYERS[definition.python_param.module, definition.python_param.layer]
    if definition.type not in LAYERS:
        near = difflib.get_close_matches(definition.type, LAYERS, n=3)
        raise NetError(
            f"layer {definition.name}",
            f"type {definition.type!r} is not run here",
            " or ".join(near) or "one of " + ", ".join(LAYERS),
            "correct type, or register a layer",
        )
    return LAYERS[definition.type]


def _check_python(definition: Definition) -> None:
    p = definition.python_param
    if (p.module, p.layer) not in PYTHON_LAYERS:
        known = ", ".join(".".join(name) for name in PYTHON_LAYERS)
        raise NetError(
            f"layer {definition.name} (Python)",
            f"no class is registered for layer {p.layer!r} of module {p.module!r}, which is never imported",
            f"one of {known}" if known else "a registered one",
            f"call reproduce.layers.register(({p.module!r}, {p.layer!r}), YourLayer, shape_rule)",
        )
