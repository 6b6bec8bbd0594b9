"""Our own side: every content of every blob, gradients, and single layers fed with other values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.weights import Weights
from reproduce.net import Net
from reproduce.parity.blame import Key
from reproduce.parity.case import Arrays, Side
from reproduce.parity.measure import Content

# Layers whose gradient jumps where values tie or change sign
KINKS = frozenset({"AbsVal", "Clip", "ELU", "Eltwise", "HingeLoss", "PReLU", "Pooling", "ReLU", "SPP"})

See = Callable[[Key, Tensor], None]


@dataclass
class Answer:
    """What one side gave: contents by the layer that wrote them, or by blob name if only the last is known.

    `parameters` are SHA-256 of the parameters as loaded, by layer; empty where the side does not tell.
    """

    name: str
    blobs: Mapping[Key, Content]
    finals: Mapping[str, Content] = field(default_factory=dict)
    gradients: Mapping[Key, Content] = field(default_factory=dict)
    final_gradients: Mapping[str, Content] = field(default_factory=dict)
    parameter_gradients: Mapping[tuple[str, int], Content] = field(default_factory=dict)
    parameters: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def build(side: Side, phase: str, frame: bool = False) -> Net:
    """The net of a side, float32 on the CPU; `frame` allows the shortcut over the border. NetError."""
    return Net(side.net, side.weights, phase=phase, frame=frame)


def answer(net: Net, inputs: Arrays, backward: bool, seeds: Arrays, name: str) -> Answer:
    """Run `net` on arrays by input name and keep all it computes, as float64 if it is that, else float32."""
    blobs: dict[Key, Tensor] = {}
    leaves = {name: torch.from_numpy(a).to(_like(net)) for name, a in inputs.items()}
    if not backward:
        with torch.no_grad():
            trace(net, leaves, blobs.__setitem__)
        return Answer(name, {key: array(t) for key, t in blobs.items()}, parameters=hashes(net))
    for leaf in leaves.values():
        leaf.requires_grad_()
    results = trace(net, leaves, blobs.__setitem__)
    gradients, parameters = _gradients(net, blobs, _total(net, results, seeds))
    values = {key: array(t) for key, t in blobs.items()}
    return Answer(name, values, gradients=gradients, parameter_gradients=parameters, parameters=hashes(net))


def final_answer(net: Net, inputs: Arrays, backward: bool, seeds: Arrays, name: str) -> Answer:
    """As `answer`, but only the last content of each blob, and gradients of inputs and parameters."""
    leaves = {name: torch.from_numpy(a).to(_like(net)).requires_grad_(backward) for name, a in inputs.items()}
    with torch.set_grad_enabled(backward):
        results = net(**leaves, keep=net.blobs)
    finals = {name: array(t) for name, t in results.items()}
    if not backward:
        return Answer(name, {}, finals, parameters=hashes(net))
    tops = {("", name): leaf for name, leaf in leaves.items()}
    gradients, parameters = _gradients(net, tops, _total(net, results, seeds))
    return Answer(name, {}, finals, final_gradients={key[1]: g for key, g in gradients.items()},
                  parameter_gradients=parameters, parameters=hashes(net))  # fmt: skip


def trace(net: Net, inputs: Mapping[str, Tensor], see: See) -> dict[str, Tensor]:
    """Run `net` and show every content of every blob as it is computed; returns its outputs.

    Nothing is overwritten: an in-place layer makes a new tensor.
    """
    for layer in net.definition.layer:
        if layer.type == "Input":
            for top in layer.top:
                see((layer.name, top), inputs[top])
    with _watched(net, see):
        return net(**inputs)


def first_seeds(net: Net) -> Arrays:
    """Random gradients to begin with at the outputs of a net without losses; {} if it has losses."""
    if net.loss_weights:
        return {}
    blobs, draw = net.shapes().blobs, np.random.default_rng(1)
    return {name: draw.normal(size=blobs[name]).astype(np.float32) for name in net.outputs}


def hashes(net: Net) -> dict[str, list[str]]:
    """SHA-256 of every parameter, by layer, as float32."""
    return {
        layer: [hashlib.sha256(array(t).astype(np.float32).tobytes()).hexdigest() for t in tensors]
        for layer, tensors in net.params.items()
    }


class Replay:
    """Runs parts of a net alone, on contents that come from elsewhere.

    In float32, but backward through KINKS in float64 if the contents are that: rounded they could tie.
    """

    def __init__(self, definition: NetParameter, net: Net) -> None:
        self.net, self.origin = _apart(definition), net
        self.layers = {layer.name: layer for layer in self.net.layer}

    def forward(self, wanted: Key, layers: Sequence[str], given: Mapping[Key, np.ndarray]) -> np.ndarray:
        """What `layers` make of `given`, the contents they start from: the content `wanted`."""
        net, inputs, name = self._part(layers, given), _tensors(given), _name(wanted)
        with torch.no_grad():
            return array(net(**inputs, keep=[name])[name])

    def backward(
        self, layer: str, bottoms: Mapping[Key, np.ndarray], tops: Mapping[Key, np.ndarray]
    ) -> tuple[dict[Key, np.ndarray], list[np.ndarray]]:
        """Gradients of a layer's bottoms and parameters, from its bottoms and the gradients of its tops."""
        dtype = torch.float32
        if self.layers[layer].type in KINKS and any(a.dtype == np.float64 for a in bottoms.values()):
            dtype = torch.float64
        net, inputs = self._part([layer], bottoms).to(dtype), _tensors(bottoms, dtype)
        for leaf in inputs.values():
            leaf.requires_grad_()
        seeds = _tensors(tops, dtype)
        made = net(**inputs, keep=list(seeds))
        ends = [name for name in seeds if made[name].requires_grad]
        leaves = [*inputs.values(), *net.params.get(layer, [])]
        asked = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad([made[name] for name in ends], asked, [seeds[name] for name in ends],
                                         allow_unused=True)) if ends else iter(())  # fmt: skip
        results = [next(found, None) if leaf.requires_grad else None for leaf in leaves]
        values = [array(torch.zeros_like(leaf) if g is None else g)
                  for leaf, g in zip(leaves, results, strict=True)]  # fmt: skip
        return dict(zip(bottoms, values, strict=False)), values[len(inputs) :]

    def _part(self, layers: Sequence[str], given: Mapping[Key, np.ndarray]) -> Net:
        part = NetParameter(name="part")
        for i, (key, value) in enumerate(given.items()):
            source = part.layer.add(name=f"given {i}", type="Input", top=[_name(key)])
            source.input_param.shape.add(dim=value.shape)
        part.layer.extend(self.layers[name] for name in layers)
        params = self.origin.params
        weights = Weights({n: [array(t) for t in params[n]] for n in layers if n in params})
        return Net(part, weights, phase=self.origin.phase, frame=False)


def array(tensor: Tensor) -> np.ndarray:
    """The values as float32, or float64 if they are that."""
    values = tensor.detach().cpu()
    return (values if values.dtype == torch.float64 else values.float()).numpy()


def _like(net: Net) -> Tensor:
    return next(iter(net.parameters()), torch.empty(0))


@contextmanager
def _watched(net: Net, see: See) -> Iterator[None]:
    """Let `see` have each layer's tops while the net runs; no layer overwrites its bottom meanwhile."""
    for layer in net.layers:
        forward = layer.forward
        names = list(layer.definition.top)

        def seen(
            bottoms: list[Tensor], blobs: list[Tensor], name: str = layer.name, names: Any = names,
            forward: Any = forward,
        ) -> list[Tensor]:  # fmt: skip
            tops: list[Tensor] = forward(bottoms, blobs)
            for top, tensor in zip(names, tops, strict=True):
                see((name, top), tensor)
            return tops

        def overwrite(bottom: Tensor, blobs: list[Tensor], seen: Any = seen) -> Tensor:
            top: Tensor = seen([bottom], blobs)[0]
            return top

        vars(layer).update(forward=seen, overwrite=overwrite)
    try:
        yield
    finally:
        for layer in net.layers:
            del vars(layer)["forward"], vars(layer)["overwrite"]


def _total(net: Net, results: Mapping[str, Tensor], seeds: Arrays) -> Tensor:
    if not seeds:
        return net.total_loss(results)
    terms = [(results[name] * torch.from_numpy(seed).to(results[name])).sum() for name, seed in seeds.items()]
    return torch.stack(terms).sum()


def _gradients(
    net: Net, blobs: Mapping[Key, Tensor], total: Tensor
) -> tuple[dict[Key, np.ndarray], dict[tuple[str, int], np.ndarray]]:
    wanted = {key: t for key, t in blobs.items() if t.requires_grad}
    slots = [slot for slot in net.learnable() if slot.parameter().requires_grad]
    leaves = [*wanted.values(), *(slot.parameter() for slot in slots)]
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    gradients = {key: array(g) for key, g in zip(wanted, found, strict=False) if g is not None}
    parameters = {
        (slot.layer, slot.index): array(g if g is not None else torch.zeros_like(slot.parameter()))
        for slot, g in zip(slots, found[len(wanted) :], strict=True)
    }
    return gradients, parameters


def _apart(definition: NetParameter) -> NetParameter:
    """The net with a blob name of its own for each content, so that no layer works in place."""
    result = NetParameter()
    result.CopyFrom(definition)
    names: dict[str, str] = {}
    for layer in result.layer:
        layer.bottom[:] = [names[name] for name in layer.bottom]
        names.update({top: _name((layer.name, top)) for top in layer.top})
        layer.top[:] = [names[top] for top in layer.top]
        del layer.loss_weight[:]
    return result


def _tensors(contents: Mapping[Key, np.ndarray], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {_name(key): torch.from_numpy(np.array(a)).to(dtype) for key, a in contents.items()}


def _name(key: Key) -> str:
    return f"{key[1]}@{key[0]}"
