"""Which layer reads which version of which blob, and what must run for what is asked.

Caffe's blobs are names: an in-place layer writes a new content under the old name, and a reader sees the
latest. Here each content is a version, a number. The automatic Split layers have been inserted before (they
are part of Caffe's checks) and dissolve into their bottom's version, since nothing writes into a version that
has two readers; so does a Split of the definition, unless it stops the gradient.

Follows `Net::Init` in `src/caffe/net.cpp` and `src/caffe/util/insert_splits.cpp` of BVLC/caffe at 9b891540.
Departures: the outputs stand in the order of the net (Caffe sorts them by name); a loss without a top gets
one named after the layer (Caffe makes one that cannot be read); force_backward makes no gradients of
parameters with lr_mult 0, which no solver uses. Memory that Caffe shares is not shared here: a layer that
works in place on a top of a Split or Reshape changes no other blob, nor what the layer before needs for its
gradient. Nor is propagate_down: false ever passed by (Caffe's Reshape, BatchNorm and Softmax do not look at
it, which shows where another layer reads their bottom). Gradients add up where Caffe keeps one: at a loss of
no stated weight that another layer reads, under a Flatten of a Reshape, and over passes at a Parameter.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from reproduce.layers.base import Layer

Definition = caffe_pb2.LayerParameter


@dataclass(frozen=True)
class Step:
    """One layer: the versions it reads and makes, and the bottoms it hands no gradient back to."""

    layer: Layer
    bottoms: tuple[int, ...]
    tops: tuple[int, ...]
    stops: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """A step of a plan: which versions nobody needs after it, and whether it may write into its bottom."""

    step: Step
    last_use: tuple[int, ...]
    overwrites: bool


@dataclass(frozen=True)
class Plan:
    """What one kind of call runs: its steps, the blobs it returns, and the inputs it does without."""

    runs: tuple[Run, ...]
    results: dict[str, int]
    missing: tuple[str, ...]
    dropped: frozenset[str]  # names of layers not run


@dataclass
class Dataflow:
    """A net's layers over versions of blobs."""

    steps: list[Step] = field(default_factory=list)
    inputs: dict[str, int] = field(default_factory=dict)
    final: dict[str, int] = field(default_factory=dict)  # blob name -> its last version
    outputs: list[str] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)  # blob name -> loss weight
    names: list[str] = field(default_factory=list)  # blob name of each version

    @classmethod
    def of(cls, net: caffe_pb2.NetParameter, layers: Mapping[str, Layer]) -> Dataflow:
        """The dataflow of a filtered net with its splits; tops of layers not in `layers` are inputs."""
        flow = cls()
        read: set[str] = set()
        for definition in net.layer:
            read.difference_update(definition.top)
            flow._add(definition, layers.get(definition.name))
            read.update(name for name in definition.bottom if name not in definition.top)
        flow.outputs = [name for name in flow.final if name not in read]
        if net.force_backward:  # it wins over propagate_down: false
            flow.steps = [replace(step, stops=()) for step in flow.steps]
        return flow

    def plan(self, given: Iterable[str], keep: Iterable[str]) -> Plan:
        """What runs when the inputs `given` are there and `keep` is wanted besides the outputs.

        An input that only serves losses, accuracies or nothing may be missing; what depends on it is then
        not computed. NetError for any other missing input, and for a blob in `keep` that is unknown or
        depends on a missing input.
        """
        missing = [name for name in self.inputs if name not in set(given)]
        needed = [name for name in missing if not self.optional(name)]
        if needed:
            raise NetError(
                f"input {needed[0]}",
                "not given",
                " and ".join(self.required()),
                f"pass {needed[0]}=",
            )
        absent = {self.inputs[name] for name in missing}
        steps = []
        for step in self.steps:
            if absent.isdisjoint(step.bottoms):
                steps.append(step)
            else:
                absent.update(step.tops)
        results = {name: self.final[name] for name in self.outputs if self.final[name] not in absent}
        results.update(self._kept(keep, absent, missing))
        dropped = {s.layer.name for s in self.steps} - {s.layer.name for s in steps}
        return Plan(_runs(steps, self, set(results.values())), results, tuple(missing), frozenset(dropped))

    def required(self) -> list[str]:
        """Inputs that every call must give."""
        return [name for name in self.inputs if not self.optional(name)]

    def optional(self, name: str) -> bool:
        """Whether nothing but losses, accuracies and Silence comes of this input as a label."""
        side, label_makers = {self.inputs[name]}, self._label_makers()
        for index, step in enumerate(self.steps):
            places = [i for i, version in enumerate(step.bottoms) if version in side]
            if not places or not step.tops or set(places) <= set(step.layer.label_bottoms):
                continue
            if index not in label_makers:
                return False
            side.update(step.tops)
        return True

    def _label_makers(self) -> set[int]:
        # steps whose tops are read as labels only, such as a Slice on the way from data to labels
        readers: dict[int, list[tuple[int, int]]] = {}
        for index, step in enumerate(self.steps):
            for i, version in enumerate(step.bottoms):
                readers.setdefault(version, []).append((index, i))
        found: set[int] = set()
        for index in reversed(range(len(self.steps))):
            uses = [use for top in self.steps[index].tops for use in readers.get(top, [])]
            if uses and all(
                i in self.steps[reader].layer.label_bottoms or not self.steps[reader].tops or reader in found
                for reader, i in uses
            ):
                found.add(index)
        return found

    def _kept(self, keep: Iterable[str], absent: set[int], missing: list[str]) -> dict[str, int]:
        for name in keep:
            if name not in self.final:
                near = difflib.get_close_matches(name, self.final, n=3)
                raise NetError(
                    f"blob {name}",
                    "the net has no blob of this name",
                    " or ".join(near) or "one of " + ", ".join(self.final),
                    "correct keep",
                )
            if self.final[name] in absent:
                raise NetError(
                    f"blob {name}",
                    f"it depends on {' and '.join(missing)}, not given",
                    missing[0],
                    f"pass {missing[0]}=",
                )
        return {name: self.final[name] for name in keep}

    def _add(self, definition: Definition, layer: Layer | None) -> None:
        if layer is None:
            for top in definition.top:
                self.inputs[top] = self.final[top] = self._version(top)
            return
        bottoms = tuple(self.final[name] for name in definition.bottom)
        if definition.type == "Split" and all(definition.propagate_down):
            self.final.update(dict.fromkeys(definition.top, bottoms[0]))
            self._weigh(definition, definition.top)
            return
        names = list(definition.top)
        if not names and definition.type.endswith("Loss"):
            names = [definition.name]
        tops = tuple(map(self._version, names))
        self.final.update(zip(names, tops, strict=True))
        stops = tuple(i for i, passes in enumerate(definition.propagate_down) if not passes)
        self.steps.append(Step(layer, bottoms, tops, stops))
        self._weigh(definition, names)

    def _weigh(self, definition: Definition, names: Sequence[str]) -> None:
        weights = loss_weights(definition)
        self.losses.update({name: w for name, w in zip(names, weights, strict=True) if w})

    def _version(self, name: str) -> int:
        self.names.append(name)
        return len(self.names) - 1


def loss_weights(definition: Definition) -> list[float]:
    """What each top of a layer counts in the total loss; a loss without a top has one."""
    is_loss = definition.type.endswith("Loss")
    count = len(definition.top) or int(is_loss)
    return list(definition.loss_weight) or [float(is_loss), *[0.0] * count][:count]


def _runs(steps: list[Step], flow: Dataflow, wanted: set[int]) -> tuple[Run, ...]:
    readers = Counter(version for step in steps for version in step.bottoms)
    fresh = {version for step in steps if step.layer.fresh for version in step.tops}
    seen: set[int] = set(wanted)
    runs = []
    for step in reversed(steps):
        last = tuple({v for v in (*step.bottoms, *step.tops) if v not in seen})
        seen.update(step.bottoms)
        bottom = step.bottoms[0] if len(step.bottoms) == 1 else -1
        alone = readers[bottom] == 1 and bottom in fresh and bottom not in wanted
        runs.append(Run(step, last, alone and step.layer.in_place))
    return tuple(reversed(runs))
