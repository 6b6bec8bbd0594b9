"""The audit itself: a verdict on every claim, and the contradictions among them.

A claim's own check comes first; then a measurement, a score or a count where what it takes is given; then
what follows from other claims; and what none of these reaches says what it would take. No verdict holds a
typed-in result: values are those of the checks, of committed measurements, of scores made now, or of
arithmetic on the claims table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from reproduce.data import DATASETS
from reproduce.nets import NETS
from reproduce.published.checks import TIERS, Check, Context, Finding, Tier, finding
from reproduce.published.claims import Claim, Value, load_claims
from reproduce.published.contradictions import Found, find, load_contradictions
from reproduce.published.counts import COUNTS
from reproduce.published.identity import GivenWeights
from reproduce.published.registry import CHECKS
from reproduce.published.relations import Outcome, check, load_relations
from reproduce.published.requirements import Requirement, command, load_requirements, requirement_of
from reproduce.published.rescoring import Scoring
from reproduce.published.timings import Timing, latest, ratio_words, time_unit

STATUSES = {
    "reproduced": "computed or measured here, within the rounding of the print",
    "differs": "computed or measured here, and another value",
    "consistent": "follows from other claims by arithmetic",
    "inconsistent": "does not follow from the claims it should follow from",
    "measured elsewhere": "a committed measurement on the named device; times are not expected to agree",
    "other weights": "scored here, but with weights that are not known to be the published ones",
    "needs weights": "the data set is given, the weights are not",
    "needs data": "the data set, or the truth that only a test server has, is missing",
    "needs weights and data": "neither is given",
    "needs GPU": "a timing that nobody has committed",
    "needs training": "trained anew, which takes days",
    "not built": "of something that the toolkit does not have",
    "out of scope": "another system's number",
}
NEEDS = {
    "weights+data": "needs weights and data", "difference": "needs weights and data", "server": "needs data",
    "data": "needs data", "training": "needs training", "search": "needs training", "gpu": "needs GPU",
    "not built": "not built", "out of scope": "out of scope",
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What is known of a claim. `value` is ours, or what other claims give, and has a tier; else both None.

    `how`: how it was found, or what it takes, in a line. `reason`: why it differs. `command`: what would
    check it. `notes`: what else the other claims say of it. `contradictions`: ids of those it is part of.
    """

    claim: Claim
    status: str
    value: Value | None = None
    tier: Tier | None = None
    how: str = ""
    reason: str = ""
    command: str = ""
    notes: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()

    @property
    def unexplained(self) -> bool:
        """Whether it is wrong and nothing says why."""
        if self.status == "inconsistent":
            return not self.contradictions
        return self.status == "differs" and not self.reason


@dataclass(frozen=True)
class Given:
    """What the audit may use besides the package: weights by net, folders by kind of data, timings."""

    weights: Mapping[str, GivenWeights] = field(default_factory=dict)
    data: Mapping[str, Path] = field(default_factory=dict)
    timings: Sequence[Timing] = ()
    scoring: Scoring = field(default_factory=Scoring)


@dataclass(frozen=True)
class Audit:
    """All verdicts by claim, in the order of the table, and what became of each contradiction."""

    verdicts: Mapping[str, Verdict]
    contradictions: Sequence[Found]

    def by_status(self, recalled: bool | None = None) -> Counter[str]:
        """How many claims have each status; all, or those recalled or seen in a source."""
        chosen = (v for v in self.verdicts.values() if recalled in (None, v.claim.recalled))
        return Counter(verdict.status for verdict in chosen)

    def by_tier(self) -> dict[Tier, Counter[str]]:
        """How many verdicts with a value of ours stand in each tier, by status; tiers are never added up."""
        counts: dict[Tier, Counter[str]] = {tier: Counter() for tier in TIERS}
        for verdict in self.verdicts.values():
            if verdict.tier is not None:
                counts[verdict.tier][verdict.status] += 1
        return counts


def audit(
    claims: Mapping[str, Claim] | None = None,
    context: Context | None = None,
    given: Given | None = None,
    only: Iterable[str] | None = None,
    checks: Mapping[str, Check] = CHECKS,
) -> Audit:
    """Audit the claims (of the package), or those of the ids in `only`.

    The relations and contradictions are judged over all claims. FileError, FormatError, WeightsError from
    what is given.
    """
    claims = load_claims() if claims is None else claims
    judge = _Judge(claims, context or Context(), given or Given(), checks)
    chosen = claims if only is None else dict.fromkeys(only)
    found = [find(row, claims) for row in load_contradictions()]
    verdicts = {identity: judge.verdict(claims[identity]) for identity in chosen}
    return Audit(_with_contradictions(verdicts, found), found)


class _Judge:
    """Finds verdicts one by one; knows the tables."""

    def __init__(
        self, claims: Mapping[str, Claim], context: Context, given: Given, checks: Mapping[str, Check]
    ) -> None:
        self.claims, self.context, self.given, self.checks = claims, context, given, checks
        self.timings = latest(given.timings)
        self.requirements = load_requirements()

    def verdict(self, claim: Claim) -> Verdict:
        """The verdict, contradictions apart."""
        required = requirement_of(claim, self.requirements)
        outcomes = self.outcomes.get(claim.id, [])
        found = finding(self.checks[claim.id], claim, self.context) if claim.id in self.checks else None
        if found is not None and not found.status:
            return replace(_compared(claim, found), notes=tuple(map(_note, outcomes)))
        verdict = self._from_given(claim, required)
        if verdict is not None:
            return replace(verdict, notes=tuple(map(_note, outcomes)))
        verdict = self._open(claim, required) if found is None else _without(claim, found)
        return _follows(verdict, outcomes) if outcomes else verdict

    @cached_property
    def outcomes(self) -> dict[str, list[Outcome]]:
        """Relations checked, by the claim they are about."""
        found: dict[str, list[Outcome]] = {}
        for relation in load_relations():
            if relation.target in self.claims:
                found.setdefault(relation.target, []).append(check(relation, self.claims))
        return found

    def _from_given(self, claim: Claim, required: Requirement) -> Verdict | None:
        """A verdict from timings, data or weights, if there are."""
        given = self.given
        if claim.check == "timing":
            timings = self.timings.get(claim.id)
            return _measured(claim, required, timings) if timings else None
        count = COUNTS.get(claim.id)
        if count is not None and count.kind in given.data:
            value = count.function(given.data[count.kind])
            return _compared(claim, Finding(value, "recomputed", f"counted: {count.how}", count.reason))
        scored = required.needs == "weights+data"
        if scored and required.net in given.weights and required.data in given.data:
            return self._rescored(claim, required)
        return None

    def _rescored(self, claim: Claim, required: Requirement) -> Verdict:
        weights, folder = self.given.weights[required.net], self.given.data[required.data]
        value = round(self.given.scoring.percent(claim, required, weights, folder), 4)
        how = f"{required.net} on {required.data}, {weights.words}"
        if weights.known is not None and weights.known.file == required.weights:
            return _compared(claim, Finding(value, "rescored", how))
        reason = f"the claim is of {required.weights}, and this is not known to be that file"
        return Verdict(claim, "other weights", value, "rescored", how, reason)

    def _open(self, claim: Claim, required: Requirement) -> Verdict:
        """What it would take."""
        missing = _not_built(required)
        if missing or required.needs == "out of scope":
            system = missing or required.note
            return Verdict(claim, "not built" if missing else "out of scope", how=system)
        status = NEEDS[required.needs]
        if required.needs == "weights+data" and required.data in self.given.data:
            status = "needs weights"
        if required.needs == "weights+data" and required.net in self.given.weights:
            status = "needs data"
        return Verdict(claim, status, how=_takes(required), command=command(claim, required))


def _not_built(required: Requirement) -> str:
    """What is missing in the toolkit, "" if nothing."""
    if required.needs == "not built":
        return required.note
    if required.net and required.net not in NETS:
        return f"the net {required.net}"
    if required.needs in ("training", "search") and required.data and required.data not in DATASETS:
        return f"the data set {required.data}"
    return ""


def _takes(required: Requirement) -> str:
    words = {
        "weights+data": f"{required.net} with {required.weights}, scored on {required.data}",
        "difference": f"{required.net} with {required.weights}, scored on {required.data}",
        "server": f"label maps of {required.net} with {required.weights}, scored by the test server",
        "data": f"the data set {required.data}",
        "training": f"{required.net} trained on {required.data}",
        "search": f"a search on {required.data}",
        "gpu": "a measurement",
    }[required.needs]
    return f"{words} ({required.note})" if required.note else words


def _compared(claim: Claim, found: Finding) -> Verdict:
    assert found.value is not None
    if not claim.agrees(found.value):
        return Verdict(claim, "differs", found.value, found.tier, found.how, found.reason)
    how = f"{found.how}; {found.reason}" if found.reason else found.how
    return Verdict(claim, "reproduced", found.value, found.tier, how)


def _without(claim: Claim, found: Finding) -> Verdict:
    assert found.status in STATUSES, found.status
    return Verdict(claim, found.status, how=found.reason)


def _measured(claim: Claim, required: Requirement, timings: Sequence[Timing]) -> Verdict:
    """All devices are named; the value is that of the last."""
    words = []
    for timing in timings:
        value = timing.value_for(claim)
        measured = f"{value:.4g} {time_unit(claim)}".rstrip()
        words.append(", ".join(filter(None, (f"{timing.words}: {measured}", ratio_words(claim, value)))))
    value = timings[-1].value_for(claim)
    how, again = "; ".join(words), command(claim, required)
    return Verdict(claim, "measured elsewhere", value, "measured", how, command=again)


def _follows(verdict: Verdict, outcomes: Sequence[Outcome]) -> Verdict:
    """The verdict on a claim that others give; what it would take to check it stays."""
    wrong = [outcome for outcome in outcomes if not outcome.holds]
    shown = (wrong or outcomes)[0]
    rest = tuple(_note(outcome) for outcome in outcomes if outcome is not shown)
    notes = (*rest, f"{verdict.status}: {verdict.how}") if verdict.status.startswith("needs") else rest
    status = "inconsistent" if wrong else "consistent"
    return replace(verdict, status=status, how=shown.words, value=shown.value, tier="recomputed", notes=notes)


def _note(outcome: Outcome) -> str:
    return f"{'consistent' if outcome.holds else 'inconsistent'}: {outcome.words}"


def _with_contradictions(verdicts: Mapping[str, Verdict], found: Sequence[Found]) -> dict[str, Verdict]:
    parts: dict[str, list[str]] = {}
    for row in found:
        if row.stands is not False:
            for identity in row.contradiction.ids:
                parts.setdefault(identity, []).append(row.contradiction.id)
    return {
        identity: replace(verdict, contradictions=tuple(parts.get(identity, ())))
        for identity, verdict in verdicts.items()
    }
