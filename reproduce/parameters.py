"""A net's parameters: where they live, who shares them, how they are filled and loaded.

Follows `Net::AppendParam`, `Net::CopyTrainedLayersFrom` in `src/caffe/net.cpp` and `Blob::ShapeEquals` in
`src/caffe/blob.cpp` of BVLC/caffe at 9b891540. A parameter's key is `<layer>.weight`, `.bias`, `.blob2`, ...
PyTorch reads a dot in a key as a step into a submodule, so each layer with parameters has a bare module
for its name, a chain of them where the name has dots: keys come out verbatim, and everything that resolves
them (loading, functional calls, export) works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError, WeightsError
from caffe_weights.mapped import portions
from caffe_weights.weights import Weights, blob_key, is_absent
from reproduce.fillers import fill
from reproduce.layers.base import Filler, Layer
from surgery.geometry import dims

Shape = tuple[int, ...]
Definition = caffe_pb2.LayerParameter


@dataclass
class Slot:
    """One parameter blob of one layer; `owner` is the slot whose values it uses, itself unless shared."""

    layer: str
    index: int
    shape: Shape
    holder: nn.Module
    filler: Filler
    owner: Slot | None = None
    mults: dict[str, tuple[float, str]] = field(default_factory=dict)  # what a layer set, and which

    @property
    def lr_mult(self) -> float:
        """Factor of the learning rate."""
        return self.mults.get("lr_mult", (1.0, ""))[0]

    @property
    def decay_mult(self) -> float:
        """Factor of the weight decay."""
        return self.mults.get("decay_mult", (1.0, ""))[0]

    @property
    def key(self) -> str:
        """Its name in a state dict."""
        return blob_key(self.layer, self.index)

    @property
    def attribute(self) -> str:
        """Its name in the holder."""
        return blob_key("", self.index)[1:]

    def parameter(self) -> nn.Parameter:
        """The Parameter that holds the values: the owner's."""
        slot = self.owner or self
        found = slot.holder._parameters[slot.attribute]
        assert found is not None
        return found

    def tensor(self) -> Tensor:
        """The values in this layer's shape."""
        values = self.parameter()
        return values if values.shape == self.shape else values.view(self.shape)


class Slots:
    """All parameter blobs of a net, by layer, in Caffe's order."""

    def __init__(self) -> None:
        self.layers: dict[str, list[Slot]] = {}
        self._owners: dict[str, Slot] = {}

    def add(self, module: nn.Module, definition: Definition, layer: Layer, shapes: Sequence[Shape]) -> None:
        """Make the slots of one layer, and the Parameters of those it owns, without values."""
        if not shapes:
            return
        holder = _holder(module, definition.name)
        specs = [*definition.param, *[caffe_pb2.ParamSpec()] * (len(shapes) - len(definition.param))]
        self.layers[definition.name] = [
            self._slot(Slot(definition.name, i, shape, holder, filler), spec, layer)
            for i, (shape, filler, spec) in enumerate(zip(shapes, layer.fillers(), specs, strict=True))
        ]

    def all(self) -> list[Slot]:
        """Every slot, shared ones included."""
        return [slot for slots in self.layers.values() for slot in slots]

    def owned(self) -> list[Slot]:
        """The slots that own their values: Caffe's learnable parameters, in its order."""
        return [slot for slot in self.all() if slot.owner is None]

    def fill(self, slots: Sequence[Slot], seed: int | None) -> None:
        """Give these slots their first values by Caffe's fillers."""
        rng = np.random.default_rng(seed)
        for slot in slots:
            try:
                values = fill(slot.shape, slot.filler, rng)
            except NetError as error:
                raise NetError(
                    f"layer {slot.layer}: {error.where}", error.found, error.wanted, error.do
                ) from None
            with torch.no_grad():
                slot.parameter().copy_(torch.from_numpy(values))

    def load(self, weights: Weights, strict: bool) -> list[Slot]:
        """Copy what `weights` holds, by layer name; the owned slots that got nothing.

        WeightsError for another count of blobs or another shape and, if `strict`, for a layer without blobs.
        """
        absent = [
            name
            for name, slots in self.layers.items()
            if name not in weights and any(slot.owner is None for slot in slots)
        ]
        if strict and absent:
            raise WeightsError(
                weights.source or "weights",
                f"no blobs for {_some(absent)}",
                f"blobs for all {len(self.layers)} layers with parameters",
                "give the weights of this net (strict=False in Python fills what is missing)",
            )
        loaded = [self._load_layer(name, weights) for name in self.layers if name in weights]
        got = {id(slot.owner or slot) for slots in loaded for slot in slots}
        return [slot for slot in self.owned() if id(slot) not in got]

    def share(self, other: Slots) -> None:
        """Hold the Parameters of `other` in the layers of the same name. NetError for other shapes."""
        for name in self.layers.keys() & other.layers.keys():
            theirs, ours = ([slot.shape for slot in s.layers[name]] for s in (other, self))
            if theirs != ours:
                found, wanted = (", ".join(map(dims, shapes)) for shapes in (ours, theirs))
                raise NetError(f"layer {name}", f"parameters {found}", f"{wanted}, to be shared with a net")
        for slot in self.all():
            if slot.layer in other.layers:
                parameter = other.layers[slot.layer][slot.index].parameter()
            else:
                parameter = slot.parameter()  # its owner may have got another one
            if parameter.shape == slot.shape:
                slot.holder._parameters[slot.attribute] = parameter

    def _slot(self, slot: Slot, spec: caffe_pb2.ParamSpec, layer: Layer) -> Slot:
        owner = self._owners.setdefault(spec.name, slot) if spec.name else slot
        if owner is slot:
            slot.holder._parameters[slot.attribute] = nn.Parameter(torch.empty(slot.shape))
        else:
            _check_shared(slot, owner, spec)
            slot.owner = owner
            if slot.shape == owner.shape:
                slot.holder._parameters[slot.attribute] = owner.parameter()
        _set_mults(slot, owner, spec)
        owner.parameter().requires_grad_(owner.lr_mult != 0 and not layer.statistics)
        return slot

    def _load_layer(self, name: str, weights: Weights) -> list[Slot]:
        slots, blobs = self.layers[name], weights[name]
        where = f"{weights.source or 'weights'}: layer {name}"
        if len(blobs) != len(slots):
            raise WeightsError(where, f"{len(blobs)} blobs", f"{len(slots)}", _other_blobs(slots, blobs))
        loaded = []
        for slot, blob in zip(slots, blobs, strict=True):
            if is_absent(blob) and slot.owner is not None:
                continue
            if not _fits(blob.shape, slot.shape):
                raise WeightsError(
                    f"{where}: {slot.attribute}",
                    f"shape {dims(tuple(blob.shape))}",
                    dims(slot.shape),
                    "give the weights of this net, or transplant them (surgery.transplant)",
                )
            _copy(blob, slot.tensor())
            loaded.append(slot)
        return loaded


def shapes_from_weights(definition: Definition, layer: Layer, weights: Weights) -> list[Shape]:
    """Parameter shapes of a layer taken from the weights, for a net whose input size is not known yet."""
    count = len(layer.fillers())
    if not count:
        return []
    if definition.name not in weights:
        raise WeightsError(
            weights.source or "weights",
            f"no blobs for layer {definition.name}",
            f"{count}, since the net's input sizes are not known",
            "pass input_shapes= to have missing parameters filled",
        )
    shapes = [tuple(blob.shape) for blob in weights[definition.name]]
    if len(shapes) != count:
        raise WeightsError(
            f"{weights.source or 'weights'}: layer {definition.name}",
            f"{len(shapes)} blobs",
            f"{count}",
            "give the weights of this net",
        )
    return shapes


def _copy(blob: np.ndarray, tensor: Tensor) -> None:
    # a little at a time: neither the file nor another copy of the values need be in memory
    with torch.no_grad():
        flat, start = tensor.view(-1), 0
        for values in portions(blob):
            flat[start : start + values.size].copy_(torch.from_numpy(values.astype(np.float32)))
            start += values.size


def _holder(module: nn.Module, layer: str) -> nn.Module:
    # add_module refuses names with dots and names of the net's own methods; a key is free to be either
    for part in layer.split("."):
        inner = module._modules.get(part)
        if inner is None:
            inner = module._modules[part] = nn.Module()
        module = inner
    return module


def _check_shared(slot: Slot, owner: Slot, spec: caffe_pb2.ParamSpec) -> None:
    where = f"layer {slot.layer}: param {spec.name}"
    loose = spec.share_mode == spec.PERMISSIVE
    if (prod(slot.shape) != prod(owner.shape)) if loose else slot.shape != owner.shape:
        raise NetError(
            where,
            f"shape {dims(slot.shape)}",
            f"{dims(owner.shape)}, as of its owner {owner.layer}",
            "rename it in param",
        )


def _set_mults(slot: Slot, owner: Slot, spec: caffe_pb2.ParamSpec) -> None:
    # what several sharers set must agree; what one of them sets holds for all
    for name in ("lr_mult", "decay_mult"):
        if not spec.HasField(name):
            continue
        value, layer = owner.mults.setdefault(name, (getattr(spec, name), slot.layer))
        if value != getattr(spec, name):
            raise NetError(
                f"layer {slot.layer}: param {spec.name}",
                f"{name} {getattr(spec, name):g}",
                f"{value:g}, as layer {layer} has it",
                "give both the same, or only one of them any",
            )


def _other_blobs(slots: Sequence[Slot], blobs: Sequence[np.ndarray]) -> str:
    """What to do about a wrong number of blobs."""
    if len(slots) == 2 and len(blobs) == 4 and len({blob.size for blob in blobs}) == 1:
        return (
            "a BN of 4 blobs (slope, bias, mean, variance) is the PSPNet fork's, another layer: write it as"
            " BatchNorm and Scale"
        )
    return "give the weights of this net"


def _fits(found: Shape, wanted: Shape) -> bool:
    # a blob with Caffe's four legacy sizes is compared from the right
    return found == wanted or (len(found) == 4 and found == (1,) * (4 - len(wanted)) + tuple(wanted))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"layer{'s' * (len(names) > 1)} {shown}{more}"
