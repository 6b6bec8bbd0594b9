"""The inference benchmark runs at a small width and judges itself rightly; its timings are not judged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import inference

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@LINUX
@pytest.mark.slow
def test_ways_agree_at_a_small_width() -> None:
    arguments = "--nets voc-fcn8s --sizes 90x70 --mix 60x50 --repeats 1 --rounds 1 --threads 1 --narrow 32"
    options = inference.parse([*arguments.split(), "--peers", "ours,whole,port,caffe", "--caffe", ""])
    result = inference.run(options)
    assert result["skipped"].keys() == {"caffe"}
    found = result["nets"]["voc-fcn8s"]
    assert found["sizes"]["90x70"].keys() == found["mix"].keys() == {"ours", "whole", "port"}
    assert found["compared"]["90x70"]["ours"] < 2e-5  # the run itself asserts that, and equal labels
    assert found["gflop"]["90x70"]["ours"] < found["gflop"]["90x70"]["whole"]


def test_a_wrong_score_is_not_measured(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    score = np.random.default_rng(0).standard_normal((1, 4, 6, 5), np.float32)
    np.save(tmp_path / "whole 6x5.npy", score)
    np.save(tmp_path / "ours 6x5.npy", score * (1 + 1e-3))
    with pytest.raises(AssertionError, match="scores differ by 0.001"):
        inference.compare(tmp_path, ["ours", "whole"], (6, 5))


def test_limits_are_judged() -> None:
    row = {"warm": {"median_ms": 1000.0}, "over_ours": 1.0}
    result = {
        "sizes": {
            "500x500": {"ours": row, "whole": row | {"over_ours": 1.5}, "opencv": row | {"over_ours": 1.9}}
        },
        "gflop": {"500x500": {"ours": 250.0}},
        "matrix_gflop_s": 300.0,
        "mix": {"whole": {"over_ours": 1.4}},
        "peak_gb": {"ours": 1.3},
    }
    judged = inference.judge(result)
    assert judged["500x500 fraction of the matrix rate"] == pytest.approx(0.833, abs=1e-3)
    assert inference.missed(judged) == [
        "500x500 opencv: 1.9, limit 2.0",
        "peak memory in GB: 1.3, limit 1.2",
    ]
