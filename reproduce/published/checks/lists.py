"""Counts of the reference's lists of ids, which ship with the package."""

from __future__ import annotations

from importlib.resources import files

from reproduce.published.checks.nets import Nets

SPLITS = files("reproduce.data") / "splits"


def list_length(nets: Nets, *names: str) -> int:
    """How many ids stand in the lists, taken together."""
    return sum(len((SPLITS / f"{name}.txt").read_text().split()) for name in names)
