"""Which layer is guilty of a difference, not which ones inherit it.

A difference is looked at where it appears: something that differs although everything it was computed from
agrees. Forward that is a layer's top whose bottoms agree; backward, the gradient of a blob whose readers got
agreeing gradients, or of a parameter. Where the other side cannot say what stood in between, everything in
between is suspect, and the suspects come as a range. Pure bookkeeping: no values are seen here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from caffe_weights.caffe_pb2 import NetParameter
from surgery.grid import Graph, Node

Name = tuple[str, ...]  # of a cell
Key = tuple[str, str]  # layer, blob: the content of a blob that the layer wrote
State = Literal["agree", "differ"]


@dataclass(frozen=True)
class Version:
    """One content of a blob: the layer that wrote it, and whether it is the blob's last and its only one."""

    layer: str
    type: str
    blob: str
    final: bool
    only: bool
    in_place: bool
    bottoms: tuple[Key, ...]

    @property
    def key(self) -> Key:
        """What it is looked up by."""
        return self.layer, self.blob

    @property
    def words(self) -> str:
        """The blob, and which of its contents if there are several."""
        return self.blob if self.only else f"{self.blob} after {self.layer}"


@dataclass(frozen=True)
class Cell:
    """Something computed: by which layers, from what. `name` and `inputs` are any hashable names of cells."""

    name: Name
    layers: tuple[str, ...]
    inputs: tuple[Name, ...]


@dataclass(frozen=True)
class Fault:
    """A cell that differs. `suspects` are the layers that can be guilty, in order; one is the guilty one.

    `inputs_agreed` tells a guilty layer from a successor of one; `inputs` are the cells it was seen on.
    """

    cell: Cell
    suspects: tuple[str, ...]
    inputs_agreed: bool
    inputs: tuple[Name, ...]


def versions(net: NetParameter) -> list[Version]:
    """Every content of every blob of a net, in the order of computation."""
    graph = Graph(net)
    last = set(graph.final.values())
    counts: dict[str, int] = {}
    for layer in net.layer:
        for top in layer.top:
            counts[top] = counts.get(top, 0) + 1

    def key(node: Node) -> Key:
        return graph.layers[node[0]].name, graph.name(node)

    return [
        Version(layer.name, layer.type, top, (i, t) in last, counts[top] == 1, top in layer.bottom,
                tuple(map(key, graph.bottoms[i])))
        for i, layer in enumerate(graph.layers) for t, top in enumerate(layer.top)
    ]  # fmt: skip


def forward_cells(story: Sequence[Version]) -> list[Cell]:
    """One cell for each version, made by its layer from the layer's bottoms."""
    return [Cell(v.key, (v.layer,), v.bottoms) for v in story]


def backward_cells(story: Sequence[Version], parameters: Iterable[tuple[str, int]]) -> list[Cell]:
    """Gradients in the order in which they are computed: ("gradient", layer, blob) and of parameters.

    The gradient of a version is summed over the layers that read it, and comes from those of their tops.
    """
    tops: dict[str, list[Name]] = {}
    readers: dict[Key, list[str]] = {}
    for v in story:
        tops.setdefault(v.layer, []).append(("gradient", *v.key))
        for bottom in v.bottoms:
            if v.layer not in readers.setdefault(bottom, []):
                readers[bottom].append(v.layer)
    owned: dict[str, list[int]] = {}
    for layer, index in parameters:
        owned.setdefault(layer, []).append(index)
    cells: list[Cell] = []
    for v in reversed(story):
        read = readers.get(v.key, [])
        cells.append(Cell(("gradient", *v.key), tuple(read), tuple(top for r in read for top in tops[r])))
        for index in owned.pop(v.layer, ()):
            cells.append(Cell(("parameter", v.layer, str(index)), (v.layer,), tuple(tops[v.layer])))
    return cells


def find_faults(cells: Sequence[Cell], states: Mapping[Name, State]) -> list[Fault]:
    """All cells that differ, in order; what `states` does not hold is unknown."""
    faults = []
    for cell in cells:
        if states.get(cell.name) == "differ":
            suspects, inputs = between(cell, cells, states)
            agreed = all(states[name] == "agree" for name in inputs)
            faults.append(Fault(cell, suspects, agreed, inputs))
    return faults


def between(
    cell: Cell, cells: Sequence[Cell], states: Mapping[Name, State]
) -> tuple[tuple[str, ...], tuple[Name, ...]]:
    """The layers between a cell and the nearest known ones before it, in order, and those known ones."""
    known = {other.name: other for other in cells}
    layers, seen = set(cell.layers), set()  # type: set[str], set[Name]
    inputs: list[Name] = []
    waiting = list(cell.inputs)
    while waiting:
        name = waiting.pop(0)
        if name in seen or name not in known:
            continue
        seen.add(name)
        if name in states:
            inputs.append(name)
        else:
            layers.update(known[name].layers)
            waiting += known[name].inputs
    order = [layer for other in cells for layer in other.layers if layer in layers]
    return tuple(dict.fromkeys(order)), tuple(inputs)
