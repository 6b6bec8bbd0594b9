"""Where the published numbers contradict each other: found from the claims where both sides stand there.

`tables/contradictions.csv` names each contradiction and says which number is which. `sides` are expressions
over claims (see `relations`), groups of them divided by `;`: the contradiction is there when in each group
two sides cannot be the same number at the rounding they are printed with. Without sides one of them is not in
the table, or is no number; then the words are all there is.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from reproduce.published.claims import TABLES, Claim
from reproduce.published.relations import REFERENCE, evaluate, spell


@dataclass(frozen=True)
class Contradiction:
    """One row: what contradicts, which number is which, and the claims it is about."""

    id: str
    what: str
    which: str
    claims: str
    sides: str

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Expressions that ought to be one number, group by group."""
        return tuple(
            tuple(side.strip() for side in group.split("|")) for group in self.sides.split(";") if group
        )

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The claims involved, in the order of the row."""
        named = [reference.partition("#")[0] for reference in REFERENCE.findall(self.sides)]
        return tuple(dict.fromkeys([*named, *self.claims.split()]))


@dataclass(frozen=True)
class Found:
    """What the claims say of a contradiction: None without sides to compare; `words` are the values."""

    contradiction: Contradiction
    stands: bool | None
    words: str = ""


def load_contradictions() -> list[Contradiction]:
    """All rows of the table."""
    lines = (TABLES / "contradictions.csv").read_text(encoding="utf-8").splitlines()
    return [Contradiction(**row) for row in csv.DictReader(lines)]


def find(contradiction: Contradiction, claims: Mapping[str, Claim]) -> Found:
    """Compare the sides."""
    if not contradiction.groups:
        return Found(contradiction, None)
    stands = all(_disagree(group, claims) for group in contradiction.groups)
    words = "; ".join(
        " against ".join(_side(side, claims) for side in group) for group in contradiction.groups
    )
    return Found(contradiction, stands, words)


def _disagree(group: tuple[str, ...], claims: Mapping[str, Claim]) -> bool:
    ranges = [evaluate(side, claims) for side in group]
    return any(a.high < b.low or b.high < a.low for a, b in combinations(ranges, 2))


def _side(side: str, claims: Mapping[str, Claim]) -> str:
    names = ", ".join(REFERENCE.findall(side))
    spelt = spell(side, claims)
    if REFERENCE.fullmatch(side):
        unit = claims[names.partition("#")[0]].unit
        return f"{spelt}{' ' + unit if unit else ''} ({names})"
    return f"{spelt} = {float(evaluate(side, claims).value):.4g} ({names})"
