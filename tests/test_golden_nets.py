"""Whole nets against what BVLC Caffe 1.0 computed.

Narrow nets with all layers of the originals, the classifiers cut fully convolutional, and FCN-8s at its
full width; all without the shortcut over the border, which test_golden_frame.py examines. A probe is 64
values, the sum and the norm of a blob's final content; it knows no maximum, so ours serves. An output beyond
the tolerance is judged by the table's other rule: Caffe's own float32 may be as far from float64, as where a
score is a small difference of large terms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from caffe_weights.export import read_weights
from caffe_weights.filtering import insert_splits
from caffe_weights.prototxt import read_net
from caffe_weights.weights import Weights
from reproduce.net import Net
from reproduce.tolerances import FLOAT64_FACTOR, FULL, GRADIENT, NET, worst_difference
from surgery.interpolation import bilinear_weights
from surgery.shapes import infer_shapes
from surgery.transplant import transplant

SURGERY = "nets/*-fullconv.npz"
FULL_WIDTH = "nets/*-full.npz"
BGR_MEAN = np.array([104.00699, 116.66877, 122.67892], np.float32)
LABEL_GAP = 2 * FULL  # labels must be equal where the two best scores are further apart than this


@pytest.mark.goldens("nets/*.caffemodel.gz")
def test_golden_net_outputs(golden: Path) -> None:
    run = Run(golden)
    for name, want in run.group("out").items():
        assert_close(run.blobs[name], want, NET, name, partial(run.exact, name))


@pytest.mark.goldens("nets/*.caffemodel.gz")
def test_golden_net_probes(golden: Path) -> None:
    run = Run(golden)
    blobs = probed(run.stored, "probe")
    assert set(blobs) == set(run.net.blobs)
    for name in blobs:
        check_probe(run.blobs[name], run.stored, f"probe/{name}", NET)


@pytest.mark.goldens("nets/*.caffemodel.gz")
def test_golden_net_layers_and_shapes(golden: Path) -> None:
    """Layers in Caffe's order with its automatic splits, and its parameter shapes."""
    run = Run(golden)
    assert [layer.name for layer in insert_splits(run.net.definition).layer] == run.meta["layers"]
    held = {name: [list(t.shape) for t in tensors] for name, tensors in run.net.params.items()}
    assert held == run.meta["param_shapes"]


@pytest.mark.goldens("nets/*.caffemodel.gz")
def test_golden_net_gradients(golden: Path) -> None:
    """Gradients of the total loss; layers that do not learn have none, and their flag says so."""
    run = Run(golden)
    inputs = {name: torch.from_numpy(x).requires_grad_() for name, x in run.group("in").items()}
    run.net.zero_grad()
    run.net.total_loss(run.net(**inputs)).backward()
    for name in probed(run.stored, "grad"):
        layer, _, index = name.rpartition("/")
        check_probe(gradient(run.net.params[layer][int(index)]), run.stored, f"grad/{name}", GRADIENT)
    for name in probed(run.stored, "grad_in"):
        check_probe(gradient(inputs[name]), run.stored, f"grad_in/{name}", GRADIENT)
    for layer in run.meta["no_gradient"]:
        assert not any(parameter.requires_grad for parameter in run.net.params[layer])


@pytest.mark.goldens(SURGERY)
def test_golden_net_surgery(golden: Path) -> None:
    """The classifier's parameters, coerced, in the convolutional net: at its size and at a larger one."""
    stored = np.load(golden)
    classifier = golden.with_name(golden.name.replace("-fullconv.npz", ".npz"))
    weights = read_weights(str(classifier)[:-4] + ".caffemodel.gz")
    definition = read_net(golden.with_suffix(".prototxt"))
    shapes = {name: layer.params for name, layer in infer_shapes(definition).layers.items() if layer.params}
    cut, _ = transplant(weights, shapes, coerce=True)
    net = Net(definition, cut, frame=False)
    flat = Net.from_prototxt(classifier.with_suffix(".prototxt"), weights=weights, frame=False)
    data, more = np.load(classifier)["in/data"], stored["in/data_large"]
    for runner, given, blob, key in (
        (flat, data, "fc8", "classifier_fc8"),
        (net, data, "fc8", "conv_fc8_native"),
        (net, more, "fc8", "conv_fc8_large"),
        (net, more, "prob", "conv_prob_large"),
    ):
        assert_close(
            forward(runner, keep=[blob], data=given)[blob],
            stored[f"out/{key}"],
            NET,
            key,
            partial(exactly, runner, given, blob),
        )
    large = forward(net, keep=net.blobs, data=more)
    for name in probed(stored, "probe_large"):
        check_probe(large[name], stored, f"probe_large/{name}", NET)


@pytest.mark.slow
@pytest.mark.goldens(FULL_WIDTH)
def test_golden_net_full_width(golden: Path) -> None:
    """All blobs of a net of true width, and its label map wherever the scores leave no doubt."""
    check_full_width(golden, frame=False)


def check_full_width(golden: Path, frame: bool) -> None:
    """Assert so of one net of full width, with the shortcut over the border or without."""
    stored = np.load(golden)
    meta = json.loads(str(stored["meta"]))
    weights = made_weights(golden, stored, meta)
    net = Net.from_prototxt(golden.with_suffix(".prototxt"), weights=weights, frame=frame)
    blobs = forward(net, keep=net.blobs, data=made_input(meta))
    for name in probed(stored, "probe"):
        check_probe(blobs[name], stored, f"probe/{name}", FULL)
    score = blobs["score"].numpy()
    assert_close(blobs["score"][:, :, ::8, ::8], stored["out/score_sub8"], FULL, "score")
    best = np.sort(score[0], axis=0)
    sure = best[-1] - best[-2] > LABEL_GAP * np.abs(score).max()
    labels = np.asarray(Image.open(golden.with_name(golden.stem + "-argmax.png")))
    assert sure.mean() > 0.99
    assert np.array_equal(score[0].argmax(0)[sure], labels[sure])


@pytest.mark.goldens("formats/shared.npz")
def test_golden_format_shared_parameters(golden: Path) -> None:
    """Blobs, and gradients summed over all users of a parameter, in STRICT and PERMISSIVE sharing."""
    stored = np.load(golden)
    for suffix in (".caffemodel", ".caffemodel.h5"):
        net = Net.from_prototxt(golden.with_suffix(".prototxt"), weights=golden.with_suffix(suffix))
        out = net(data=stored["in/data"], target=stored["in/target"], keep=net.blobs)
        for name in net.blobs:
            assert_close(out[name].detach(), stored[f"blob/{name}"], NET, name)
        net.total_loss(out).backward()
        for key in [key for key in stored.files if key.startswith("grad/")]:
            layer, _, index = key.removeprefix("grad/").partition(":")
            shared = gradient(net.slot(layer, int(index)).parameter())
            assert_close(shared.reshape(stored[key].shape), stored[key], GRADIENT, key)


@pytest.mark.goldens("formats/v*.npz")
def test_golden_format_net_runs(golden: Path) -> None:
    """A net of each generation, definition and weights upgraded on reading."""
    stored = np.load(golden)
    net = Net.from_prototxt(golden.with_suffix(".prototxt"), weights=golden.with_suffix(".caffemodel"))
    with torch.no_grad():
        out = net(data=stored["in/data"], keep=net.blobs)
    wanted = [key for key in stored.files if key.startswith(("blob/", "out/"))]
    assert wanted
    for key in wanted:
        assert_close(out[key.partition("/")[2]], stored[key], NET, key)


class Run:
    """One narrow net, its stored results and its blobs for the stored inputs."""

    def __init__(self, golden: Path, frame: bool = False) -> None:
        self.stem = Path(str(golden).removesuffix(".caffemodel.gz"))
        self.stored = np.load(f"{self.stem}.npz")
        self.meta: dict[str, Any] = json.loads(str(self.stored["meta"]))
        self.net, self.blobs = computed(self.stem, torch.float32, frame)

    def group(self, name: str) -> dict[str, np.ndarray]:
        """What is stored under `name/`."""
        return {
            key[len(name) + 1 :]: self.stored[key] for key in self.stored.files if key.startswith(name + "/")
        }

    def exact(self, name: str) -> Tensor:
        """A blob of the same net in float64."""
        return computed(self.stem, torch.float64, False)[1][name]


@lru_cache(maxsize=2)
def computed(stem: Path, dtype: torch.dtype, frame: bool) -> tuple[Net, dict[str, Tensor]]:
    """The net and all its blobs; kept for the next test of the same net."""
    net = Net.from_prototxt(f"{stem}.prototxt", weights=f"{stem}.caffemodel.gz", frame=frame).to(dtype)
    stored = np.load(f"{stem}.npz")
    inputs = {key[3:]: stored[key] for key in stored.files if key.startswith("in/")}
    return net, forward(net, keep=net.blobs, **inputs)


def forward(net: Net, keep: list[str], **inputs: np.ndarray) -> dict[str, Tensor]:
    with torch.no_grad():
        return net(keep=keep, **inputs)


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def exactly(net: Net, data: np.ndarray, blob: str) -> Tensor:
    """A blob of a copy of the net in float64."""
    return forward(deepcopy(net).double(), keep=[blob], data=data)[blob]


def probed(stored: Any, kind: str) -> list[str]:
    """Names of the blobs that have a probe of this kind."""
    return [
        key[len(kind) + 1 : -4] for key in stored.files if key.startswith(kind + "/") and key.endswith("/idx")
    ]


def check_probe(got: Tensor, stored: Any, key: str, tolerance: float) -> None:
    values = got.numpy()
    assert list(values.shape) == stored[f"{key}/shape"].tolist(), key
    largest = max(float(np.abs(values).max()), 1e-7)
    apart = np.abs(values.reshape(-1)[stored[f"{key}/idx"]] - stored[f"{key}/val"]).max() / largest
    assert apart <= tolerance, f"{key}: {apart:.2g}"
    norm = float(stored[f"{key}/norm"])
    assert abs(np.linalg.norm(values.astype(np.float64)) - norm) <= tolerance * max(norm, 1e-7), (
        f"{key}: norm"
    )


def assert_close(
    got: Tensor, want: np.ndarray, tolerance: float, what: str, exact: Callable[[], Tensor] | None = None
) -> None:
    """Within `tolerance` of Caffe's, or no further from `exact`, in float64, than the table grants."""
    values = got.numpy()
    worst, place = worst_difference(values, want)
    if worst <= tolerance:
        return
    assert exact is not None, f"{what}: {worst:.2g} at {place}"
    true = exact().numpy()
    ours, _ = worst_difference(values.astype(np.float64), true)
    theirs, _ = worst_difference(want.astype(np.float64), true)
    assert ours <= FLOAT64_FACTOR * theirs, (
        f"{what}: {worst:.2g} at {place}; from float64 {ours:.2g}, Caffe's {theirs:.2g}"
    )


def made_weights(golden: Path, stored: Any, meta: dict[str, Any]) -> Weights:
    """Parameters by the rule in the goldens' README, checked by the stored hashes before the last step."""
    draw = np.random.RandomState(meta["seed"])
    definition, weights = read_net(golden.with_suffix(".prototxt")), Weights()
    shapes = infer_shapes(definition).layers
    for layer in definition.layer:
        if not shapes[layer.name].params:
            continue
        shape = shapes[layer.name].params[0]
        if layer.type == "Deconvolution":
            blobs = [bilinear_weights(shape)]
        else:
            scale = np.sqrt(2 / np.prod(shape[1:]))
            blobs = [
                (draw.standard_normal(shape) * scale).astype(np.float32),
                (0.01 * draw.standard_normal(shape[0])).astype(np.float32),
            ]
        for i, blob in enumerate(blobs):
            assert hashlib.sha256(blob.tobytes()).hexdigest() == meta["params"][f"{layer.name}/{i}"]["sha256"]
        if f"fix/{layer.name}/gain" in stored.files:
            gain = stored[f"fix/{layer.name}/gain"].astype(np.float32)
            blobs = [
                blobs[0] * gain[:, None, None, None],
                stored[f"fix/{layer.name}/bias"].astype(np.float32),
            ]
        weights[layer.name] = blobs
    return weights


def made_input(meta: dict[str, Any]) -> np.ndarray:
    """The picture by the rule in the goldens' README, (1, 3, 500, 500)."""
    draw = np.random.RandomState(meta["seed"] + 1)
    low = np.floor(draw.random_sample((10, 10, 3)) * 256)
    noise = np.floor(draw.random_sample((500, 500, 3)) * 64)
    image = (np.floor(low.repeat(50, 0).repeat(50, 1) * 0.75) + noise).astype(np.uint8)
    assert hashlib.sha256(image.tobytes()).hexdigest() == meta["image_sha256"]
    return (image.astype(np.float32) - BGR_MEAN).transpose(2, 0, 1)[None]
