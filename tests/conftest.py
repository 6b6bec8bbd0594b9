"""Golden tests: one test function, one case for each file that a goldens directory holds.

A golden test takes the argument `golden` and says which files are its cases:

    @pytest.mark.goldens("nets/*.npz", exclude="nets/*-full.npz")
    def test_golden_net_outputs(golden: Path) -> None: ...

The path is one of the directory's files; companions lie beside it. Its name holds `golden` and the kind,
which the folder sets: layers/ layer, nets/ net, solvers/ solver, formats/ format. The directory is
tests/goldens, or that of `pytest --goldens DIR`.

An empty selection fails. A pattern without a case becomes one failing test. Only with `--goldens DIR`,
which may hold some kinds and not others, is it left out, and named at the end of the run, where
another golden test is selected; if -k names the kind, one of that kind.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from reproduce.goldens_option import pytest_addoption  # noqa: F401

KINDS = {"layers": "layer", "nets": "net", "solvers": "solver", "formats": "format"}
_HERE = Path(__file__).parent / "goldens"
_EMPTY = pytest.StashKey[list[str]]()


def golden_cases(config: pytest.Config, pattern: str, exclude: str | None = None) -> list[Path]:
    """The files of the goldens directory that match a pattern such as `nets/*.npz`, sorted."""
    root = goldens_directory(config)
    left_out = set(root.glob(exclude)) if exclude else set()
    return sorted(path for path in root.glob(pattern) if path not in left_out)


def goldens_directory(config: pytest.Config) -> Path:
    """Where the golden files lie: `--goldens`, relative to where pytest was called, or our own."""
    given = config.getoption("goldens")
    return _HERE if given is None else (config.invocation_params.dir / given).resolve()


@pytest.fixture
def goldens(pytestconfig: pytest.Config) -> Path:
    """The goldens directory, for tests that need certain files and no cases."""
    return goldens_directory(pytestconfig)


@pytest.fixture
def own_goldens() -> Path:
    """tests/goldens, whatever --goldens says, for tests about one certain file."""
    return _HERE


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "goldens(pattern, exclude=None): cases of the argument `golden`")
    config.addinivalue_line("markers", "no_golden_case(kind, pattern): set where a pattern matches no file")
    if not goldens_directory(config).is_dir():
        raise pytest.UsageError(f"--goldens {config.getoption('goldens')}: no such folder")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("goldens")
    if mark is None:
        return
    pattern, name = mark.args[0], metafunc.definition.name
    kind = KINDS[pattern.split("/")[0]]
    if "golden" not in name or kind not in name:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: the name must hold golden and {kind}")
    cases = golden_cases(metafunc.config, pattern, mark.kwargs.get("exclude"))
    named = [pytest.param(case, id=_case_name(case, pattern)) for case in cases]
    nothing = pytest.param(None, id="no-case", marks=pytest.mark.no_golden_case(kind, pattern))
    metafunc.parametrize("golden", named or [nothing])


def _case_name(case: Path, pattern: str) -> str:
    """What the pattern leaves open: `fcn8s` for nets/*.npz, `adam` for solvers/*/trajectory.npz."""
    folder, last = pattern.rsplit("/", 1)
    before, star, after = last.partition("*")
    left_open = case.name[len(before) : len(case.name) - len(after)] if star else ""
    return "-".join(filter(None, [case.parent.name if "*" in folder else "", left_open])) or case.stem


@pytest.hookimpl(trylast=True)  # after -k has chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the empty patterns that may be empty, see the top of this file."""
    if config.getoption("goldens") is None:
        return
    present = {kind for item in items if (kind := _kind_with_a_case(item))}
    words = config.getoption("keyword") or ""
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        mark = item.get_closest_marker("no_golden_case")
        wanted = mark is not None and mark.args[0] in words and mark.args[0] not in present
        (kept if mark is None or wanted or not present else dropped).append(item)
    items[:] = kept
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    config.stash[_EMPTY] = [item.nodeid for item in dropped]


def _kind_with_a_case(item: pytest.Item) -> str | None:
    mark = item.get_closest_marker("goldens")
    if mark is None or item.get_closest_marker("no_golden_case"):
        return None
    return KINDS[mark.args[0].split("/")[0]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("no_golden_case")
    if mark is not None:
        pytest.fail(f"no golden case: {goldens_directory(item.config) / mark.args[1]} matches no file")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for nodeid in config.stash.get(_EMPTY, []):
        terminalreporter.write_line(f"no golden case, left out: {nodeid}")
