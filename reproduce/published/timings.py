"""Committed timings: what `benchmarks/published_timings.py` measured of the claims, and where.

Any JSON file of `results/` (or given by `--results`) that has `claims` is one of them. Its keys, of which the
benchmark writes more:

  device, date, versions     where and when
  narrow                     1: published widths; other widths say nothing of the claims and are refused
  clock, threads             `wall` or `cpu`
  claims     id -> `ours_ms`, and what was run: `case`, `pass`
  naive      ratios of one map to 100 crops, of which `NAIVE` says which claim each is about
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from caffe_weights.errors import FormatError
from caffe_weights.files import PathLike, open_input
from reproduce.published.claims import Claim

SECONDS = {"ms": 1e-3, "s": 1.0}
NAIVE = {"F15.S31-04": "forward", "F15.S31-08": "one_by_one", "F15.S43-16": "break_even_both"}
MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class Timing:
    """One measurement for a claim: `value` in `unit` (ms, or "" for a ratio), of `case` on `device`."""

    claim: str
    value: float
    unit: str
    case: str
    device: str
    date: str
    clock: str

    @property
    def words(self) -> str:
        """What was measured where and when."""
        clock = ", processor time of one thread" if self.clock == "cpu" else ""
        return f"{self.case} on {self.device}{clock}, {self.date}"

    def value_for(self, claim: Claim) -> float:
        """The value in the claim's unit."""
        return self.value * SECONDS["ms"] / SECONDS[time_unit(claim)] if self.unit else self.value


def committed_timings() -> list[Timing]:
    """All timings that ship with the package, oldest first."""
    found: list[Timing] = []
    for entry in sorted((files("reproduce.published") / "results").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".json"):
            result = json.loads(entry.read_text(encoding="utf-8"))
            found += _timings(result, entry.name) if "claims" in result else []
    return sorted(found, key=lambda timing: timing.date)


def read_timings(path: PathLike) -> list[Timing]:
    """The timings of a file. FileError; FormatError for what is no result of the benchmark."""
    with open_input(path) as stream:
        data = stream.read(MOST_BYTES)
    try:
        result = json.loads(data)
    except (ValueError, RecursionError):
        result = None
    if not isinstance(result, dict) or not isinstance(result.get("claims"), dict):
        raise FormatError(str(path), "no timings", "what benchmarks/published_timings.py writes")
    return list(_timings(result, str(path)))


def time_unit(claim: Claim) -> str:
    """`ms` or `s` for a claim of a time, "" for another."""
    match = re.match(r"(ms|s)\b", claim.unit) or re.search(r"\b(ms|s)$", claim.value)
    return match[1] if match else ""


def ratio_words(claim: Claim, value: float) -> str:
    """How the printed time compares with ours, "" where it is no time or not printed as a number."""
    if not time_unit(claim) or len(claim.numbers) != 1 or value <= 0:
        return ""
    ratio = claim.number / value
    return f"{ratio:.3g} times faster" if ratio >= 1 else f"{1 / ratio:.3g} times slower"


def latest(timings: Iterable[Timing]) -> dict[str, list[Timing]]:
    """By claim, the last measurement of each device, in the order of `timings`."""
    found: dict[str, dict[str, Timing]] = {}
    for timing in timings:
        by_device = found.setdefault(timing.claim, {})
        by_device.pop(timing.device, None)
        by_device[timing.device] = timing
    return {claim: list(by_device.values()) for claim, by_device in found.items()}


def _timings(result: Mapping[str, Any], name: str) -> Iterator[Timing]:
    if result.get("narrow", 1) != 1:
        raise FormatError(name, f"nets narrowed by {result['narrow']}", "timings of the published widths")
    try:
        place = (str(result["device"]), str(result["date"]), str(result.get("clock", "wall")))
        for claim, row in result["claims"].items():
            yield Timing(claim, float(row["ours_ms"]), "ms", f"{row['case']} {row['pass']}", *place)
        naive = result.get("naive", {})
        for claim, key in NAIVE.items():
            if key in naive:
                yield Timing(claim, float(naive[key]), "", f"100 crops and one map, {key}", *place)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(name, f"no good timings ({error!r})", "what the benchmark writes") from None
