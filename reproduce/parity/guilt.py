"""Naming the guilty layer, and forgiving what is rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caffe_weights.caffe_pb2 import LayerParameter
from reproduce.parity.blame import (
    Cell,
    Fault,
    State,
    Version,
    backward_cells,
    between,
    find_faults,
    forward_cells,
)
from reproduce.parity.case import Case
from reproduce.parity.ours import Answer
from reproduce.parity.report import BAD, Finding, Report, Row
from reproduce.tolerances import FLOAT64_FACTOR

MOST_FIELDS = 4
QUIET = 0.1  # of the tolerance and of a difference: inputs that differ by less are not its cause


class Hints:
    """What is known to differ between the two sides' files, layer by layer."""

    def __init__(self, case: Case, ours: Answer, theirs: Answer) -> None:
        self.nets = [{layer.name: layer for layer in side.net.layer} for side in (case.ours, case.theirs)]
        self.parameters = ours.parameters, theirs.parameters

    def __call__(self, layer: str) -> list[str]:
        """Sentences on one layer."""
        ours, theirs = (net.get(layer) for net in self.nets)
        if ours is None or theirs is None:
            return [f"{layer}: the other net has no layer of this name"]
        words = [f"{layer}: {text}" for text in _fields(ours, theirs)]
        words += [f"{layer}: parameter {i} differs between the two sides" for i in self.differing(layer)]
        told = all(layer in side for side in self.parameters)
        return words or (
            [f"{layer}: fields and parameters are equal on both sides, to the bit"] if told else []
        )

    def differing(self, layer: str) -> list[int]:
        """Parameters of a layer that are not equal, as far as both sides tell."""
        mine, other = (side.get(layer, []) for side in self.parameters)
        return [i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b]

    def all_differing(self) -> list[str]:
        """Layers with such parameters."""
        return [layer for layer in self.parameters[0] if self.differing(layer)]


def judge_forward(report: Report, story: Sequence[Version], hints: Hints) -> None:
    """Forgive rounding among the blobs, then fill in `guilty` and `also`."""
    cells, rows = forward_cells(story), {row.key: row for row in report.rows}
    _forgive(cells, rows, report.tolerance, {})
    faults = find_faults(cells, _states(report.rows))
    if not faults:
        return
    report.guilty = _finding(_origin(faults[0], cells, rows, report.tolerance), rows, hints)
    for fault in faults[1:]:
        row = rows[fault.cell.name]
        if row.own is not None and row.own > report.tolerance and row.layer not in report.guilty.suspects:
            report.also.append(_finding(fault, rows, hints))


def judge_backward(
    report: Report, story: Sequence[Version], parameters: Sequence[tuple[str, int]], hints: Hints
) -> None:
    """Forgive rounding among the gradients, then name the first layer that makes bad ones of good ones."""
    cells, rows = backward_cells(story, parameters), {row.key: row for row in report.gradients}
    read = {v.layer: v.bottoms for v in story}
    values = {row.key: row for row in report.rows}
    forward = {layer: [values[key] for key in keys] for layer, keys in read.items()}
    _forgive(cells, rows, report.gradient_tolerance, forward)
    faults = find_faults(cells, _states(report.gradients))
    if faults:
        report.guilty_gradient = _finding(faults[0], rows, hints)


def _origin(
    fault: Fault, cells: Sequence[Cell], rows: Mapping[tuple[str, ...], Row], tolerance: float
) -> Fault:
    """Where a difference began that passes the tolerance only later, if its layer cannot be tried alone."""
    states = _states(list(rows.values()))
    known = {cell.name: cell for cell in cells}
    while rows[fault.cell.name].own is None and rows[fault.cell.name].state != "shape":
        sizes = {name: d.relative for name in fault.inputs if (d := rows[name].difference) is not None}
        loudest = max(sizes, key=lambda name: sizes[name], default=None)
        here = rows[fault.cell.name].difference
        least = QUIET * max(tolerance, here.relative if here else 0.0)
        if loudest is None or sizes[loudest] <= least or not known[loudest].inputs:
            break
        cell = known[loudest]
        fault = Fault(cell, *_fault_parts(cell, cells, states))
    return fault


def _fault_parts(
    cell: Cell, cells: Sequence[Cell], states: Mapping[tuple[str, ...], State]
) -> tuple[tuple[str, ...], bool, tuple[tuple[str, ...], ...]]:
    suspects, inputs = between(cell, cells, states)
    return suspects, True, inputs


def _forgive(
    cells: Sequence[Cell], rows: Mapping[tuple[str, ...], Row], tolerance: float,
    forward: Mapping[str, Sequence[Row]],
) -> None:  # fmt: skip
    """Call rounding what differs though its layer agrees on the other side's values and inherits no fault."""
    for cell in cells:
        row = rows.get(cell.name)
        if row is None or row.state != "differ" or not _innocent(row, tolerance):
            continue
        states = _states(list(rows.values()))
        inherited = any(states[name] == "differ" for name in between(cell, cells, states)[1])
        used = [other for layer in cell.layers for other in forward.get(layer, ())]
        if not inherited and not any(other.state in BAD for other in used):
            row.state = "rounding"


def _innocent(row: Row, tolerance: float) -> bool:
    """Whether rounding explains a difference, if its inputs do not.

    Its layer agrees on the other side's values. Where that cannot be tried: our net is no further from
    float64 than the table allows, and either both are about as far, or only a channel of small values is out.
    """
    if row.own is not None:
        return row.own <= tolerance
    if row.difference is None or row.from_float64 is None:
        return False
    ours, theirs = row.from_float64
    alike = theirs <= FLOAT64_FACTOR * ours or row.difference.of_largest <= tolerance
    return alike and ours <= FLOAT64_FACTOR * theirs


def _states(rows: Sequence[Row]) -> dict[tuple[str, ...], State]:
    """What the bookkeeping needs; an input that is not stored is taken for equal."""
    return {
        row.key: "differ" if row.state in BAD else "agree"
        for row in rows
        if row.state != "absent" or row.type == "Input"
    }


def _finding(fault: Fault, rows: Mapping[tuple[str, ...], Row], hints: Hints) -> Finding:
    differences = [rows[name].difference for name in fault.inputs if name in rows]
    known = [d.relative for d in differences if d is not None]
    words = [text for layer in fault.suspects for text in hints(layer)]
    return Finding(rows[fault.cell.name], fault.suspects, max(known) if known else None, tuple(words))


def _fields(ours: LayerParameter, theirs: LayerParameter) -> list[str]:
    """Lines of the text form that only one side's definition has; parameters' values aside."""
    texts = []
    for layer in (ours, theirs):
        bare = LayerParameter()
        bare.CopyFrom(layer)
        del bare.blobs[:]
        texts.append([line.strip() for line in str(bare).splitlines() if ":" in line])
    only = [[line for line in mine if line not in other] for mine, other in (texts, texts[::-1])]
    if not any(only):
        return []
    sides = [", ".join(lines[:MOST_FIELDS]) or "nothing" for lines in only]
    return [f"ours says {sides[0]}; theirs says {sides[1]}"]
