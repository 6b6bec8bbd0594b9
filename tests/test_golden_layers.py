"""Every layer against what BVLC Caffe 1.0 computed, through the runtime's public interface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_weights.upgrade import load_net
from reproduce.net import Net
from reproduce.tolerances import CONV, POINTWISE, worst_difference

# Types whose tops are moved, chosen or counted: equality. Masks of pooling are too, see `tolerance`.
EXACT = {
    "Accuracy",
    "ArgMax",
    "BatchReindex",
    "Clip",
    "Concat",
    "Crop",
    "DummyData",
    "Filter",
    "Flatten",
    "Im2col",
    "Parameter",
    "Reshape",
    "Slice",
    "Split",
    "Threshold",
    "Tile",
}
# Types that sum many products, or whose exponentials and powers are another library's.
SUMS = {
    "BatchNorm",
    "Convolution",
    "Deconvolution",
    "Embed",
    "Exp",
    "InfogainLoss",
    "InnerProduct",
    "LRN",
    "LSTM",
    "LSTMUnit",
    "Log",
    "MVN",
    "MultinomialLogisticLoss",
    "Power",
    "RNN",
    "Reduction",
    "Scale",
    "Softmax",
    "SoftmaxWithLoss",
}


@pytest.mark.goldens("layers/*.npz")
def test_golden_layer_forward(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(golden, monkeypatch)
    tops = case.net(keep=list(case.group("out")), **case.inputs)
    if case.meta.get("statistics_only"):
        compare_statistics(case, tops)
        return
    for name, want in case.group("out").items():
        check(tops[name], want, case.tolerance(name), name)
    for name, want in case.group("param_after").items():
        check(case.parameter(name), want, CONV, f"{name} after the pass")


@pytest.mark.goldens("layers/*.npz")
def test_golden_layer_backward(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of the sum of tops times `top_diff`; a layer without backward in Caffe has none stored."""
    case = Case(golden, monkeypatch)
    wanted = case.group("in_diff") | case.group("param_diff")
    assert bool(wanted) == case.meta["backward"]
    if case.meta.get("statistics_only"):
        return  # the forward test has compared mask and scale of both directions
    tops = case.net(keep=list(case.group("out")), **case.inputs)
    total = sum(
        ((tops[name] * torch.from_numpy(d)).sum() for name, d in case.group("top_diff").items()),
        torch.zeros(()),
    )
    leaves = [case.inputs[name] if name in case.inputs else case.parameter(name) for name in wanted]
    if total.requires_grad:
        total.backward()
    for name, leaf in zip(wanted, leaves, strict=True):
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        check(gradient, wanted[name], CONV, f"gradient of {name}")


class Case:
    """One golden: its net with parameters set, its inputs as leaves."""

    def __init__(self, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(golden.parent)  # a matrix of InfogainLoss is named relative to it
        self.stored = np.load(golden)
        self.meta: dict[str, Any] = json.loads(str(self.stored["meta"]))
        self.net = Net(load_net(golden.with_suffix(".prototxt")), phase=self.meta["phase"])
        with torch.no_grad():
            for name, value in self.group("param").items():
                self.parameter(name).copy_(torch.from_numpy(value))
        self.inputs = {name: torch.from_numpy(x).requires_grad_() for name, x in self.group("in").items()}

    def group(self, name: str) -> dict[str, np.ndarray]:
        """What is stored under `name/`."""
        return {
            key[len(name) + 1 :]: self.stored[key] for key in self.stored.files if key.startswith(name + "/")
        }

    def parameter(self, name: str) -> Tensor:
        layer, _, index = name.rpartition("/")
        return self.net.params[layer][int(index)]

    def tolerance(self, top: str) -> float:
        kind = self.meta["type"]
        if kind in EXACT or (kind == "Pooling" and top in self.meta["no_top_diff"]):
            return 0.0
        return CONV if kind in SUMS else POINTWISE


def check(got: Tensor, want: np.ndarray, tolerance: float, what: str) -> None:
    worst, place = worst_difference(got.detach().numpy(), want)
    assert worst <= tolerance, f"{what}: {worst:.2g} at {place}, tolerance {tolerance:g}"


def compare_statistics(case: Case, tops: dict[str, Tensor]) -> None:
    """Dropout in training: values are scaled exactly or zero, as often as Caffe's, forward as backward."""
    (x,), (y,) = case.inputs.values(), tops.values()
    (slope,) = torch.autograd.grad(y.sum(), x)
    kept = slope != 0
    scale = torch.from_numpy(case.group("stats")["scale"])
    assert torch.equal(slope[kept], scale.expand(int(kept.sum())))
    assert torch.equal(y, x * slope)
    (name,) = tops
    draws = torch.stack([case.net(**case.inputs)[name] != 0 for _ in range(100)])
    share = 1 / float(scale)
    error = 5 * np.sqrt(share * (1 - share) / draws.numel())
    assert abs(float(draws.float().mean()) - share) < error
    assert abs(float(case.group("stats")["kept_fraction"]) - share) < error
