"""Gradient checkpointing: a stage's blobs are not kept for the backward pass but computed again.

Stages are read off the net: one ends with each Pooling, and before each Convolution with a stride, since
there the maps get smaller. Each stage but the last keeps its inputs only (Chen et al., 2016, "Training deep
nets with sublinear memory cost"). It is computed again from the same bits, in the same order, with the random
states it had, so loss and gradients are those of the plain way bit for bit. A stage with a layer that changes
something when it runs (BatchNorm's statistics, what recurrent layers carry, HDF5Output) is run once, plainly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reproduce.dataflow import Run
from reproduce.frame import Value
from reproduce.framed import Framed
from reproduce.layers.base import Layer
from reproduce.layers.drop_path import DropPath
from reproduce.layers.normalization import BatchNorm

RunOne = Callable[[Run, dict[int, Value]], None]
CHANGING = ("HDF5Output", "LSTM", "RNN")


def run_in_stages(runs: Sequence[Run], values: dict[int, Value], run_one: RunOne) -> None:
    """Run all of `runs` over `values`, blobs by version, as a loop over `run_one` would."""
    *stages, last = cut(runs)
    for stage in stages:
        if any(_changes(run.step.layer) for run in stage):
            _run_all(stage, values, run_one)
        else:
            _run_again(stage, values, run_one)
    _run_all(last, values, run_one)


def cut(runs: Sequence[Run]) -> list[list[Run]]:
    """The stages of a plan, at least one."""
    stages: list[list[Run]] = [[]]
    for run in runs:
        definition = run.step.layer.definition
        if stages[-1] and definition.type == "Convolution" and _strides(run):
            stages.append([])
        stages[-1].append(run)
        if definition.type == "Pooling":
            stages.append([])
    return stages if stages[-1] or len(stages) == 1 else stages[:-1]


def _changes(layer: Layer) -> bool:
    """Whether running a layer twice is not running it once."""
    counts = isinstance(layer, BatchNorm) and not layer.stored
    return layer.definition.type in CHANGING or counts or isinstance(layer, DropPath)


def _strides(run: Run) -> bool:
    param = run.step.layer.definition.convolution_param
    return max([*param.stride, param.stride_h, param.stride_w]) > 1


def _run_all(stage: Sequence[Run], values: dict[int, Value], run_one: RunOne) -> None:
    for run in stage:
        run_one(run, values)


def _run_again(stage: Sequence[Run], values: dict[int, Value], run_one: RunOne) -> None:
    """Run a stage under `checkpoint`; its inputs are all that lives on, besides what comes of it."""
    read = {version for run in stage for version in run.step.bottoms}
    entries = {version: values[version] for version in read if version in values}
    for run in stage:
        for version in run.last_use:
            values.pop(version, None)

    def again(*_: Tensor) -> dict[int, Value]:
        inner = {version: _uncached(value) for version, value in entries.items()}
        _run_all(stage, inner, run_one)
        return {version: value for version, value in inner.items() if version not in entries}

    # the tensors tell it on which devices random states are to be kept
    tensors = [value.region if isinstance(value, Framed) else value for value in entries.values()]
    values.update(checkpoint(again, *tensors, use_reentrant=False))


def _uncached(value: Value) -> Value:
    """A framed blob without the whole that it may have assembled: both runs must do the same."""
    return Framed(value.region, value.rim, value.layout) if isinstance(value, Framed) else value
