"""The benchmark of the search runs from end to end, and draws what it compares with as it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import search_digits as benchmark

from reproduce.nets.architecture import PUBLISHED, Architecture
from reproduce.search.space import paths


def test_random_architectures_are_of_like_size_and_differ() -> None:
    like = Architecture((4, 8, 8, 8), PUBLISHED.cell[:2], benchmark.FINAL_FILTERS)
    found = benchmark.of_like_size(like, 3, 1)
    assert len({*found, like}) == 4 and found == benchmark.of_like_size(like, 3, 1)
    for other in found:
        assert (len(other.strides), len(other.cell), other.filters) == (4, 2, like.filters)
        assert other.strides in set(paths(4)) and all(a[0] != b[0] for a, b in other.cell)
        assert benchmark.values(other) == pytest.approx(benchmark.values(like), rel=0.2)


@pytest.mark.slow
def test_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="its digits are drawn")
    monkeypatch.setattr(benchmark, "RANDOM_NETS", 1)
    result = benchmark.run([3], 2, 4, {"train": 24, "test": 6})
    (row,) = result["seeds"]
    assert row["search_processor_seconds"] > 0 and row["alpha_moved"] > 0 and row["beta_moved"] > 0
    assert 0 <= row["decoded"]["mean_iu"] <= 1 and len(row["random"]) == 1
    assert result["decoded_mean_iu"] == row["decoded"]["mean_iu"]
    assert result["random_mean_iu"] == row["random"][0]["mean_iu"]
