"""pytest's option --goldens, registered with the package so that `pytest --goldens DIR` knows it in time.

An option that only tests/conftest.py adds is unknown while pytest looks for conftests, so pytest takes DIR
for a folder of tests and never reads tests/conftest.py. What the option does stands there.
"""

from __future__ import annotations

from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Add --goldens DIR, once: tests/conftest.py calls this too, for a checkout that is not installed."""
    try:
        parser.addoption("--goldens", metavar="DIR", help="directory of golden tests (tests/goldens)")
    except ValueError:  # the other one was first
        return
