"""The option --goldens: what is selected, and that an empty selection fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.goldens("nets/*.npz", exclude="nets/*-full.npz")
def test_golden_net_values(golden): assert golden.suffix == ".npz"

@pytest.mark.goldens("formats/*.json")
def test_golden_format_tables(golden): assert golden.suffix == ".json"

@pytest.mark.goldens("solvers/*/trajectory.npz")
def test_golden_solver_steps(golden): assert golden.name == "trajectory.npz"

def test_other(): pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A folder with golden tests of three kinds, whose own directory holds two of the kinds."""
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_kinds.py").write_text(TESTS)
    for case in [
        "goldens/nets/a.npz",
        "goldens/formats/t.json",
        "given/nets/b.npz",
        "given/nets/c.npz",
        "given/nets/d-full.npz",
        "given/solvers/adam/trajectory.npz",
    ]:
        (tmp_path / case).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / case).touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 1, ["test_golden_net_values[a] PASSED", "solvers/*/trajectory.npz matches no file"]),
        (["-k", "golden and net"], 0, ["1 passed, 3 deselected"]),
        (
            ["--goldens", "given"],
            0,
            [
                "values[b] PASSED",
                "steps[adam] PASSED",
                "4 passed",
                "left out: test_kinds.py::test_golden_format",
            ],
        ),
        (["--goldens", "given", "-k", "golden and solver"], 0, ["1 passed"]),
        (["--goldens", "given", "-k", "golden and format"], 1, ["formats/*.json matches no file"]),
        (["--goldens", "given", "-k", "golden and format or golden and net"], 1, ["2 passed", "1 error"]),
        (["--goldens", "empty"], 1, ["1 passed", "3 errors"]),
        (["--goldens", "given", "-k", "nothing"], 5, ["5 deselected"]),
        (["--goldens", "missing"], 4, ["--goldens missing: no such folder"]),
    ],
)
def test_selection(suite: Path, options: list[str], code: int, words: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--rootdir=.", *options]
    done = subprocess.run(command, cwd=suite, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == code, text
    assert [word for word in words if word not in text] == [], text
