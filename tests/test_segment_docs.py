"""docs/segment.md: its options exist and its Python runs; and the benchmark of folders at a small size."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from caffe_nets import colours_net, save_net
from PIL import Image

from reproduce.cli import load_command

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import folder as benchmark  # noqa: E402

TEXT = (ROOT / "docs/segment.md").read_text()
LINES = [line.strip() for line in TEXT.splitlines() if line.strip().startswith("fcn ")]


@pytest.mark.parametrize("line", LINES)
def test_commands_parse(line: str) -> None:
    words = shlex.split(line)
    command = load_command(words[1])
    command.make_context(words[1], words[2:])  # an unknown option or value would end it


def test_there_are_commands() -> None:
    assert len(LINES) == 5


def test_the_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for old, new in zip(
        save_net(tmp_path, colours_net()), ("deploy.prototxt", "net.caffemodel"), strict=True
    ):
        old.rename(new)
    Path("photos").mkdir()
    for i in range(3):
        pixels = np.full((2, 2, 3), 10, np.uint8)
        pixels[0, 0, i] = 200
        Image.fromarray(pixels).save(f"photos/{i}.png")
    (block,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    exec(compile(block, "docs/segment.md", "exec"), {})
    assert capsys.readouterr().out.startswith("[np.uint8(2), np.uint8(1), np.uint8(0)] []")  # blue is 0
    assert len(list(Path("labels").iterdir())) == 3


@pytest.mark.parametrize("arguments", [("--batch", "1"), ("--batch", "2", "--precision", "bf16")])
def test_the_benchmark_runs_at_a_small_size(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    small = ("--narrow", "32", "--shrink", "10", "--pictures", "5", "--repeats", "1", "--device", "cpu")
    result = benchmark.measure(benchmark.parse([*small, *arguments]), tmp_path)
    assert set(result["images_per_second"]) == {"folder", "in turn", "bare"}
    assert result["folder_over_bare"] > 0 and result["device"] == "cpu"
