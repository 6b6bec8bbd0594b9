"""The benchmark of the papers' timings runs and reckons rightly; what it times is nobody's business here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from reproduce.nets import Form
from reproduce.published.claims import load_claims

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import published_timings as timings  # noqa: E402


def case(forward: float, backward: float = 0.0, gflop: float = 1.0) -> dict[str, Any]:
    return {
        "forward": {"ours": {"median_ms": forward}, "plain": {"median_ms": 3 * forward}},
        "backward": {"median_ms": backward},
        "gflop": {"plain": gflop, "executed": gflop / 2},
    }


# section 3.1 as printed, in milliseconds
PRINTED = {"batch": case(120, 240, 144.9), "single": case(5.4), "map": case(22, 37, 18.6)}


def test_the_papers_own_numbers_give_the_papers_ratios() -> None:
    found = timings.naive(PRINTED)
    assert found["forward"] == pytest.approx(5.45, abs=0.005)  # the derived claims F15.S31-09 to 13
    assert found["backward"] == pytest.approx(6.49, abs=0.005)
    assert found["one_by_one"] == pytest.approx(24.5, abs=0.05)
    assert found["break_even_forward"] == pytest.approx(0.183, abs=0.0005)
    assert found["break_even_both"] == pytest.approx(0.164, abs=0.0005)


def test_a_claim_is_set_beside_ours() -> None:
    cases = {name: case(100, gflop=362) for name in timings.CASES} | PRINTED
    found = timings.published(cases)
    assert found["F15.S31-01"]["ours_ms"] == 1.2  # of the batch of 100, for one
    assert found["F15.S31-05"]["ours_ms"] == 2.4
    table_3 = found["F15.T3-07"]
    assert table_3["published_over_ours"] == 1.75
    assert table_3["fraction_then"] == pytest.approx(362e9 / 0.175 / 4.29e12, abs=0.0005)
    assert found["F15.S5-05"]["published_ms"] == 200  # printed in seconds
    assert "fraction_then" not in found["F16.T1-08"]  # another card
    assert set(found) <= set(load_claims())


def test_it_runs_at_a_small_width(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        name: timings.Case(one.net, 100 if one.side == 500 else one.side, one.claims, one.backward,
                           min(one.batch, 2), one.cut, one.blob)
        for name, one in timings.CASES.items() if name in ("fcn-8s", "batch", "single")
    }  # fmt: skip
    small["map"] = timings.Case("caffenet", 260, ("F15.S31-02",), ("F15.S31-06",), cut=True, blob="fc8")
    monkeypatch.setattr(timings, "CASES", small)
    monkeypatch.setattr(timings.Bench, "matrix_rate", lambda self: 1e9)
    result = timings.run(repeats=1, clock="cpu", form=Form(32))
    assert result["cases"]["map"]["map"] == "2x2"
    assert result["cases"]["fcn-8s"]["gflop"]["executed"] < result["cases"]["fcn-8s"]["gflop"]["plain"]
    assert {"load", "matrix_gflop_per_s", "naive", "claims", "threads", "device"} <= set(result)


def test_the_committed_result_is_of_the_published_widths() -> None:
    result = json.loads((ROOT / "reproduce/published/results/published_timings.json").read_text())
    assert result["narrow"] == 1
    assert result["repeats"] >= 5
    assert set(result["claims"]) == {
        claim for one in timings.CASES.values() for claim in (*one.claims, *one.backward)
    }


def test_the_page_says_what_was_measured() -> None:
    result = json.loads((ROOT / "reproduce/published/results/published_timings.json").read_text())
    page = (ROOT / "docs/published-timings.md").read_text()
    assert all(line in page for line in timings.table(result))
    found = result["naive"]
    assert f"{found['forward']:.1f} times forward and {found['backward']:.1f} times backward" in page
    assert f"here it is {found['one_by_one']:.1f}:" in page
    assert f"the share {found['break_even_both']:.2f} of them" in page
