"""The published numbers: a table of claims, and when a value agrees with a printed one.

`tables/claims.csv` has a row for each number of the FCN papers, the reference repository, DeconvNet,
Auto-DeepLab and re-implementations: where it stands, under what conditions, how it is known (provenance) and
what it takes to check it. A printed number stands for all that round to it: `134` in millions for 133.5 to
134.5 million, `62.7` for 62.65 to 62.75. After `~` the zeros at the end of a whole number do not count as
digits: `~2000` stands for 1500 to 2500.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from importlib.resources import files

TABLES = files("reproduce.published") / "tables"
CHECK_KINDS = ("architecture", "weights+data", "training", "timing")
UNIT_SCALES = {"M": 6, "B": 9, "K": 3}  # powers of ten, of the column `unit` or printed behind the number
RECALLED = "recalled"

NUMBER = re.compile(
    r"(?<![A-WYZa-wyz\d_.^])(~|<|(?<!-)>|over )?\s*"  # not in a word; the x of 10x10 may stand before
    r"(-?\d+(?:\.\d+)?)(?:e([+-]?\d+))?([KMB])?(?![\d.^])"
)
BETWEEN = re.compile(r"[\s,;/x+=\[\]()]|->|vs|%|ms|s")

Value = int | float | str | tuple[int | float, ...]


@dataclass(frozen=True)
class Number:
    """One printed number in base units (134 M is 134000000), and the range of what rounds to it.

    `low` and `high` are inclusive; None where the print gives only a bound, as `<0.2` or `over 400`.
    """

    value: float
    low: Decimal | None
    high: Decimal | None

    def covers(self, value: float) -> bool:
        """Whether `value` rounds to this number, or keeps to this bound."""
        exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        if not exact.is_finite():
            return False
        return (self.low is None or self.low <= exact) and (self.high is None or exact <= self.high)


@dataclass(frozen=True)
class Claim:
    """One row of the table; the texts are as printed. `check` is one of CHECK_KINDS."""

    id: str
    paper: str
    location: str
    row: str
    column: str
    value: str
    unit: str
    conditions: str
    provenance: str
    check: str

    @property
    def recalled(self) -> bool:
        """Whether nobody here has seen the number in a source."""
        return self.provenance.startswith(RECALLED)

    @cached_property
    def numbers(self) -> tuple[Number, ...]:
        """The numbers printed, in order; () where the value is words or a formula."""
        rest = BETWEEN.sub("", NUMBER.sub("", self.value))
        return () if rest else tuple(_number(match, self.unit) for match in NUMBER.finditer(self.value))

    @property
    def number(self) -> float:
        """The only number printed, in base units. ValueError where there are none or several."""
        (only,) = self.numbers
        return only.value

    def agrees(self, value: Value) -> bool:
        """Whether a computed value is the printed one, at the rounding of the print.

        Numbers are in base units (a count, not millions; percent stay percent). Of several printed all are
        wanted, in order; the side of a square stands for `10x10`. A text is compared as a text, blanks apart.
        """
        if isinstance(value, str):
            return "".join(value.split()) == "".join(self.value.split())
        found = value if isinstance(value, tuple) else (value,)
        if len(found) == 1 and re.fullmatch(r"(\d+)x\1", self.value):
            found *= 2
        return len(found) == len(self.numbers) > 0 and all(
            number.covers(item) for number, item in zip(self.numbers, found, strict=True)
        )


def load_claims() -> dict[str, Claim]:
    """All claims by id, in the order of the table."""
    claims: dict[str, Claim] = {}
    for row in csv.DictReader((TABLES / "claims.csv").read_text(encoding="utf-8").splitlines()):
        claim = Claim(**row)
        assert claim.id not in claims and claim.check in CHECK_KINDS, claim.id
        claims[claim.id] = claim
    return claims


def _number(match: re.Match[str], unit: str) -> Number:
    qualifier, digits, exponent, suffix = match.groups()
    power = int(exponent or 0) + UNIT_SCALES.get(suffix or unit, 0)
    value = Decimal(digits).scaleb(power)
    qualifier = (qualifier or "").strip()
    if qualifier in ("<", ">", "over"):
        return Number(float(value), None if qualifier == "<" else value, value if qualifier == "<" else None)
    place = -len(digits.partition(".")[2])
    if qualifier == "~" and "." not in digits:
        place = len(digits) - len(digits.rstrip("0"))
    half = Decimal(5).scaleb(place + power - 1)
    return Number(float(value), value - half, value + half)
