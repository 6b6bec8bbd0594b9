"""What a run needs in memory: arithmetic by hand, the limits of systems, the error before the fact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import make_models, refused, run_in

from caffe_weights.errors import NetError
from caffe_weights.prototxt import parse_net
from reproduce import memory
from reproduce.net import Net
from reproduce.nets import Form, make_net

TEXT = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 10 dim: 10 } } }
layer { name: "a" type: "Convolution" bottom: "x" top: "a"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "r" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b" type: "Convolution" bottom: "a" top: "b"
        convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "c" type: "Convolution" bottom: "b" top: "c"
        convolution_param { num_output: 1 kernel_size: 1 weight_filler { type: "xavier" } } }
"""
MAP = 4 * 10 * 10  # bytes of a channel


def spoken(monkeypatch: pytest.MonkeyPatch, free: int | None) -> list[int]:
    """What the checks of later runs find they need, with `free` bytes there."""
    asked: list[int] = []
    check = memory.check_memory

    def noted(inputs: dict[str, tuple[int, ...]], needed: int, device: torch.device) -> None:
        asked.append(needed)
        check(inputs, needed, device)

    monkeypatch.setattr(memory, "available_bytes", lambda device: free)
    monkeypatch.setattr("reproduce.net.check_memory", noted)
    return asked


def test_blobs_that_live_together_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    net, asked = Net(parse_net(TEXT), seed=0), spoken(monkeypatch, None)
    x = torch.zeros(1, 2, 10, 10)
    with torch.no_grad():
        net(x=x)
        net(x=x)  # looked at once
        net(x=x, keep=["a"])
    net(x=x)
    parameters = 4 * (8 * 2 * 9 + 8 + 4 * 8 + 4 + 4 + 1)
    assert asked == [(8 + 4) * MAP, (8 + 4 + 1) * MAP + parameters]


def test_the_shortcut_needs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spoken(monkeypatch, None)
    x = torch.zeros(1, 3, 64, 64)
    for frame in (None, False):
        with torch.no_grad():
            Net(make_net("voc-fcn8s", form=Form(4, 16)), seed=0, frame=frame)(data=x)
    whole = 2 * 4 * 16 * 262 * 262  # conv1_1 and conv1_2, 16 channels each, of 64 + 198 rows
    assert asked[1] >= whole > 2 * asked[0]


def test_too_large_is_said_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken(monkeypatch, 3 * 10**9)
    net = Net(make_net("voc-fcn8s", form=Form(16)), seed=0)
    huge = torch.zeros(1).expand(1, 3, 8000, 6000)  # itself takes no memory
    words = (
        r"^input data of 1 ?x ?3 ?x ?8000 ?x ?6000: the blobs need at least \d+\.\d GB of memory; .*3\.0 GB"
    )
    with torch.no_grad(), pytest.raises(NetError, match=words + ".*smaller image.*--precision.*tiles"):
        net(data=huge)
    with torch.no_grad():
        assert net(data=torch.zeros(1, 3, 20, 20))["score"].shape == (1, 21, 20, 20)


def test_a_command_says_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcn = run_in(make_models(tmp_path), monkeypatch)
    np.save("x.npy", np.zeros((1, 3, 20, 20), np.float32))
    line = ["run", "net.prototxt", "net.caffemodel", "--input", "x.npy", "--out", "out.npz"]
    found = json.loads(fcn(*line, "--json").stdout)
    assert found["peak_memory_bytes"] > 10**7
    spoken(monkeypatch, 100)
    result = fcn(*line, "--force")
    refused(result, "need at least", "at most 0.0 MB, which are free")


LIMITS = [("max", "5", 7000 * 1024), ("9000", "2000", 7000), ("1", "2", 0)]


@pytest.mark.parametrize(("limit", "used", "free"), LIMITS)
def test_the_least_of_all_limits_holds(
    limit: str, used: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    7000 kB\n")
    (tmp_path / "max").write_text(limit + "\n")
    (tmp_path / "current").write_text(used + "\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    nowhere = tmp_path / "no", tmp_path / "no"
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path / "max", tmp_path / "current"), nowhere))
    assert memory.available_bytes() == free
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "no")
    monkeypatch.setattr(memory, "CGROUPS", ())
    assert memory.available_bytes() is None


def test_the_peak_is_at_least_what_was_made() -> None:
    kept = np.ones(4_000_000)
    assert memory.peak_bytes() >= kept.nbytes
