"""The tables of the audit: claims and the rounding of their print, what follows from what, contradictions."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest

from reproduce.published.claims import TABLES, Claim, load_claims
from reproduce.published.contradictions import find, load_contradictions
from reproduce.published.registry import CHECKS
from reproduce.published.relations import Relation, as_range, check, evaluate, load_relations
from reproduce.published.requirements import load_requirements

CLAIMS = load_claims()


def claim(value: str, unit: str = "") -> Claim:
    return replace(CLAIMS["F15.T1-01"], value=value, unit=unit)


def test_the_table_is_whole() -> None:
    assert len(CLAIMS) == 1010
    kinds = Counter(one.check for one in CLAIMS.values())
    assert kinds == {"weights+data": 526, "training": 229, "architecture": 228, "timing": 27}
    assert sum(one.recalled for one in CLAIMS.values()) == 344


@pytest.mark.parametrize(
    ("printed", "unit", "fits", "fits_not"),
    [
        ("134", "M", [133500000, 134346581, 134500000], [133499999, 134500001, 134]),
        ("62.7", "%", [62.65, 62.69, 62.75], [62.64, 62.76]),
        ("57", "", [57, 56.5], [58, 56.4]),
        ("0.99475", "", [0.9947459], [0.9947, 0.995]),
        ("1e-10", "", [1e-10, 1.4e-10], [1e-9, 1.6e-10]),
        ("2.9e4", "", [28657], [75025]),
        ("~2000", "", [1500, 2499], [1499, 2501]),
        ("~252", "M", [251772245], [253000000]),
        ("<0.2", "s", [0.175, 0.2], [0.21]),
        ("over 400", "", [459], [399]),
        ("1478B, 45M", "", [(1478e9, 45.2e6)], [(1478, 45), 1478e9]),
        ("349 175 88", "", [(349, 175, 88)], [(349, 175), (349, 175, 87), 349]),
        ("10x10", "cells", [(10, 10), 10], [(10, 11), 11, (10, 10, 10)]),
        ("250x250 -> 224x224", "px", [(250, 250, 224, 224)], [(250, 224)]),
        ("zero", "", ["zero"], ["xavier", 0]),
        ("3x3 s1 p1 112x112x64 1792", "", ["3x3 s1 p1 112x112x64 1792"], ["3x3 s1 p0 112x112x64 1792", 3]),
        ("5^-5 (sic)", "", [], [5e-5, 0.00032, float("nan")]),
        ("0.3", "", [0.3], [float("nan"), float("inf")]),
    ],
)
def test_what_agrees_with_a_print(printed: str, unit: str, fits: list, fits_not: list) -> None:
    one = claim(printed, unit)
    assert [value for value in fits if not one.agrees(value)] == []
    assert [value for value in fits_not if one.agrees(value)] == []


def test_expressions_over_claims() -> None:
    assert evaluate("{F15.T3-06} / {F15.T3-03}", CLAIMS).value == Fraction(622, 516)
    low = Fraction(6215, 5165)  # both at the far end of what rounds to them
    assert evaluate("{F15.T3-06} / {F15.T3-03}", CLAIMS).low == low
    assert evaluate("mean({F15.T2-03}, {F15.T2-07}) - 1", CLAIMS).value == Fraction(514, 10)
    assert evaluate("order(1234.5)", CLAIMS).value == 1000
    assert evaluate("{DN.RP-01#0} * {DN.RP-01#1}", CLAIMS).value == 64
    row = [CLAIMS[key].number for key in CLAIMS if key.startswith("DN.T1/DeconvNet/")][:-1]
    assert len(row) == 21
    mean = evaluate("mean({DN.T1/DeconvNet/*})", CLAIMS)
    assert float(mean.value) == pytest.approx(sum(row) / 21, abs=1e-9)
    assert float(mean.high - mean.low) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "{F15.T3-06}.numerator", "2 ** 3", "abs(1)", "x", "{RS.RF-08}", "mean", "'a'",
     "[1][0]", "1 if 1 else 2", "mean(*[1])"],
)  # fmt: skip
def test_an_expression_can_do_no_more(text: str) -> None:
    with pytest.raises(ValueError):
        evaluate(text, CLAIMS)


@pytest.mark.parametrize(
    ("relation", "expression", "holds"),
    [("=", "{F15.T2-11} - {F15.T2-07}", True), ("=", "{F15.T2-11} - {F15.T2-03}", False),
     ("<", "3.1", True), ("<", "3", False), (">", "2.9", True), (">", "3", False)],
)  # fmt: skip
def test_relations(relation: str, expression: str, holds: bool) -> None:
    found = check(Relation("F15.S42-01", relation, expression, "so it is"), CLAIMS)
    assert found.holds is holds
    assert found.words.endswith("(so it is)")


def test_every_relation_is_about_claims_and_most_hold() -> None:
    broken = set()
    for relation in load_relations():
        found = check(relation, CLAIMS)
        if not found.holds:
            broken.add(relation.claim)
    # each of them is in the contradictions: C8, C12, C21, C24, C5, C6, C25, and C19
    assert broken == {
        "F15.S43-09", "F15.DATA-08", "DN.M-09", "AD.S-04", "SD-02", "SD-05", "SD-13",
        "X.PO-01", "X.PO-04", "X.PO-12", "X.PO-17", "X.PO-20", "X.PO-28",
    }  # fmt: skip


def test_derived_claims_all_have_a_relation_or_a_check() -> None:
    related = {relation.target for relation in load_relations()} | CHECKS.keys()
    derived = [
        one for one in CLAIMS.values()
        if re.match(r"derived|check |over |.*\(.*/.*\)$", one.row) and one.check == "architecture"
        and one.id.startswith(("F15", "F16", "AD.CL"))
    ]  # fmt: skip
    assert len(derived) > 15
    assert [one.id for one in derived if one.id not in related] == []


def test_a_write_up_that_restates() -> None:
    relation = next(one for one in load_relations() if one.claim == "SD-01")
    assert check(relation, CLAIMS).holds
    wrong = replace(CLAIMS["SD-01"], row=CLAIMS["SD-01"].row.replace("8498", "8489"))
    found = check(relation, {**CLAIMS, "SD-01": wrong})
    assert not found.holds
    assert "8498" in found.words


def test_contradictions_are_found_from_the_claims() -> None:
    rows = load_contradictions()
    assert [row.id for row in rows] == [f"C{i}" for i in range(1, 30)]
    found = {row.id: find(row, CLAIMS).stands for row in rows}
    prose = {"C3", "C9", "C13", "C14", "C17", "C18", "C20", "C22", "C23", "C28", "C29"}
    assert {key for key, stands in found.items() if stands is None} == prose
    assert all(stands for key, stands in found.items() if key not in prose)
    assert {key for row in rows for key in row.ids} <= CLAIMS.keys()


def test_a_contradiction_goes_when_the_claims_agree() -> None:
    row = next(one for one in load_contradictions() if one.id == "C12")
    mended = replace(CLAIMS["F15.DATA-08"], value="2486")
    assert find(row, {**CLAIMS, "F15.DATA-08": mended}).stands is False
    assert "2488" in find(row, CLAIMS).words


def test_rounding_is_no_contradiction() -> None:
    one, other = claim("62.7"), claim("62.69")
    assert as_range(one.numbers[0]).low <= as_range(other.numbers[0]).high


def test_every_row_of_what_it_takes_is_used() -> None:
    used = set()
    table = load_requirements()
    for one in CLAIMS.values():
        used.add(next((row for row in table if row.fits(one)), None))
    assert [row for row in table if row not in used] == []


def test_the_tables_name_no_column_twice() -> None:
    for name in ("claims", "relations", "contradictions", "requirements", "known_weights"):
        header = next(csv.reader((TABLES / f"{name}.csv").read_text(encoding="utf-8").splitlines()))
        assert len(header) == len(set(header))
