"""Whether a net starts with its predecessor's predictions: both run on one picture and compared.

What must be equal. From a classifier: its features, the blob that the first score layer reads, with the
FCN's padding of the first convolution taken back to the classifier's, at the classifier's own input size.
From an FCN: every coarse score map that its last up-sampling reads, which the new net has under the same
name; and where a skip was added, that it adds nothing yet. What cannot be equal: pixel scores of 32s and 16s
nets, since two bilinear steps interpolate the same coarse scores otherwise than one; the difference is
measured and told, with the share of pixels whose label stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.weights import Weights
from reproduce.net import Net
from reproduce.nets import CHANNELS, find
from reproduce.recognition import fitted, natural_shape
from reproduce.starting import WIDENED, Start
from reproduce.tolerances import FULL, worst_difference
from surgery.deploy import deploy_net, subnet
from surgery.grid import Graph

SIZE = (64, 64)  # of the picture for FCNs; padding makes it 264 x 264
SEED = 0
MEAN = 115.0

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Check:
    """One comparison. `limit` None: told, not judged. `worst` is relative; `same_labels` a fraction."""

    what: str
    worst: float
    limit: float | None = None
    same_labels: float | None = None

    @property
    def good(self) -> bool:
        """Whether the difference is within the limit."""
        return self.limit is None or self.worst <= self.limit

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "good": self.good}

    def __str__(self) -> str:
        how = "bit for bit" if not self.worst else f"to {self.worst:.1e} of its largest value"
        if self.limit is None:
            how = f"apart by {self.worst:.1e} of the largest value" if self.worst else "bit for bit equal"
        labels = "" if self.same_labels is None else f"; {self.same_labels:.2%} of pixels keep their label"
        verdict = "" if self.good else f"; wanted {self.limit:.0e}"
        return f"{self.what}: {how}{labels}{verdict}"


def check_start(start: Start, sources: Sequence[Weights]) -> list[Check]:
    """Compare the start with each of its predecessors."""
    name, predecessors = start.report.net, start.report.predecessors
    data = find(name).data
    assert data is not None
    streams = data.inputs if len(sources) > 1 else ("",)
    checks: list[Check] = []
    for predecessor, weights, suffix in zip(predecessors, sources, streams, strict=True):
        if find(predecessor).data is None:
            checks.append(_check_features(start, predecessor, weights))
        else:
            checks += _check_scores(start, predecessor, weights, suffix)
    return checks


def _check_features(start: Start, classifier: str, weights: Weights) -> Check:
    old = fitted(classifier, weights)
    size = tuple(old.layer[0].input_param.shape[0].dim[2:])
    new = deploy_net(start.net, _input_shapes(start.report.net, size), keep_dropout=False)
    blob = next(layer.bottom[0] for layer in new.layer if layer.name.startswith("score"))
    new, old = _up_to(new, blob), _up_to(old, blob)
    _take_pad(new, old)
    picture = _picture(size, {top: CHANNELS[top] for top in find(start.report.net).data.inputs})  # type: ignore
    want = _run(old, _flattened(old, weights), {"data": _colours(picture)}, [blob])[blob]
    got = _run(new, start.weights, picture, [blob])[blob].reshape(want.shape)
    what = f"features {blob} of {classifier} at {size[0]}x{size[1]}"
    return Check(what, worst_difference(got, want)[0], FULL)


def _check_scores(start: Start, predecessor: str, weights: Weights, suffix: str) -> list[Check]:
    name = start.report.net
    old = fitted(predecessor, weights, SIZE)
    new = deploy_net(start.net, _input_shapes(name, SIZE), keep_dropout=False)
    pictures = _picture(SIZE, {top: CHANNELS[top] for top in find(name).data.inputs})  # type: ignore
    theirs = {top: pictures[suffix or top] for top in find(predecessor).data.inputs}  # type: ignore
    blobs = _blobs(new)
    pairs = [(blob, blob + suffix) for blob in _coarse(old) if blob + suffix in blobs]
    finals = [blob for blob in _finals(old) if pairs and blob in blobs and not suffix]
    pairs = pairs or [(_deepest_common(old, new),) * 2]
    want = _run(old, weights, theirs, [*(a for a, _ in pairs), *finals])
    added = _additions(new, old) if not suffix else []
    got = _run(new, start.weights, pictures, [*(b for _, b in pairs), *finals, *sum(added, ())])
    checks = [_score_check(f"{b} of {predecessor}", got[b], want[a]) for a, b in pairs]
    for fused, up in added:
        worst = worst_difference(got[fused], got[up])[0]
        checks.append(Check(f"{fused} is {up}: the new skip adds nothing", worst, 0.0))
    return checks + [_pixel_check(blob, predecessor, got[blob], want[blob]) for blob in finals]


def _score_check(what: str, got: np.ndarray, want: np.ndarray) -> Check:
    common = min(got.shape[1], want.shape[1])
    if common < got.shape[1]:
        what += f", its {common} classes"
    if not want.any():
        what += " (all zero: this says nothing)"
    return Check(what, worst_difference(got[:, :common], want[:, :common])[0], FULL)


def _pixel_check(blob: str, predecessor: str, got: np.ndarray, want: np.ndarray) -> Check:
    got = got[:, : want.shape[1]]
    same = float((got.argmax(1) == want.argmax(1)).mean())
    what = f"pixel scores {blob} against {predecessor}'s, which are interpolated otherwise"
    worst = worst_difference(got, want, channels=False)[0]
    return Check(what if worst else f"pixel scores {blob} against {predecessor}'s", worst, None, same)


def _coarse(net: NetParameter) -> list[str]:
    """What the up-sampling layer in front of each final crop reads."""
    return [_maker(net, _maker(net, final).bottom[0]).bottom[0] for final in _finals(net)]


def _finals(net: NetParameter) -> list[str]:
    graph = Graph(net)
    read = {graph.name(node) for bottoms in graph.bottoms for node in bottoms}
    return [layer.top[0] for layer in net.layer if layer.type == "Crop" and layer.top[0] not in read]


def _additions(new: NetParameter, old: NetParameter) -> list[tuple[str, str]]:
    """Sums that only the new net has, each with the up-sampled map that the skip is added to."""
    had = _blobs(old)
    found = []
    for layer in new.layer:
        if layer.type == "Eltwise" and layer.name.startswith("fuse") and layer.top[0] not in had:
            up = next(b for b in layer.bottom if _maker(new, b).type == "Deconvolution"
                      or _maker(new, _maker(new, b).bottom[0]).type == "Deconvolution")  # fmt: skip
            found.append((layer.top[0], up))
    return found


def _deepest_common(old: NetParameter, new: NetParameter) -> str:
    """The last blob of the new net's trunk that the old net has too."""
    had = _blobs(old)
    return [layer.top[0] for layer in new.layer if layer.top[0] in had and layer.type != "Crop"][-1]


def _maker(net: NetParameter, blob: str) -> Any:
    return next(layer for layer in reversed(net.layer) if blob in layer.top)


def _blobs(net: NetParameter) -> set[str]:
    return {top for layer in net.layer for top in layer.top}


def _up_to(net: NetParameter, blob: str) -> NetParameter:
    return subnet(net, [Graph(net).node(blob)])


def _take_pad(new: NetParameter, old: NetParameter) -> None:
    """Give the first convolution the padding that it has in the classifier."""
    first = next(layer for layer in new.layer if layer.type == "Convolution")
    theirs = next(x for x in old.layer if x.name == WIDENED.get(first.name, first.name))
    first.convolution_param.pad[:] = theirs.convolution_param.pad


def _input_shapes(name: str, size: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    data = find(name).data
    assert data is not None
    return {top: (1, CHANNELS[top], *size) for top in data.inputs}


def _picture(size: tuple[int, ...], channels: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Smooth noise in 0..255 minus a mean for each input; depth is zero, so that colour alone counts."""
    rng = np.random.default_rng(SEED)
    coarse = rng.uniform(0, 255, (1, 3, -(-size[0] // 8), -(-size[1] // 8)))
    image = np.kron(coarse, np.ones((1, 1, 8, 8)))[:, :, : size[0], : size[1]]
    image = (image + rng.uniform(-20, 20, image.shape) - MEAN).astype(np.float32)
    return {
        top: image if count == 3 else np.zeros((1, 1, *size), np.float32) for top, count in channels.items()
    }


def _colours(picture: Arrays) -> np.ndarray:
    return next(array for array in picture.values() if array.shape[1] == 3)


def _flattened(net: NetParameter, weights: Weights) -> Weights:
    """The classifier's weights as its InnerProducts want them, where the file has convolutions."""
    flat = weights.copy()
    for layer in net.layer:
        if layer.type == "InnerProduct" and layer.name in flat:
            flat[layer.name] = [
                blob.reshape(natural_shape(blob.shape, 2 - i)) for i, blob in enumerate(flat[layer.name])
            ]
    return flat


def _run(net: NetParameter, weights: Weights, arrays: Arrays, keep: Sequence[str]) -> dict[str, np.ndarray]:
    names = {layer.name for layer in net.layer}
    own = Weights({name: blobs for name, blobs in weights.items() if name in names})
    model = Net(net, own, frame=False)
    with torch.no_grad():
        blobs = model(keep=list(dict.fromkeys(keep)), **arrays)
    return {name: blobs[name].numpy() for name in keep}
