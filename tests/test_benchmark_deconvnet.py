"""The committed results of DeconvNet's benchmarks, and the page that quotes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
