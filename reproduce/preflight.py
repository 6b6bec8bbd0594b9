"""Why a loss would not fall, found before the first iteration.

The three accidents that users of the reference report most: up-sampling layers whose weights are zero, since
`surgery.interp` was not called; a trunk at Caffe's default filler, which is zero, since no weights were
copied; and the learning rate of an unnormalised loss (1e-10, a sum over all pixels) with a normalised one, or
the reverse (1e-4). The third is judged by the rate that a mean over pixels would have,
base_lr * pixels / (1 - momentum): the published solvers lie between 2e-7 and 3e-3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import NamedTuple

import torch

from caffe_weights.caffe_pb2 import LayerParameter, LossParameter, NetParameter, SolverParameter
from caffe_weights.errors import InputError
from reproduce.net import Net
from reproduce.paper_options import BALANCED, SOFTMAX

WEIGHTED = ("Convolution", "InnerProduct")
MEASURED = ("SGD", "Nesterov")  # the other types divide by the size of the gradient
LARGEST = 1.0  # of the rate per pixel, for an unnormalised loss
SMALLEST = 2e-8  # for a normalised loss


class Problem(NamedTuple):
    """One accident: which layer or setting, what is wrong, what to do."""

    where: str
    found: str
    do: str


def preflight(net: Net, solver: SolverParameter, shapes: Mapping[str, tuple[int, ...]]) -> list[Problem]:
    """All accidents of a net with its weights; `shapes` are those of its inputs."""
    return [*_zero_interpolation(net), *_dead_trunk(net), *_wrong_rate(net.definition, solver, shapes)]


def refuse(problems: list[Problem]) -> None:
    """InputError for the first of some problems."""
    if problems:
        where, found, do = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"before training: {where}", found + more, do=f"{do}, or pass --no-preflight")


def _zero_interpolation(net: Net) -> Iterator[Problem]:
    for layer in net.definition.layer:
        if layer.type == "Deconvolution" and not _any(net, layer.name):
            yield Problem(f"layer {layer.name}", "all weights are zero, so nothing reaches the scores",
                          "give weights made by fcn start, or a bilinear weight_filler")  # fmt: skip


def _dead_trunk(net: Net) -> Iterator[Problem]:
    """Layers at zero that others with weights read: neither will ever get a gradient."""
    zero: dict[str, set[str]] = {}  # blob -> the layers at zero that it comes from
    found: dict[str, str] = {}
    for layer in net.definition.layer:
        before: set[str] = set().union(*(zero.get(bottom, set()) for bottom in layer.bottom))
        if layer.type in WEIGHTED:
            found.update((name, layer.name) for name in before if name not in found)
            before = set() if _any(net, layer.name) else {layer.name}
        for top in layer.top:
            zero[top] = before
    for name, reader in found.items():
        yield Problem(f"layer {name}", f"all weights are zero, so {reader} behind it learns nothing",
                      "copy the weights of a classifier with --from, or give it a filler")  # fmt: skip


def _wrong_rate(
    net: NetParameter, solver: SolverParameter, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Problem]:
    if solver.type not in MEASURED or not solver.base_lr or solver.momentum >= 1:
        return
    for layer in net.layer:
        label = shapes.get(layer.bottom[1]) if layer.type in (SOFTMAX, BALANCED) else None
        if label is None or prod(label[2:]) == 1:
            continue
        pixels, summed = prod(label[1:]), _summed(layer)
        factor = {0: 1, 1: pixels, 2: pixels * label[0]}[summed]
        rate = solver.base_lr * factor / (1 - solver.momentum) * (layer.loss_weight or [1.0])[0]
        where = f"base_lr {solver.base_lr:g} with momentum {solver.momentum:g}"
        if summed and rate > LARGEST:
            yield Problem(where, f"{layer.name} is a sum over {pixels} pixels, for which this is too large",
                          f"set base_lr near {1e-10 * 250000 / pixels:.0e}, or normalize: true")  # fmt: skip
        if not summed and rate < SMALLEST:
            yield Problem(where, f"{layer.name} is a mean over pixels, for which this is too small",
                          "set base_lr near 1e-4 with momentum 0.9, or normalize: false")  # fmt: skip


def _summed(layer: LayerParameter) -> int:
    """0: a mean over pixels; 1: a sum over the pixels of a picture; 2: over those of the whole batch."""
    param = layer.loss_param
    if param.HasField("normalization") or not param.HasField("normalize"):
        kinds = {LossParameter.NONE: 2, LossParameter.BATCH_SIZE: 1}
        return kinds.get(param.normalization, 0)
    return 0 if param.normalize else 1


def _any(net: Net, name: str) -> bool:
    return bool(torch.any(net.params[name][0].detach() != 0))
