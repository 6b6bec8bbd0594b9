"""The comparison itself: both sides run, every blob is compared, the guilty layer is looked for.

Three questions are asked in turn. Does a blob agree within the tolerance? If not, is that the rounding of
float32, both sides being about as far from our net in float64? If not, where does the difference come from:
the first layer that differs though its inputs agreed, and, for proof, what each layer makes of the other
side's own inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_weights.errors import InputError
from reproduce import tolerances
from reproduce.inference import pick_device
from reproduce.net import Net
from reproduce.parity.blame import Key, Version, versions
from reproduce.parity.case import Case, Request, make_case
from reproduce.parity.guilt import Hints, judge_backward, judge_forward
from reproduce.parity.measure import Content, Probe, absolute_differences, flips, measure
from reproduce.parity.oracles import OracleError, ask_caffe, ask_float64, ask_opencv, ask_self
from reproduce.parity.ours import Answer, answer, array, build, first_seeds, trace
from reproduce.parity.replay import replay_backward, replay_forward
from reproduce.parity.report import BAD, Report, Row
from reproduce.parity.stored import Store, answer_from, open_store
from reproduce.tolerances import FULL, GRADIENT, NET, OPENCV, SMALLEST
from surgery.deploy import TRAINING_ENDS

ORACLES = ("opencv", "caffe:PYTHON", "blobs:FILE", "float64", "self[:SETTINGS]")
SUMS = ("Convolution", "InnerProduct")
WIDE_SUM = 4096  # from so many products in a net's longest sum on, the table's tolerance of full width holds
TIMEOUT_S = 600.0

Ask = Callable[[Case], Answer]


def check(
    request: Request,
    against: str,
    tolerance: float | None = None,
    judge: bool = True,
    timeout_s: float = TIMEOUT_S,
    device: str = "cpu",
) -> Report:
    """Compare our run of a net on `device` with that of an oracle, `against` one of ORACLES.

    `tolerance` replaces that of the table; `judge` runs our net in float64 besides. InputError for what
    cannot be used, OracleError where the other side fails.
    """
    ask, store, request = _oracle(against, request, timeout_s)
    case = make_case(request)
    net = build(case.ours, case.phase)
    story = versions(case.ours.net)
    if case.backward:
        case.seeds = case.their_seeds = _seeds(net, case)
    place = pick_device(device)
    ours = answer(net.to(place), case.inputs, case.backward, case.seeds, f"our net in float32 on {place}")
    net.to("cpu")
    theirs = answer_from(store, story, ours.parameter_gradients, case.backward) if store else ask(case)
    if store and case.inputs and not request.stored and not request.inputs:
        raise InputError(store.path, "no input (in/NAME) beside its blobs", "what they were computed from",
                         "give it with --input")  # fmt: skip
    found = Matched(case, story, theirs)
    report = _compare(
        case, story, ours, theirs, found, _tolerances(net, against, tolerance), against != "opencv"
    )
    if not any(row.difference or row.state == "shape" for row in report.rows if row.type != "Input"):
        raise OracleError(against, "no blob in common", "blobs of the same names", "see fcn inspect")
    if judge and case.same_files and against != "float64":
        _judge(report, ours, found)
    hints = Hints(case, ours, theirs)
    if any(row.state in BAD for row in report.rows):
        replay_forward(report, story, net, found)
    judge_forward(report, story, hints)
    if case.backward:
        _compare_gradients(report, story, ours, theirs)
        if any(row.state in BAD for row in report.gradients):
            replay_backward(report, story, net, found, ours, theirs)
        judge_backward(report, story, list(ours.parameter_gradients), hints)
    if hints.all_differing():
        report.notes.append("parameters differ in layers " + ", ".join(hints.all_differing()))
    return report


class Matched(Mapping[Key, Content]):
    """What the other side has of each of our versions: the same layer's, else the last of that blob.

    The only output of each side is also matched when the names differ. Contents of another net that differ
    in axes of length 1 behind are brought into our shape, as after net surgery.
    """

    def __init__(self, case: Case, story: Sequence[Version], theirs: Answer) -> None:
        self.places: dict[Key, tuple[Mapping[Any, Content], Any]] = {}
        last = {key[1]: key for key in theirs.blobs}
        for v in story:
            if v.key in theirs.blobs:
                self.places[v.key] = theirs.blobs, v.key
            elif v.final and v.blob in theirs.finals:
                self.places[v.key] = theirs.finals, v.blob
            elif v.final and v.blob in last and not case.same_files:
                self.places[v.key] = theirs.blobs, last[v.blob]
        if not case.same_files:
            ends = [_ends(story), _ends(versions(case.theirs.net))]
            if len(ends[0]) == len(ends[1]) == 1 and ends[1][0] in theirs.blobs:
                self.places.setdefault(ends[0][0], (theirs.blobs, ends[1][0]))

    def __getitem__(self, key: Key) -> Content:
        table, place = self.places[key]
        return table[place]

    def __iter__(self) -> Iterator[Key]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _oracle(against: str, request: Request, timeout_s: float) -> tuple[Ask, Store | None, Request]:
    """How to ask, the file of blobs if that is the oracle, and the request with what the oracle adds."""
    kind, colon, value = against.partition(":")
    if kind == "opencv" and not colon:
        return ask_opencv, None, replace(request, deploy_only=True)
    if kind == "float64" and not colon:
        return ask_float64, None, request
    if kind == "self":
        return lambda case: ask_self(case, value), None, request
    if kind == "caffe" and value:
        return lambda case: ask_caffe(case, value, timeout_s), None, request
    if kind == "blobs" and value:
        if request.against_net or request.against_weights:
            raise InputError(
                "--against blobs", "--against-net or --against-weights", "neither: a file runs no net"
            )
        store = open_store(value)
        return ask_float64, store, replace(request, stored=store.inputs())
    raise InputError("--against", repr(against), " or ".join(ORACLES))


def _seeds(net: Net, case: Case) -> dict[str, np.ndarray]:
    seeds = first_seeds(net)
    tops = {top for layer in case.theirs.net.layer for top in layer.top}
    missing = [name for name in seeds if name not in tops]
    if missing:
        raise InputError(
            "--backward", f"output {missing[0]} is not in the other net", "outputs of the same names"
        )
    return seeds


def _tolerances(net: Net, against: str, given: float | None) -> tuple[float, float]:
    """For blobs and for gradients."""
    if given is not None:
        return given, given
    kinds = {layer.name: layer.type for layer in net.definition.layer}
    sums = [prod(blobs[0].shape[1:]) for name, blobs in net.params.items() if kinds[name] in SUMS]
    longest = max(sums, default=0)
    bound = OPENCV if against == "opencv" else FULL if longest > WIDE_SUM else NET
    return bound, max(bound, GRADIENT)


def _ends(story: Sequence[Version]) -> list[Key]:
    read = {bottom for v in story for bottom in v.bottoms}
    return [v.key for v in story if v.key not in read]


def _outputs(story: Sequence[Version]) -> set[Key]:
    """What nothing reads, or nothing but losses and accuracies."""
    read = {bottom for v in story for bottom in v.bottoms if v.type not in TRAINING_ENDS}
    return {v.key for v in story if v.key not in read and v.type != "Input"}


def _compare(
    case: Case, story: Sequence[Version], ours: Answer, theirs: Answer, found: Matched,
    bounds: tuple[float, float], channels: bool,
) -> Report:  # fmt: skip
    report = Report(case, ours.name, theirs.name, *bounds, channels, [], notes=[*case.notes, *theirs.notes])
    outputs = _outputs(story)
    for v in story:
        got = ours.blobs[v.key]
        assert not isinstance(got, Probe)
        row = Row(v.words, v.layer, v.type, v.key, got.shape, in_place=v.in_place, output=v.key in outputs)
        want = found.get(v.key)
        if want is not None:
            _fill(row, got, want, bounds[0], channels, not case.same_files)
            if row.output and row.difference and not isinstance(want, Probe) and row.remark == "":
                row.flips = flips(got, want, bounds[0])
        report.rows.append(row)
    return report


def _fill(
    row: Row, got: np.ndarray, want: Content, bound: float, channels: bool, lenient: bool
) -> None:  # fmt: skip
    row.their_shape = want.shape
    if got.shape != want.shape:
        if not (lenient and isinstance(want, np.ndarray) and _stem(got.shape) == _stem(want.shape)):
            row.state = "shape"
            return
        row.remark, want = f"theirs {'x'.join(map(str, want.shape))}", want.reshape(got.shape)
    row.difference = measure(got, want, bound, channels)
    row.state = "agree" if row.difference.relative <= bound else "differ"


def _stem(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _judge(report: Report, ours: Answer, found: Matched) -> None:
    """Hold both sides against our net in float64."""
    rows = {row.key: row for row in report.rows}

    def see(key: Key, tensor: Tensor) -> None:
        row, want, got = rows[key], found.get(key), ours.blobs[key]
        if row.difference is None or row.type == "Input" or want is None or isinstance(got, Probe):
            return
        exact = array(tensor)
        row.from_float64 = (
            _distance(got, want, exact, report.channels),
            _distance(want, want, exact, report.channels),
        )

    net = build(report.case.ours, report.case.phase).double()
    inputs = {name: torch.from_numpy(a).double() for name, a in report.case.inputs.items()}
    with torch.no_grad():
        trace(net, inputs, see)


def _distance(content: Content, other: Content, exact: np.ndarray, channels: bool) -> float:
    """Worst relative difference from float64, over the values that `other` knows."""
    if not isinstance(other, Probe):
        assert not isinstance(content, Probe)
        return tolerances.worst_difference(content.astype(np.float64), exact, channels)[0]
    values = content.val if isinstance(content, Probe) else content.reshape(-1)[other.idx]
    largest = max(float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0)), SMALLEST)
    return float(absolute_differences(values, exact.reshape(-1)[other.idx]).max(initial=0.0) / largest)


def _compare_gradients(report: Report, story: Sequence[Version], ours: Answer, theirs: Answer) -> None:
    """One row for each gradient of ours, in backward order."""
    left = dict(ours.parameter_gradients)
    for v in reversed(story):
        if v.key in ours.gradients:
            want = theirs.gradients.get(v.key)
            if want is None and v.only:
                want = theirs.final_gradients.get(v.blob)
            _add_gradient(report, f"d {v.words}", v, ("gradient", *v.key), ours.gradients[v.key], want)
        for layer, index in [key for key in left if key[0] == v.layer]:
            want = theirs.parameter_gradients.get((layer, index))
            words, key = f"d {layer} parameter {index}", ("parameter", layer, str(index))
            _add_gradient(report, words, v, key, left.pop((layer, index)), want)


def _add_gradient(
    report: Report, words: str, v: Version, key: tuple[str, ...], got: Content, want: Content | None
) -> None:
    assert not isinstance(got, Probe)
    row = Row(words, v.layer, v.type, key, got.shape)
    if want is not None:
        _fill(row, got, want, report.gradient_tolerance, report.channels, not report.case.same_files)
    report.gradients.append(row)
