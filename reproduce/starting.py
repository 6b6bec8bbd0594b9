"""The starting weights of a net from those of its predecessor: what `fcn start` does; torch-free.

Follows the `solve.py` files of shelhamer/fcn.berkeleyvision.org at 1305c73: weights are copied by layer name,
up-sampling layers get the bilinear kernel, new score layers stay at Caffe's filler, which is zero. Special
ways: conv1_1 with a fourth channel (nyud-fcn32s-color-d), two streams by suffix (nyud-fcn32s-color-hha).
Departures: the source must be the net's predecessor, layer for layer; a blob is never repeated or cut; only
fully connected layers change their shape, and only into convolutions of as many values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from caffe_weights.caffe_pb2 import LayerParameter, NetParameter
from caffe_weights.errors import WeightsError
from caffe_weights.weights import Weights, blob_key
from reproduce.fillers import fill
from reproduce.nets import NETS, Form, find, make_net
from reproduce.recognition import candidates, layer_names, optional_names, ordered_names, recognize
from surgery.extend import expand_score, join_streams, widen_input
from surgery.geometry import Shape, dims
from surgery.interpolation import bilinear_weights
from surgery.shapes import LayerShapes, infer_shapes
from surgery.transplant import Coercion, transplant

WIDENED = {"conv1_1_bgrd": "conv1_1"}  # layer with a fourth input channel -> the one it comes from


@dataclass
class StartReport:
    """What became of each blob, by its key (`conv1_1.weight`).

    `new` says how a blob was filled that no predecessor has, `changed` how one was made from a predecessor's;
    `dropped` are the predecessors' that the net lacks; `notes` say what else one should know.
    """

    net: str
    predecessors: tuple[str, ...]
    sources: tuple[str, ...]
    copied: list[str] = field(default_factory=list)
    coerced: list[Coercion] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        coerced = [{"blob": c.blob, "from": list(c.old), "to": list(c.new)} for c in self.coerced]
        return {**vars(self), "coerced": coerced}


@dataclass(frozen=True)
class Start:
    """The net (a train definition), its starting weights, and the report."""

    net: NetParameter
    weights: Weights
    report: StartReport


def start(
    name: str,
    sources: Sequence[Weights],
    form: Form | None = None,
    expand: bool = False,
    change: Callable[[NetParameter], None] | None = None,
) -> Start:
    """Starting weights of net `name` from `sources`, one for each predecessor in order.

    `form` is that of the net, and of the predecessors but for their classes. `expand`: score layers with
    fewer classes than the net keep these as its first, the rest is zero, and a source may also be the net
    itself with fewer classes. `change` is what a run changes in the published net: interpolation that learns
    is the predecessor's and not made anew. Arrays are views of the sources' where they are unchanged.
    WeightsError where a source is no predecessor, lacks a layer, or has a blob or number of classes that does
    not fit.
    """
    form = form or Form()
    entry = find(name)
    _check_count(name, entry.starts_from, sources)
    predecessors = tuple(
        _predecessor(name, wanted, weights, expand)
        for wanted, weights in zip(entry.starts_from, sources, strict=True)
    )
    net = make_net(name, entry.splits[0], form=form)
    if change is not None:
        change(net)
    shapes = _param_shapes(name, form)
    report = StartReport(name, predecessors, tuple(weights.source for weights in sources))
    joined = _joined(name, sources, report)
    prepared = _prepared(joined, shapes, report, expand)
    copied, moved = transplant(prepared, shapes, coerce=True, drop=True, allow_missing=True)
    report.coerced, report.dropped = moved.coerced, moved.dropped
    report.copied = [key for key in moved.copied if key not in report.changed]
    _check_coerced(name, moved.coerced, joined)
    weights = _filled(net, shapes, copied, report)
    return Start(net, Weights(weights, net), report)


def _check_count(name: str, predecessors: Sequence[str], sources: Sequence[Weights]) -> None:
    if not predecessors:
        chain = [other for other, entry in NETS.items() if entry.starts_from]
        raise WeightsError(f"net {name}", _origin(name), f"one of {', '.join(chain)}")
    if len(sources) != len(predecessors):
        wanted = " and then ".join(predecessors)
        raise WeightsError(f"net {name}", f"{len(sources)} weight files", f"{len(predecessors)}: {wanted}",
                           "give each with --from, in this order")  # fmt: skip


def _origin(name: str) -> str:
    entry = find(name)
    if entry.own is not None:
        return f"a net that fcn train --recipe {name} starts by itself"
    return (
        f"{'a classifier' if entry.data is None else 'a net trained from scratch'}, which starts from nothing"
    )


def _predecessor(name: str, wanted: str, weights: Weights, expand: bool) -> str:
    """The net that the source is of, `wanted` or, to be expanded, the net itself; else WeightsError."""
    allowed = [wanted, name] if expand else [wanted]
    found = candidates(weights)
    for candidate in allowed:
        if layer_names(candidate) in map(layer_names, found):
            _check_told_apart(name, candidate, weights)
            return candidate
    where = weights.source or "weights"
    if found:
        do = f"make {wanted} first" if find(wanted).starts_from else f"give the weights of {wanted}"
        if name in found and not expand:
            do = "pass --expand-score if it has fewer classes, or another net's name"
        raise WeightsError(
            where, f"the weights of {found[0]}", f"those of {wanted}, which {name} starts from", do
        )
    _raise_difference(where, name, wanted, weights)
    raise AssertionError(wanted)


def _check_told_apart(name: str, wanted: str, weights: Weights) -> None:
    """WeightsError where the definition in the file says that it is another net of the same layers."""
    told = recognize(weights)
    same = layer_names(told.name) == layer_names(wanted)
    other_input = find(told.name).data and find(wanted).data and not told.alternatives and same
    if other_input and told.name.startswith("nyud") and wanted.startswith("nyud") and told.name != wanted:
        raise WeightsError(weights.source or "weights", f"the weights of {told.name}, as its data layer says",
                           f"those of {wanted}, which {name} starts from",
                           "give the files in the order of the net's streams")  # fmt: skip
    if find(wanted).data is None and told.name != wanted and not told.alternatives:
        found = f"the weights of {told.name}, as its definition says"
        purpose = f"those of {wanted}, which {name} starts from"
        raise WeightsError(weights.source or "weights", found, purpose, "give that classifier")


def _raise_difference(where: str, name: str, wanted: str, weights: Weights) -> None:
    """Name a layer of the predecessor that the source lacks, or one of the source's that it has not."""
    missing = [x for x in ordered_names(wanted) if x not in weights and x not in optional_names(wanted)]
    extra = [x for x in weights if x not in layer_names(wanted) | optional_names(wanted)]
    purpose = f"all layers of {wanted}, which {name} starts from"
    if missing:
        more = f" (and {len(missing) - 1} more layers)" if len(missing) > 1 else ""
        raise WeightsError(f"{where}: layer {missing[0]}", f"not in the file{more}", purpose,
                           f"give the weights of {wanted}")  # fmt: skip
    if extra:
        raise WeightsError(f"{where}: layer {extra[0]}", f"no layer of {wanted}", purpose,
                           "give weights without it, or those of another net")  # fmt: skip


def _param_shapes(name: str, form: Form) -> dict[str, tuple[Shape, ...]]:
    return {n: layer.params for n, layer in _layers(name, form).items() if layer.params}


def _layers(name: str, form: Form) -> Mapping[str, LayerShapes]:
    return infer_shapes(make_net(name, form=form)).layers


def _joined(name: str, sources: Sequence[Weights], report: StartReport) -> Weights:
    """The sources under the net's layer names: two streams get their suffixes."""
    if len(sources) == 1:
        return sources[0]
    data = find(name).data
    assert data is not None
    report.notes.append(f"layers carry the suffix of their stream: {', '.join(data.inputs)}")
    return join_streams(dict(zip(data.inputs, sources, strict=True)))


def _prepared(
    source: Weights, shapes: Mapping[str, Sequence[Shape]], report: StartReport, expand: bool
) -> Weights:
    """The source with what must change before it is copied: wider inputs, more classes."""
    prepared = source.copy()
    for new, old in WIDENED.items():
        if new in shapes and old in prepared and new not in prepared:
            weight, *rest = prepared.pop(old)
            prepared[new] = [widen_input(weight, where=f"layer {old}"), *rest]
            report.changed[blob_key(new, 0)] = f"{old}, and as the fourth channel the mean of its three"
    for name, wanted in shapes.items():
        if name in prepared and prepared[name][0].shape[0] != wanted[0][0]:
            if name.startswith("score"):
                _expand(prepared, name, wanted[0][0], report, expand)
            elif expand and "up" in name:
                _expand_up(prepared, name, wanted[0], report)
    return prepared


def _expand(prepared: Weights, name: str, classes: int, report: StartReport, expand: bool) -> None:
    old = prepared[name][0].shape[0]
    if not expand or old > classes:
        do = f"pass --classes {old}"
        do += ", or --expand-score to keep them as the first" if old < classes else ""
        where = f"{prepared.source}: layer {name}" if prepared.source else f"layer {name}"
        raise WeightsError(where, f"{old} classes", str(classes), do)
    prepared[name] = expand_score(prepared[name], classes, f"layer {name}")
    for index in range(len(prepared[name])):
        report.changed[blob_key(name, index)] = f"{old} classes kept, {classes - old} new ones zero"


def _expand_up(prepared: Weights, name: str, shape: Shape, report: StartReport) -> None:
    """Up-sampling of more classes: the kernels there are, and bilinear ones for the new."""
    old = prepared[name][0]
    new = bilinear_weights(shape)
    if old.shape[2:] == shape[2:] and old.shape[0] == old.shape[1] < shape[0]:
        new[: len(old), : len(old)] = old
        prepared[name] = [new]
        report.changed[blob_key(name, 0)] = (
            f"{len(old)} classes kept, {shape[0] - len(old)} new ones bilinear"
        )


def _check_coerced(name: str, coerced: Sequence[Coercion], source: Weights) -> None:
    """Only N x K may become N x C x H x W: another change of shape is a wrong layer of equal count."""
    for change in coerced:
        old = change.old[2:] if change.old[:2] == (1, 1) and len(change.old) == 4 else change.old
        if len(old) != 2 or old != (change.new[0], prod(change.new[1:])):
            where = f"{source.source or 'weights'}: blob {change.blob}"
            raise WeightsError(where, f"shape {dims(change.old)}", f"{dims(change.new)}, as in {name}",
                               "give the weights of the predecessor in these widths")  # fmt: skip


def _filled(
    net: NetParameter, shapes: Mapping[str, Sequence[Shape]], copied: Weights, report: StartReport
) -> Weights:
    """All layers in the net's order: the copied ones, and new ones by their fillers or the bilinear rule."""
    layers = {layer.name: layer for layer in net.layer}
    weights = Weights()
    for name, wanted in shapes.items():
        have = list(copied.get(name, []))
        layer = layers[name]
        if layer.type == "Deconvolution" and (not have or not layer.param[0].lr_mult):
            have = [_interpolation(name, wanted[0], have, report)]
        for index in range(len(have), len(wanted)):
            blob, how = _new_blob(layer, index, wanted[index])
            have.append(blob)
            report.new[blob_key(name, index)] = how
        weights[name] = have
    return weights


def _interpolation(name: str, shape: Shape, have: Sequence[np.ndarray], report: StartReport) -> np.ndarray:
    """The bilinear kernel, for a layer that never learns also in the place of the predecessor's."""
    weights, key = bilinear_weights(shape), blob_key(name, 0)
    if have and np.array_equal(have[0], weights):
        return weights
    if have:
        report.notes.append(f"{key}: not bilinear in the predecessor; replaced, as this net never learns it")
        report.copied = [other for other in report.copied if other != key]
        report.changed.pop(key, None)
    report.new[key] = "bilinear"
    return weights


def _new_blob(layer: LayerParameter, index: int, shape: Shape) -> tuple[np.ndarray, str]:
    if layer.type == "Scale":
        filler = layer.scale_param.filler if index == 0 else layer.scale_param.bias_filler
    else:
        filler = layer.convolution_param.weight_filler if index == 0 else layer.convolution_param.bias_filler
    return fill(shape, filler), f"constant {filler.value:g}" if filler.value else "zero"
