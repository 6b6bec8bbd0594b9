"""Statistics of BN over many batches, gathered with a net: what `surgery.folding` folds.

Follows BN_make_INFERENCE_script.py of HyeonwooNoh/DeconvNet at 87dd133: the batches' means and biased
variances are averaged, each batch counting the same, over 1 + 500 batches of 28. The variance of the means
is not added, so this is the average variance within a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffe_weights.caffe_pb2 import LayerParameter, NetParameter
from caffe_weights.errors import InputError, NetError
from caffe_weights.weights import Weights
from reproduce.data.net_source import net_source
from reproduce.deconvnet.seg_data import WORDS
from reproduce.net import Net
from reproduce.nets import make_net
from reproduce.tolerances import worst_difference
from surgery.deploy import deploy_net
from surgery.folding import (
    Statistics,
    fold_into_convolutions,
    fold_statistics,
    inference_net,
    learning_layers,
    statistics_net,
    statistics_tops,
)

BATCHES, BATCH = 501, 28  # as released
CHECKED = 2  # items that the merged net is compared on
Batch = Mapping[str, np.ndarray | torch.Tensor]
Source = Callable[[int], Batch]
Step = Callable[[], None]


@dataclass
class Report:
    """What was done. `worst` is the largest relative difference of the outputs, computed in float64, by
    merging; None without."""

    layers: list[str] = field(default_factory=list)
    batches: int = 0
    batch: int = 0
    bessel: bool = False
    merged: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    worst: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Folded:
    """The net in inference form, its weights, and what was done."""

    net: NetParameter
    weights: Weights
    report: Report


def fold(
    net: NetParameter, weights: Weights, source: Source | None, batches: int, bessel: bool = False,
    merge: bool = False, device: str = "cpu", step: Step = lambda: None, dtype: torch.dtype = torch.float32,
) -> Folded:  # fmt: skip
    """Fold statistics of `batches` of `source` into every BN that takes the batch's; BN into convolutions too
    with `merge`. `net` is a deploy form, run in `dtype`. InputError without a source where one is needed;
    WeightsError.
    """
    names = [layer.name for layer in learning_layers(net)]
    report = Report(names, bessel=bessel)
    if not names and not merge:
        raise NetError("net", "no BN in mode LEARN", "one at least: there is nothing to fold")
    if names:
        if source is None:
            raise InputError("fold-bn", f"{len(names)} BN layers in mode LEARN and no data",
                             "--data or --arrays: statistics come from batches")  # fmt: skip
        statistics = gather(net, weights, source, batches, device, step, dtype)
        weights, report.batches = fold_statistics(weights, statistics, bessel), batches
    net = inference_net(net)
    if not merge:
        return Folded(net, weights, report)
    merged = fold_into_convolutions(net, weights)
    report.merged, report.kept = merged.into, merged.kept
    inputs = _sample(net, source)
    before, after = _outputs(net, weights, inputs), _outputs(merged.net, merged.weights, inputs)
    report.worst = max(worst_difference(b, a)[0] for a, b in zip(before, after, strict=True))
    return Folded(merged.net, merged.weights, report)


def gather(
    net: NetParameter, weights: Weights, source: Source, batches: int, device: str = "cpu",
    step: Step = lambda: None, dtype: torch.dtype = torch.float32,
) -> dict[str, Statistics]:  # fmt: skip
    """Mean and variance of every BN that takes the batch's, by layer name, averaged over `batches`.

    `source` is asked for the inputs of the deploy form `net` by number: 0, 1, ...; then `step` is called.
    InputError for statistics that are no finite numbers.
    """
    tops = {layer.name: statistics_tops(layer.name) for layer in learning_layers(net)}
    model = Net(statistics_net(net), weights).to(device, dtype)
    sums = {top: np.zeros(()) for pair in tops.values() for top in pair}
    inputs: dict[str, Any] = {}
    with torch.no_grad():
        for number in range(batches):
            inputs = {name: blob for name, blob in source(number).items() if name in model.inputs}
            found = model(keep=list(sums), **inputs)
            sums = {top: total + found[top].double().cpu().numpy().ravel() for top, total in sums.items()}
            _check_finite(tops, sums, number)
            step()
    layers = model.shapes({name: tuple(blob.shape) for name, blob in inputs.items()}).layers
    return {
        name: Statistics(sums[mean] / batches, sums[variance] / batches, _count(layers[name].bottoms[0]))
        for name, (mean, variance) in tops.items()
    }


def _check_finite(tops: Mapping[str, tuple[str, str]], sums: Mapping[str, np.ndarray], number: int) -> None:
    for layer, pair in tops.items():
        if not all(np.isfinite(sums[top]).all() for top in pair):
            raise InputError(f"layer {layer}", f"NaN or infinite statistics in batch {number}", "numbers",
                             "look for NaN in the data and the weights")  # fmt: skip


def deploy_form(net: NetParameter, side: int) -> NetParameter:
    """The deploy form of a net, its pictures side x side where its data layer says no crop."""
    work, shapes = NetParameter(), {}  # type: NetParameter, dict[str, tuple[int, ...]]
    work.CopyFrom(net)
    for layer in work.layer:
        if layer.type == "BN":
            del layer.top[1:]  # statistics are no outputs
        if not layer.bottom and layer.type != "Input" and layer.top:
            crop = layer.transform_param.crop_size or side
            shapes[layer.top[0]] = (1, 3, crop, crop)
    return deploy_net(work, shapes)


def arrays_source(arrays: Mapping[str, np.ndarray], batch: int, most: int) -> tuple[Source, int]:
    """Batches of `batch` items from arrays N x ... by input name, and how many there are, `most` or fewer.

    InputError where they do not hold one.
    """
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        found = ", ".join(f"{count} of {name}" for name, count in counts.items()) or "none"
        raise InputError("arrays", found, "as many items of each input")
    held = min(counts.values()) // batch
    if not held:
        raise InputError("arrays", f"{min(counts.values())} items", f"a batch of {batch}", "lower --batch")

    def source(number: int) -> Batch:
        return {name: array[number * batch : (number + 1) * batch] for name, array in arrays.items()}

    return source, min(held, most)


def data_source(net: NetParameter, folder: Path, batch: int, side: int) -> Source:
    """Batches as the released net draws them, from a folder of crops and lists (`fcn data deconvnet`).

    The data layer is that of `net`, or the released one for crops of `side` where it has none. FileError and
    FormatError as its lists are read; NetError for another kind of data layer.
    """
    own = [layer for layer in net.layer if not layer.bottom and layer.type != "Input"]
    alone = NetParameter()
    layer: LayerParameter = alone.layer.add()
    layer.CopyFrom(own[0] if own else make_net("deconvnet", "statistics", (side, side)).layer[0])
    if layer.type in WORDS:
        p, lists = layer.image_data_param, Path(layer.image_data_param.source)
        p.source, p.root_folder = str(folder / lists.parent.name / lists.name), str(folder.resolve())
        p.batch_size = batch
    return net_source(alone, folder, phase="TEST")


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) // shape[1]


def _sample(net: NetParameter, source: Source | None) -> dict[str, Any]:
    model = Net(net, seed=0)
    if source is not None:
        return {name: blob[:CHECKED] for name, blob in source(0).items() if name in model.inputs}
    shapes, draw = model.shapes().blobs, np.random.default_rng(0)
    return {name: draw.normal(0, 50, shapes[name]).astype(np.float32) for name in model.inputs}


def _outputs(net: NetParameter, weights: Weights, inputs: dict[str, Any]) -> list[np.ndarray]:
    # in float64: what 29 layers make of rounding in float32 can be more than what the merging does
    with torch.no_grad():
        return [blob.numpy() for blob in Net(net, weights).double()(**inputs).values()]
