"""The code in docs/solvers.md runs, in order, in a folder with the files it names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_goldens: Path) -> None:
    setting = own_goldens / "solvers" / "adam"
    for name in ("net.prototxt", "solver.prototxt"):
        shutil.copy(setting / name, tmp_path)
    shutil.copy(setting.parent / "init.caffemodel", tmp_path / "start.caffemodel")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "solvers.md").read_text()
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
    assert names["solver"].iteration == 5
    assert sorted(path.name for path in tmp_path.glob("solver_iter_5.*")) == [
        "solver_iter_5.caffemodel", "solver_iter_5.resume.pt", "solver_iter_5.solverstate"]  # fmt: skip
