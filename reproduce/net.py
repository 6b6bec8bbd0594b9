"""A Caffe net as a torch.nn.Module.

Follows `Net::Init` and `Net::ForwardFromTo` in `src/caffe/net.cpp` of BVLC/caffe at 9b891540: the net is
filtered for its phase, split, checked, and run layer by layer in file order. It computes in the dtype and on
the device of its parameters. On CUDA, TF32 is switched off for the whole process when a net first runs
there: float32 without TF32 is the reference. Departures: every input size is accepted if the layers fit it
(Caffe wants a reshape first), inputs are given by name in the call, and a blob lives only as long as
something needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from caffe_weights.export import read_weights
from caffe_weights.filtering import filter_net, insert_splits
from caffe_weights.upgrade import load_net
from caffe_weights.weights import Weights
from reproduce import blocks
from reproduce.checkpointing import run_in_stages
from reproduce.dataflow import Dataflow, Plan, Run
from reproduce.feeds import Feeds
from reproduce.frame import Flops, Frame, Shortcut, Value, count_flops, may_help, plain, whole
from reproduce.layers.base import Layer
from reproduce.layers.making import make_layers
from reproduce.layers.sources import Source
from reproduce.memory import check_memory, needed_bytes
from reproduce.parameters import Slot, Slots, shapes_from_weights
from surgery.coordinates import fill_crops
from surgery.geometry import dims
from surgery.shapes import NetShapes, Shape, infer_shapes, needed_inputs

NetParameter = caffe_pb2.NetParameter
ArrayLike = Tensor | np.ndarray | Sequence[Any] | float

CROPS = ("bvlc", "auto")
MOST_CHECKED_SIZES = 256


@dataclass(frozen=True)
class Way:
    """How one call runs: may it overwrite bottoms, may large maps stay in blocks, what shortcut it takes."""

    in_place: bool
    blocked: bool
    shortcut: Shortcut | None


class Net(nn.Module):
    """A net that runs Caffe's data flow.

    `net(data=x, keep=["pool5"])` takes inputs by blob name and returns a dict of tensors: the output blobs,
    which are those no layer reads, and the kept ones in their final version. Inputs are tensors, arrays or
    nested lists of any numeric dtype; a numpy array or tensor is never written into. An input that only
    serves as a label may be left out, and what depends on it is then not in the result. A data layer whose
    source exists reads its next batch in a call that gives none of its tops.

    The phase is Caffe's and fixed when the net is made: `train()` and `eval()` change nothing but the flag
    `training`. Dropout and random DummyData draw from PyTorch's generator. A parameter with lr_mult 0 has
    requires_grad False, as have BatchNorm's statistics; an ordinary optimizer trains the rest.
    """

    def __init__(
        self,
        net: NetParameter,
        weights: Weights | None = None,
        phase: str | None = "TEST",
        level: int = 0,
        stages: Sequence[str] = (),
        input_shapes: Mapping[str, Shape] | None = None,
        crop: str = "bvlc",
        seed: int | None = None,
        strict: bool = True,
        frame: bool | None = None,
    ) -> None:
        """Build `net`, a definition of today's form, for a phase, level and stages.

        `weights` are matched by layer name, shapes must be equal; with `strict` every layer with parameters
        must be in them, else the fillers serve the rest (`seed` fixes them), as they serve all without
        weights. `input_shapes` are needed for data layers, unless weights tell the parameters' shapes.
        `crop="auto"` aligns each Crop that has no crop_param, as the older fork of Caffe did. `frame`: take
        the exact shortcut of `reproduce.frame`; None where it pays, False never. NetError, WeightsError.
        """
        super().__init__()
        self.definition = filter_net(net, phase, level, stages)
        if crop not in CROPS:
            raise NetError("crop", repr(crop), " or ".join(CROPS))
        if crop == "auto":
            self.definition = fill_crops(self.definition)
        self.phase: str = phase or caffe_pb2.Phase.Name(self.definition.state.phase)
        self.training = self.phase == "TRAIN"
        self.tf32 = self.checkpointing = False  # `reproduce.precision`, `reproduce.checkpointing`
        self._like: Tensor  # dtype and device, also of a net without parameters
        self.register_buffer("_like", torch.empty(0), persistent=False)
        self._split = insert_splits(self.definition)
        layers = make_layers(self._split, self.phase)
        self._flow = Dataflow.of(self._split, layers)
        self._feeds = Feeds(self._split, self.phase)
        self._declared: dict[str, Shape] = dict(input_shapes or {})
        self._declared |= self._feeds.shapes(self._declared.keys())
        self._plans: dict[tuple[frozenset[str], tuple[str, ...]], Plan] = {}
        self._checked: set[object] = set()
        self._frame = Frame(frame) if frame is not False and may_help(list(layers.values())) else None
        self._first: NetShapes | None = None
        self._slots = Slots()
        self._add_parameters(layers, weights)
        empty = self._slots.load(weights, strict) if weights is not None else self._slots.owned()
        self._slots.fill(empty, seed)

    @classmethod
    def from_prototxt(
        cls, path: str | Path, weights: str | Path | Weights | None = None, **options: Any
    ) -> Net:
        """The net of a prototxt of any generation, with the weights of a file of any format we read.

        `options` are those of `Net`. Also PrototxtError, UpgradeError, FileError, FormatError.
        """
        if isinstance(weights, (str, Path)):
            weights = read_weights(weights)
        return cls(load_net(path), weights, **options)

    @property
    def inputs(self) -> list[str]:
        """Names of the input blobs, those that may be left out included."""
        return list(self._flow.inputs)

    @property
    def fed(self) -> list[str]:
        """The inputs that a call has to give: those that no data layer reads."""
        tops = self._feeds.tops()
        return [name for name in self.inputs if name not in tops]

    @property
    def outputs(self) -> list[str]:
        """Names of the blobs that no layer reads, in the order of the net."""
        return list(self._flow.outputs)

    @property
    def blobs(self) -> list[str]:
        """Names of all blobs that can be kept, without those of automatic splits."""
        tops = {top for layer in self.definition.layer for top in layer.top}
        return [name for name in self._flow.final if name in tops]

    @property
    def params(self) -> dict[str, list[Tensor]]:
        """Parameters by layer, in Caffe's order and shapes.

        They are the net's own `nn.Parameter`s; only a blob shared PERMISSIVE in another shape is a view.
        """
        return {layer: [slot.tensor() for slot in slots] for layer, slots in self._slots.layers.items()}

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each blob that counts in the total loss."""
        return dict(self._flow.losses)

    def total_loss(self, blobs: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the losses among `blobs`, a result of the net. NetError if there is none."""
        terms = [weight * blobs[name].sum() for name, weight in self._flow.losses.items() if name in blobs]
        if not terms:
            raise NetError(
                "net",
                "no loss among the blobs",
                " or ".join(self._flow.losses) or "a loss layer",
                "give the labels, or keep the loss blobs",
            )
        return torch.stack(terms).sum()

    def layer(self, name: str) -> Layer:
        """The object that runs a layer, such as one whose state is to be reset."""
        return next(step.layer for step in self._flow.steps if step.layer.name == name)

    def source(self, layer: str) -> Source:
        """What reads the data of a layer, such as a MemoryData to `reset`. NetError if nothing does."""
        if layer not in self._feeds.readers:
            known = ", ".join(self._feeds.readers)
            raise NetError(f"layer {layer}", "it reads no data", known or "a data layer with a source")
        return self._feeds.readers[layer]

    def slot(self, layer: str, index: int) -> Slot:
        """What is known of one parameter blob, its owner's Parameter included."""
        return self._slots.layers[layer][index]

    def learnable(self) -> list[Slot]:
        """Parameters that own their values, in Caffe's order, with lr_mult and decay_mult."""
        return self._slots.owned()

    @property
    def layers(self) -> list[Layer]:
        """The layers that run, in order; they hold no parameters."""
        return [step.layer for step in self._flow.steps]

    def share_with(self, other: Net) -> None:
        """Use the parameters of `other` in the layers of the same name, as a solver's test net does.

        NetError where a layer has other parameters there; layers on one side only stay as they are.
        """
        self._slots.share(other._slots)

    def load_weights(self, weights: Weights, strict: bool = True) -> None:
        """Copy `weights` in, by layer name. WeightsError as when the net is made."""
        self._slots.load(weights, strict)

    def weights(self) -> Weights:
        """A copy of all parameters, as Caffe would save them."""
        blobs = {
            layer: [t.detach().cpu().numpy().copy() for t in tensors]
            for layer, tensors in self.params.items()
        }
        return Weights(blobs, net=self._split)

    def shapes(self, input_shapes: Mapping[str, Shape] | None = None) -> NetShapes:
        """Shapes of all layers and blobs that a call with inputs of these shapes computes.

        Without `input_shapes` those of the definition. NetError as in the call.
        """
        given = dict(input_shapes or {})
        plan = self._flow.plan(given or self.inputs, ())
        return self._infer(plan, given)

    def flops(self, input_shapes: Mapping[str, Shape] | None = None) -> Flops:
        """The arithmetic of such a call, with the shortcut over the border and without."""
        given = dict(input_shapes or {})
        plan = self._flow.plan(given or self.inputs, ())
        return count_flops(plan, self._infer(plan, given).layers, self._frame)

    def forward(self, *, keep: str | Iterable[str] = (), **inputs: ArrayLike) -> dict[str, Tensor]:
        """Run the net; the class says how."""
        given = {name: self._input(name, value) for name, value in inputs.items()}
        if self._feeds.readers:
            read = self._feeds.read(given, self._flow.required())
            given |= {name: self._input(name, value) for name, value in read.items()}
        kept = (keep,) if isinstance(keep, str) else tuple(keep)
        plan = self._plan(given, kept)
        exporting = torch.compiler.is_compiling() or torch.jit.is_tracing()
        shortcut = None
        if not exporting:
            shapes = {name: tuple(x.shape) for name, x in given.items()}
            fresh = self._check(plan, shapes)
            shortcut = self._shortcut(plan, kept, shapes)
            if fresh is not None:
                self._check_memory(plan, fresh, shapes, shortcut)
        if self._like.is_cuda:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.tf32
        values: dict[int, Value] = {self._flow.inputs[name]: x for name, x in given.items()}
        way = Way(not (torch.is_grad_enabled() or exporting), blocks.possible(self._like), shortcut)
        if self.checkpointing and torch.is_grad_enabled():
            run_in_stages(plan.runs, values, lambda run, live: self._run(run, live, way))
        else:
            for run in plan.runs:
                self._run(run, values, way)
        return {name: plain(values[version]).contiguous() for name, version in plan.results.items()}

    def __repr__(self) -> str:
        count = sum(slot.parameter().numel() for slot in self._slots.owned())
        return (
            f"Net({self.definition.name or 'unnamed'}, {self.phase}, {len(self.definition.layer)} layers, "
            f"{count} parameters, {', '.join(self.inputs)} -> {', '.join(self.outputs)})"
        )

    def _add_parameters(self, layers: Mapping[str, Layer], weights: Weights | None) -> None:
        unknown = [name for name in needed_inputs(self._split) if name not in self._declared]
        if weights is None or all(map(self._flow.optional, unknown)):
            aside = [name for name in unknown if self._flow.optional(name)]
            plan = self._flow.plan([name for name in self.inputs if name not in aside], ())
            self._first = self._infer(plan, {})
        for definition in self._split.layer:
            layer = layers.get(definition.name)
            if layer is None:
                continue
            if self._first is None:
                assert weights is not None
                shapes = shapes_from_weights(definition, layer, weights)
            else:
                found = self._first.layers.get(definition.name)
                shapes = list(found.params) if found else []
            self._slots.add(self, definition, layer, shapes)

    def _input(self, name: str, value: ArrayLike) -> Tensor:
        if name not in self._flow.inputs:
            raise NetError(
                f"input {name}",
                "the net has no input of this name",
                " or ".join(self.inputs),
                "correct the name",
            )
        tensor = value if isinstance(value, Tensor) else _tensor(name, value)
        if tensor.is_complex():
            raise _no_numbers(name, f"values of type {tensor.dtype}")
        return tensor.to(self._like)

    def _plan(self, given: Mapping[str, Tensor], keep: tuple[str, ...]) -> Plan:
        key = (frozenset(given), keep)
        if key not in self._plans:
            self._plans[key] = self._flow.plan(given, keep)
        return self._plans[key]

    def _check(self, plan: Plan, shapes: dict[str, Shape]) -> NetShapes | None:
        # the shapes of a call of a kind that is new
        key = (plan.missing, tuple(sorted(shapes.items())), torch.is_grad_enabled())
        if key in self._checked:
            return None
        if self._first is not None:
            for name in self._flow.required():
                _check_rank(name, shapes[name], self._first.blobs[name])
        inferred = self._infer(plan, shapes)
        for name, slots in self._slots.layers.items():
            for slot, shape in zip(slots, inferred.layers[name].params, strict=True):
                if slot.shape != shape:
                    raise self._misfit(slot, shape, inferred)
        if len(self._checked) >= MOST_CHECKED_SIZES:
            self._checked.clear()
        self._checked.add(key)
        return inferred

    def _check_memory(
        self, plan: Plan, found: NetShapes, shapes: dict[str, Shape], shortcut: Shortcut | None
    ) -> None:
        backward = torch.is_grad_enabled()
        pieces = shortcut.pieces if shortcut else {}
        needed = needed_bytes(plan, found.layers, pieces, self._like.element_size(), backward)
        if backward:
            missing = [p for p in self.parameters() if p.requires_grad and p.grad is None]
            needed += sum(p.numel() * p.element_size() for p in missing)
        check_memory(shapes, needed, self._like.device)

    def _infer(self, plan: Plan, shapes: dict[str, Shape]) -> NetShapes:
        net = self.definition
        if plan.missing:
            net = _without(net, plan.dropped)
        inferred = infer_shapes(net, {**self._declared, **shapes, **dict.fromkeys(plan.missing, (1,))})
        for run in plan.runs:
            run.step.layer.check(inferred.layers[run.step.layer.name].bottoms)
        return inferred

    def _misfit(self, slot: Slot, needed: Shape, inferred: NetShapes) -> NetError:
        step = next(step for step in self._flow.steps if step.layer.name == slot.layer)
        blob = self._flow.names[step.bottoms[0]]
        where = f"input {blob}" if blob in self._flow.inputs else f"layer {slot.layer}: bottom {blob}"
        found = inferred.layers[slot.layer].bottoms[0]
        return NetError(
            where,
            f"{dims(found)} needs {slot.key} of {dims(needed)}",
            f"what fits the net's {slot.key} of {dims(slot.shape)}",
            "give the size it was made for, or cut a classifier (convert-weights --convolutional)",
        )

    def _shortcut(self, plan: Plan, keep: tuple[str, ...], shapes: dict[str, Shape]) -> Shortcut | None:
        if self._frame is None:
            return None
        key = (keep, tuple(sorted(shapes.items())))
        return self._frame.shortcut(key, plan, lambda: self._infer(plan, shapes), self._blobs, self._like)

    def _blobs(self, layer: str) -> list[Tensor]:
        return [slot.tensor() for slot in self._slots.layers.get(layer, ())]

    def _run(self, run: Run, values: dict[int, Value], way: Way) -> None:
        step, blobs = run.step, self._blobs(run.step.layer.name)
        if way.shortcut is not None and way.shortcut.takes(step):
            bottoms = [values[version] for version in step.bottoms]
            values[step.tops[0]] = way.shortcut.run(run, bottoms, blobs, way.in_place, way.blocked)
        else:
            values.update(zip(step.tops, self._tops(run, values, blobs, way), strict=True))
        for version in run.last_use:
            del values[version]

    def _tops(self, run: Run, values: dict[int, Value], blobs: list[Tensor], way: Way) -> list[Tensor]:
        step, layer, overwrites = run.step, run.step.layer, way.in_place and run.overwrites
        if way.blocked and len(step.bottoms) == 1 and len(step.tops) == 1:
            bottom = whole(values[step.bottoms[0]])
            bottom = bottom.detach() if step.stops else bottom
            top = blocks.run(layer, bottom, blobs, False, overwrites)
            if top is not None:
                return [top]
        bottoms = [plain(values[version]) for version in step.bottoms] or [self._like]
        if overwrites:
            return [layer.overwrite(bottoms[0], blobs)]
        for i in step.stops:
            bottoms[i] = bottoms[i].detach()
        return layer.forward(bottoms, blobs)


def _without(net: NetParameter, dropped: frozenset[str]) -> NetParameter:
    # also without the Splits of what the dropped layers would have made
    result, made = NetParameter(), set()  # type: NetParameter, set[str]
    for definition in net.layer:
        if definition.name not in dropped and made.issuperset(definition.bottom):
            result.layer.append(definition)
            made.update(definition.top)
    return result


def _tensor(name: str, value: ArrayLike) -> Tensor:
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal length
        raise _no_numbers(name, "lists of unequal lengths") from None
    if array.dtype.kind not in "fiub":
        raise _no_numbers(name, f"values of type {array.dtype}")
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # PyTorch shares neither
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _no_numbers(name: str, found: str) -> NetError:
    return NetError(f"input {name}", found, "numbers", "give an array of real numbers")


def _check_rank(name: str, found: Shape, declared: Shape) -> None:
    if len(found) != len(declared):
        raise NetError(
            f"input {name}",
            f"shape {dims(found)} of {len(found)} axes",
            f"{len(declared)} axes, as in {dims(declared)}",
            "add or remove axes",
        )
