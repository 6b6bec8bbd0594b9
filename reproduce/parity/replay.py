"""What each of our layers makes of the other side's own values, forward and backward.

It tells a guilty layer from one whose inputs were already wrong, and rounding that has grown, through small
channels or ties of a maximum, from a fault: fed with the same values, a faithful layer agrees. A part of the
net whose inner contents the other side does not have runs as one; where it has only probes, nothing runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from caffe_weights.errors import InputError
from reproduce.net import Net
from reproduce.parity.blame import Key, Version
from reproduce.parity.case import Case
from reproduce.parity.measure import Content, Probe, measure
from reproduce.parity.ours import Answer, Replay
from reproduce.parity.report import Report, Row

Owner = tuple[str, int]


def replay_forward(report: Report, story: Sequence[Version], net: Net, found: Mapping[Key, Content]) -> None:
    """Fill in `own` of the rows of blobs, where the other side has what it takes."""
    replay = Replay(report.case.ours.net, net)
    rows = {row.key: row for row in report.rows}
    for version in story:
        want = found.get(version.key)
        if version.type == "Input" or want is None or isinstance(want, Probe):
            continue
        part = _between(version, story, found, report.case)
        try:
            got = None if part is None else replay.forward(version.key, *part)
        except InputError:  # the other side's contents do not fit our layer
            continue
        if got is not None:
            _enter(rows[version.key], got, want, report.tolerance, report.channels)


def replay_backward(
    report: Report, story: Sequence[Version], net: Net, found: Mapping[Key, Content], ours: Answer,
    theirs: Answer,
) -> None:  # fmt: skip
    """Fill in `own` of the rows of gradients, where the other side has what it takes.

    The gradient of a blob with several readers is the sum of theirs, that of a shared parameter the sum over
    its users; it has no `own` if one of them could not run.
    """
    blobs, parameters, failed = _contributions(report.case, story, net, found, ours, theirs)
    for row in report.gradients:
        kind, layer, name = row.key
        if kind == "gradient":
            got, want = blobs.get((layer, name)), theirs.gradients.get((layer, name))
        else:
            got, want = parameters.get((layer, int(name))), theirs.parameter_gradients.get((layer, int(name)))
        if got is not None and want is not None and row.key not in failed and not isinstance(want, Probe):
            _enter(row, got, want, report.gradient_tolerance, report.channels)


def _contributions(
    case: Case, story: Sequence[Version], net: Net, found: Mapping[Key, Content], ours: Answer, theirs: Answer
) -> tuple[dict[Key, np.ndarray], dict[Owner, np.ndarray], set[tuple[str, ...]]]:
    """Sums over all layers, of gradients of blobs and of parameters, and the rows where one is missing."""
    replay = Replay(case.ours.net, net)
    blobs: dict[Key, np.ndarray] = {}
    parameters: dict[Owner, np.ndarray] = {}
    failed: set[tuple[str, ...]] = set()
    tops: dict[str, list[Version]] = {}
    for v in story:
        tops.setdefault(v.layer, []).append(v)
    for layer, made in tops.items():
        read = list(dict.fromkeys(made[0].bottoms))
        owners = _owners(net, layer)
        bottoms = _values(read, found)
        gradients = {v.key: _top_gradient(v.key, found, ours, theirs) for v in made}
        try:
            if bottoms is None:
                raise InputError(layer, "a bottom that the other side does not have")
            by_bottom, by_parameter = replay.backward(layer, bottoms, gradients)
        except InputError:
            failed.update([("gradient", *key) for key in read])
            failed.update([("parameter", name, str(i)) for name, i in owners])
            continue
        for key, value in by_bottom.items():
            blobs[key] = blobs[key] + value if key in blobs else value
        for owner, value in zip(owners, by_parameter, strict=True):
            old = parameters.get(owner)
            parameters[owner] = value if old is None else old + value.reshape(old.shape)
    return blobs, parameters, failed


def _owners(net: Net, layer: str) -> list[Owner]:
    """Who owns each parameter of a layer."""
    slots = [net.slot(layer, i) for i in range(len(net.params.get(layer, ())))]
    return [((slot.owner or slot).layer, (slot.owner or slot).index) for slot in slots]


def _values(keys: Sequence[Key], found: Mapping[Key, Content]) -> dict[Key, np.ndarray] | None:
    contents = {key: found.get(key) for key in keys}
    arrays = {key: a for key, a in contents.items() if isinstance(a, np.ndarray)}
    return arrays if len(arrays) == len(contents) else None


def _top_gradient(key: Key, found: Mapping[Key, Content], ours: Answer, theirs: Answer) -> np.ndarray:
    """The other side's gradient of a top; ours where nothing reads it, which both sides begin with."""
    for content in (theirs.gradients.get(key), ours.gradients.get(key)):
        if isinstance(content, np.ndarray):
            return content
    value = ours.blobs[key]
    return np.zeros(value.shape, np.float32)


def _enter(row: Row, got: np.ndarray, want: np.ndarray, tolerance: float, channels: bool) -> None:
    if got.size == want.size:
        row.own = measure(got, want.reshape(got.shape), tolerance, channels).relative


def _between(
    version: Version, story: Sequence[Version], found: Mapping[Key, Content], case: Case
) -> tuple[list[str], dict[Key, np.ndarray]] | None:
    """The layers from the nearest contents that the other side has to `version`, and those contents.

    None where one of them is only a probe.
    """
    made = {v.key: v for v in story}
    layers, given = {version.layer}, {}  # type: set[str], dict[Key, np.ndarray]
    waiting = list(version.bottoms)
    while waiting:
        key = waiting.pop()
        content = found.get(key)
        if isinstance(content, Probe):
            return None
        if content is None and made[key].type == "Input":
            content = case.inputs[key[1]]
        if content is not None:
            given[key] = content
        elif key[0] not in layers:
            layers.add(key[0])
            waiting += made[key].bottoms
    return list(dict.fromkeys(v.layer for v in story if v.layer in layers)), given
