"""Claims that follow from other claims: a table of expressions, and a small evaluator that can do no more.

`tables/relations.csv` says of a claim by which arithmetic of others it should come out: `{F15.T2-11} -
{F15.T2-07}` for an improvement, `mean({DN.T1/FCN-8s/*})` for a mean over the other claims of a row, `{id#1}`
for the second number of a claim that prints several. Every printed number stands for the range that rounds to
it, and the expression is computed on ranges (interval arithmetic in fractions): a claim is inconsistent only
when no numbers that round to the printed ones give it.
"""

from __future__ import annotations

import ast
import csv
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from reproduce.published.claims import TABLES, Claim, Number

REFERENCE = re.compile(r"\{([^{}]+)\}")
SIGNS = {"=": ("=", "≠"), "<": ("<", "not <"), ">": (">", "not >")}  # where it holds, where not

OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


class Range(NamedTuple):
    """A number as printed and the bounds of what rounds to it."""

    value: Fraction
    low: Fraction
    high: Fraction


@dataclass(frozen=True)
class Relation:
    """One row: `claim`, `=` `<` or `>` an expression; or `restates`, and the ids whose values its text names.

    `claim` may carry `#i`, the number meant of a claim that prints several.
    """

    claim: str
    relation: str
    expression: str
    note: str

    @property
    def target(self) -> str:
        """The claim's id."""
        return self.claim.partition("#")[0]

    @cached_property
    def references(self) -> tuple[str, ...]:
        """What the expression names, ids with `#i` or `/*`."""
        if self.relation == "restates":
            return tuple(self.expression.split())
        return tuple(REFERENCE.findall(self.expression))

    @property
    def alone(self) -> bool:
        """Whether the expression is one other claim and no arithmetic."""
        return REFERENCE.fullmatch(self.expression) is not None


@dataclass(frozen=True)
class Outcome:
    """Whether a relation holds, and what was compared, to be read behind the printed number.

    `value` is what the numbers as printed give.
    """

    relation: Relation
    holds: bool
    words: str
    value: float | None = None


def load_relations() -> list[Relation]:
    """All rows of the table."""
    lines = (TABLES / "relations.csv").read_text(encoding="utf-8").splitlines()
    return [Relation(**row) for row in csv.DictReader(lines)]


def check(relation: Relation, claims: Mapping[str, Claim]) -> Outcome:
    """Compare the printed number with what the expression gives of the others."""
    if relation.relation == "restates":
        return _restates(relation, claims)
    (target,) = _numbers(relation.claim, claims)
    found = evaluate(relation.expression, claims)
    stated = as_range(target)
    holds = {
        "=": stated.low <= found.high and found.low <= stated.high,
        "<": stated.value < found.high,
        ">": stated.value > found.low,
    }[relation.relation]
    spelt, value = spell(relation.expression, claims), f"{float(found.value):.6g}"
    sign = SIGNS[relation.relation][not holds]
    words = f"{sign} {spelt}" + ("" if relation.alone else f" = {value}")
    return Outcome(relation, holds, _with(words, relation.note), float(found.value))


def evaluate(expression: str, claims: Mapping[str, Claim]) -> Range:
    """The value and bounds of an expression over claims.

    Only numbers, + - * /, `mean(...)`, and `order(x)`, the power of ten at or below x. ValueError for
    anything else.
    """
    names: dict[str, list[Range]] = {}

    def name(match: re.Match[str]) -> str:
        key = f"v{len(names)}"
        names[key] = [as_range(number) for number in _numbers(match[1], claims)]
        return key

    return _one(_evaluate(ast.parse(REFERENCE.sub(name, expression), mode="eval").body, names))


def as_range(number: Number) -> Range:
    """A printed number as a range; a bound stands for itself."""
    value = Fraction(repr(number.value))
    low, high = number.low, number.high
    return Range(value, value if low is None else Fraction(low), value if high is None else Fraction(high))


def spell(expression: str, claims: Mapping[str, Claim]) -> str:
    """The expression with printed values for the ids; a row of claims as how many there are."""

    def value(match: re.Match[str]) -> str:
        if match[1].endswith("/*"):
            return f"{len(_row(match[1], claims))} values"
        identity, _, index = match[1].partition("#")
        return f"{claims[identity].numbers[int(index)].value:g}" if index else claims[identity].value

    return REFERENCE.sub(value, expression)


def _restates(relation: Relation, claims: Mapping[str, Claim]) -> Outcome:
    text = claims[relation.target].row + " " + claims[relation.target].value
    values = [claims[key].value.lstrip("~<") for key in relation.references]
    missing = [value for value in values if not re.search(rf"(?<![\d.]){re.escape(value)}(?![\d.])", text)]
    words = f"names the {len(values)} values that it cites"
    words += f", not {', '.join(missing)}" if missing else ""
    return Outcome(relation, not missing, words)


def _with(words: str, note: str) -> str:
    return f"{words} ({note})" if note else words


def _numbers(reference: str, claims: Mapping[str, Claim]) -> list[Number]:
    if reference.endswith("/*"):
        return [claims[key].numbers[0] for key in _row(reference, claims)]
    identity, _, index = reference.partition("#")
    numbers = claims[identity].numbers
    if not index and len(numbers) != 1:
        raise ValueError(f"{identity}: {len(numbers)} numbers, wanted one")
    return [numbers[int(index or 0)]]


def _row(reference: str, claims: Mapping[str, Claim]) -> list[str]:
    prefix = reference[:-1]
    return [key for key in claims if key.startswith(prefix) and key != f"{prefix}mean"]


def _evaluate(node: ast.expr, names: Mapping[str, list[Range]]) -> list[Range]:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        value = Fraction(repr(node.value))
        return [Range(value, value, value)]
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _one(_evaluate(node.left, names)), _one(_evaluate(node.right, names))
        return [_combine(OPERATORS[type(node.op)], left, right)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        args = [item for arg in node.args for item in _evaluate(arg, names)]
        if node.func.id == "mean":
            return [Range(*(sum(parts, Fraction()) / len(args) for parts in zip(*args, strict=True)))]
        if node.func.id == "order":
            return [Range(*(Fraction(10) ** math.floor(math.log10(part)) for part in _one(args)))]
    raise ValueError(f"{ast.unparse(node)}: not an expression over claims")


def _combine(function: Callable[[Fraction, Fraction], Fraction], left: Range, right: Range) -> Range:
    """Bounds of + - * / lie at the corners, as no divisor's range holds zero."""
    corners = list(_corners(function, left, right))
    return Range(function(left.value, right.value), min(corners), max(corners))


def _corners(
    function: Callable[[Fraction, Fraction], Fraction], left: Range, right: Range
) -> Iterator[Fraction]:
    for a in (left.low, left.high):
        for b in (right.low, right.high):
            yield function(a, b)


def _one(found: list[Range]) -> Range:
    if len(found) != 1:
        raise ValueError(f"{len(found)} numbers, wanted one")
    return found[0]
