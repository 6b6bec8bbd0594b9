"""The committed results of DeconvNet's benchmarks, and the page that quotes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
ROWS = {
    "single pass": "DeconvNet, the canvas as one crop",
    "max": "windows, max",
    "sum": "windows, sum",
    "mean": "windows, mean",
    "released": "windows, released rules",
    "FCN-8s": "FCN-8s alone",
    "mean-probability": "ensemble of max and FCN-8s, mean of probabilities",
    "product-scores": "the same, product of scores (released)",
}


@pytest.mark.parametrize("system", ROWS)
def test_the_page_says_what_was_measured_on_digits(system: str) -> None:
    result = json.loads((ROOT / "reproduce/published/results/deconvnet_digits.json").read_text())
    without, after = ([row["mean_iu"] for row in result["table"]
                       if (row["system"], row["crf"]) == (system, crf)] for crf in (False, True))  # fmt: skip
    page = (ROOT / "docs/deconvnet-use.md").read_text()
    assert f"| {ROWS[system]} | {without[0]:.3f} | {after[0]:.3f} |" in page
    assert f"{result['iterations']['stage1']} and {result['iterations']['stage2']} of them" in page


class Canvases:
    """Two grey canvases of ground."""

    ids = ("a", "b")

    def image(self, identity: str) -> np.ndarray:
        return np.full((24, 24, 3), 128, np.uint8)

    def label(self, identity: str) -> np.ndarray:
        return np.zeros((24, 24), np.uint8)


def test_systems_are_scored_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("pydensecrf", reason="needs the extra [crf]")
    import deconvnet_digits as benchmark

    data: Any = Canvases()
    right = np.zeros((11, 24, 24), np.float32)
    right[0] = 5
    wrong = right[::-1].copy()
    ways: Any = {
        "single pass": lambda image: wrong,
        "max": lambda image: right,
        "FCN-8s": lambda image: right,
    }
    found = {(row["system"], row["crf"]): row["pixel_accuracy"] for row in benchmark.evaluate(ways, data)}
    assert found == {(name, crf): float(name != "single pass") for crf in (False, True)
                     for name in (*ways, "product-scores", "mean-probability")}  # fmt: skip
    benchmark.draw(ways, data, tmp_path / "a.png", rows=2)
    assert Image.open(tmp_path / "a.png").width > 800
