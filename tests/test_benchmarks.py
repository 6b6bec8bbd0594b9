"""The benchmark scripts run and judge themselves rightly; their timings are nobody's business here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import conversion  # noqa: E402
import frame  # noqa: E402
import measure  # noqa: E402

from reproduce.nets import Form  # noqa: E402
from reproduce.tolerances import GRADIENT  # noqa: E402

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")


@LINUX
def test_conversion_runs_at_a_small_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "WIDTHS", ((4, 2), (8, 3)))
    monkeypatch.setattr(conversion, "FULLY_CONNECTED", (("fc6", 16, 72),))
    result = conversion.run(tmp_path, repeats=1)
    convolutions = 4 * 3 * 9 + 4 + 4 * 4 * 9 + 4 + 8 * 4 * 9 + 8 + 2 * (8 * 8 * 9 + 8)
    assert result["parameters"] == convolutions + 16 * 72 + 16
    assert {"ours_over_copy", "usual_over_ours", "ours_anonymous_mb", "inspect_ms"} <= set(result)


def test_a_missed_limit_is_named() -> None:
    good = {"ours_over_copy": 1.2, "usual_over_ours": 3.0, "ours_anonymous_mb": 20.0, "inspect_ms": 300.0}
    assert conversion.missed(good) == []
    assert conversion.missed(good | {"ours_over_copy": 1.6}) == ["ours_over_copy: 1.6, limit 1.5"]
    assert conversion.missed(good | {"usual_over_ours": 1.9}) == ["usual_over_ours: 1.9, limit 2.0"]


def test_the_vgg16_sized_model_has_vgg16s_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {}
    channels = 3
    for stage, (width, depth) in enumerate(conversion.WIDTHS, 1):
        for i in range(depth):
            shapes[stage, i] = width * (9 * channels + 1)
            channels = width
    fully_connected = sum(outputs * (inputs + 1) for _, outputs, inputs in conversion.FULLY_CONNECTED)
    assert sum(shapes.values()) + fully_connected == 138_357_544  # the published count


def test_the_shortcut_is_measured_at_a_small_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "SIZES", ((40, 50),))
    monkeypatch.setattr(frame, "TRAINING_SIZE", (40, 50))
    result = frame.run(1, Form(32), "cpu")
    size = result["sizes"]["40x50"]
    assert {"with", "first", "without", "without_over_with", "gflop"} <= set(size)
    assert size["pixels"] == 2000
    assert size["gflop"]["regions"] < size["gflop"]["without"]
    assert result["training"]["median_gradient_difference"] < GRADIENT


def test_a_shortcut_that_saves_too_little_is_named() -> None:
    sizes = {name: {"without_over_with": limit} for name, limit in frame.LIMITS.items()}
    assert frame.missed({"sizes": sizes}) == []
    slow = {"sizes": {**sizes, "500x500": {"without_over_with": 1.2}}}
    assert frame.missed(slow) == ["500x500: 1.2 times faster, limit 1.4"]


@LINUX
def test_anonymous_memory_is_seen() -> None:
    with measure.AnonymousPeak() as peak:
        block = bytearray(b"x" * (64 << 20))
    assert peak.peak_bytes - peak.before_bytes > 60 << 20
    del block


def test_results_say_where_and_when(tmp_path: Path) -> None:
    path = measure.write_result("x", {"value": 1}, tmp_path)
    text = path.read_text()
    assert '"date"' in text
    assert '"machine"' in text
    assert '"torch"' in text
    assert '"value": 1' in text


def test_the_readme_says_what_was_measured() -> None:
    result = json.loads((ROOT / "reproduce/published/results/conversion.json").read_text())
    readme = (ROOT / "README.md").read_text()
    ours, usual = f"{result['ours_anonymous_mb']:.0f} MB", f"{result['usual_anonymous_mb']:.0f} MB"
    assert f"| `convert-weights` | {result['ours']['median_ms']:.0f} | {ours} |" in readme
    assert f"| copying the file | {result['copy']['median_ms']:.0f} | |" in readme
    assert f"save | {result['usual']['median_ms']:.0f} | {usual} |" in readme
    assert f"interpreter included | {result['inspect']['median_ms']:.0f} | |" in readme
    assert result["missed"] == []
