"""The papers' tables, laid out again: rows by columns as printed, with a verdict in each cell.

Also how a status and a value are written, for text, Markdown and HTML alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from caffe_weights.errors import InputError
from reproduce.published.claims import Claim, Value
from reproduce.published.verdicts import STATUSES, Verdict

# the beginning of an id -> whose numbers these are
PAPERS = {
    "F15": "FCN, CVPR 2015", "F16": "FCN, PAMI 2016", "RS": "the reference repository of FCN",
    "DN": "DeconvNet, ICCV 2015", "AD": "Auto-DeepLab, CVPR 2019", "X": "re-implementations",
    "SD": "write-ups",
}  # fmt: skip
SYMBOLS = {
    "reproduced": "✓", "differs": "✗", "consistent": "≈", "inconsistent": "≠",
    "measured elsewhere": "t", "other weights": "o", "needs weights": "W", "needs data": "D",
    "needs weights and data": "WD", "needs GPU": "G", "needs training": "T", "not built": "N",
    "out of scope": "·",
}  # fmt: skip
assert SYMBOLS.keys() == STATUSES.keys()
BY_ARITHMETIC = ("consistent", "inconsistent")
WITH_TIER = list(STATUSES)[:6]  # statuses that come with a value and its tier
RECALLED = "†"
COPIED = "c"  # behind the symbol of a reproduced claim of the tier `transcribed`
RENAMED = {"seeds": "Chinese write-ups of the papers"}
SCALED = {"M": 1e6, "B": 1e9}


@dataclass(frozen=True)
class Table:
    """One table of a paper, or a list of numbers where `columns` is ("",). Cells by (row, column)."""

    paper: str
    location: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], Verdict]


def place(table: Table) -> str:
    """Paper and table."""
    paper = RENAMED.get(table.paper, table.paper)
    return f"{paper}, {table.location}" if table.location else paper


def paper_of(identity: str) -> str:
    """The key of PAPERS of a claim's id."""
    return next(key for key in PAPERS if identity.startswith((f"{key}.", f"{key}-")))


def find_paper(name: str) -> str:
    """A key of PAPERS. InputError."""
    if name not in PAPERS:
        known = ", ".join(f"{key} ({words})" for key, words in PAPERS.items())
        raise InputError("--paper", repr(name), f"one of {known}")
    return name


def tables(verdicts: Iterable[Verdict]) -> list[Table]:
    """The tables in the order of the claims."""
    found: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        found.setdefault((verdict.claim.paper, verdict.claim.location), []).append(verdict)
    return [_table(paper, location, group) for (paper, location), group in found.items()]


def own_value(verdict: Verdict) -> str:
    """Our value in the unit of the print, "" where there is none or only arithmetic on other claims."""
    return "" if verdict.status in BY_ARITHMETIC else ours(verdict.claim, verdict.value)


def symbol(verdict: Verdict) -> str:
    """The status as one or two characters, marked where it was only copied or only recalled."""
    copied = COPIED if verdict.tier == "transcribed" and verdict.status == "reproduced" else ""
    return SYMBOLS[verdict.status] + copied


def printed(claim: Claim) -> str:
    """The value with its unit as printed, marked where it was recalled."""
    return f"{claim.value}{f' {claim.unit}' if claim.unit else ''}{RECALLED if claim.recalled else ''}"


def short(claim: Claim) -> str:
    """The same without the unit of percent, for a cell of a table."""
    return printed(claim).replace(" %", "")


def ours(claim: Claim, value: Value | None) -> str:
    """Our value in the unit of the print, with a digit or two more than it; "" for None."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, tuple):
        return " / ".join(ours(claim, item) for item in value)
    if claim.unit in SCALED:
        return f"{value / SCALED[claim.unit]:.4f} {claim.unit}"
    if isinstance(value, int):
        return str(value)
    return f"{value:.10g}" if claim.unit == "" else f"{value:.5g}"


def _table(paper: str, location: str, verdicts: list[Verdict]) -> Table:
    claims = [verdict.claim for verdict in verdicts]
    cells = {(verdict.claim.row, verdict.claim.column): verdict for verdict in verdicts}
    rows = tuple(dict.fromkeys(claim.row for claim in claims))
    columns = tuple(dict.fromkeys(claim.column for claim in claims))
    return Table(paper, location, rows, columns, cells)
