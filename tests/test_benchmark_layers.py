"""The benchmark of layers runs, compares what it times, and judges itself rightly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import layers

from reproduce.layers import LAYERS

LIMITED = ("Convolution", "Pooling", "LRN", "ReLU", "SoftmaxWithLoss")
MOVERS = {  # nothing to compare: no computing, or none that is the layer's own
    "BatchReindex", "DummyData", "Filter", "HDF5Output", "InfogainLoss", "LSTMUnit",
    "MultinomialLogisticLoss", "Parameter", "RNN", "Reshape", "Silence", "Slice", "Split",
}  # fmt: skip


def test_every_layer_agrees_with_the_plain_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LEAST_S", 0.0)
    small = {n: c for n, c in layers.CASES.items() if not any(w in n for w in ("lrn", "map", "11x11"))}
    monkeypatch.setattr(layers, "CASES", small)
    result = layers.run(1, "wall")
    assert set(result["layers"]) == set(small) and result["net"]["forward_ms"] > 0
    for name, row in result["layers"].items():
        assert row["forward_ms"] > 0 and ("both_ms" in row) == small[name].backward


def test_the_cases_cover_the_layers_that_compute() -> None:
    assert {case.kind for case in layers.CASES.values()} == set(LAYERS) - MOVERS
    assert {case.kind for case in layers.CASES.values() if case.limited} == set(LIMITED)


def test_a_missed_limit_is_named() -> None:
    rows = {name: {"forward_ratio": 1.0, "both_ratio": 1.0} for name in layers.CASES}
    assert layers.missed({"layers": rows}) == []
    slow = {"forward_ratio": 1.0, "both_ratio": 1.2}
    assert layers.missed({"layers": rows | {"relu": slow, "tanh": slow}}) == [
        "relu: both 1.2 times plain PyTorch, limit 1.1"
    ]
