"""The growth benchmark and the one table of all: they run, and tell what is missed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

import growth  # noqa: E402


def all_benchmarks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("all_benchmarks", FOLDER / "__main__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_growth_at_a_small_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "available_bytes", lambda: 10**8)
    options = growth.parse(
        ["--sizes", "40x30,3000x3000", "--narrow", "32", "--repeats", "1", "--threads", "1"]
    )
    result = growth.run(options)
    assert result["skipped"].keys() == {"3000x3000"}
    assert result["ways"]["ours"]["40x30"]["gflop"] < result["ways"]["whole"]["40x30"]["gflop"]
    growth.plot(result["ways"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_one_table_reads_every_committed_result() -> None:
    module = all_benchmarks()
    results = FOLDER.parent / "reproduce" / "published" / "results"
    for name, (rows, _) in module.SCRIPTS.items():
        assert (FOLDER / f"{name}.py").exists()
        if (results / f"{name}.json").exists():
            found = rows(json.loads((results / f"{name}.json").read_text()))
            assert found and all(isinstance(value, int | float) for _, value in found), name


def test_failures_and_misses_stand_in_the_table() -> None:
    lines = all_benchmarks().table({
        "growth": {"failed": "Traceback\nRuntimeError: no way"},
        "frame": {"sizes": {"500x500": {"without_over_with": 1.3}}, "missed": ["500x500: 1.3, limit 1.4"]},
    })  # fmt: skip
    assert lines[0].split() == ["growth", "failed:", "RuntimeError:", "no", "way"]
    assert lines[1].endswith("1.300") and lines[2].endswith("missed: 500x500: 1.3, limit 1.4")
