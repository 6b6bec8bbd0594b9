"""The audit as text, and as data for --json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from reproduce.published.checks import TIERS
from reproduce.published.contradictions import Found
from reproduce.published.tables import BY_ARITHMETIC, WITH_TIER, own_value, place, printed, tables
from reproduce.published.verdicts import STATUSES, Audit, Verdict

WRONG = ("differs", "inconsistent")
ABSENT = ("not built", "out of scope")


def overview(audit: Audit) -> Iterator[str]:
    """Totals by table, by status and by tier, then all that is wrong and the contradictions."""
    for table in tables(audit.verdicts.values()):
        counts = Counter(verdict.status for verdict in table.cells.values())
        words = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
        yield f"{place(table)}: {words}"
    yield ""
    yield from totals(audit)
    wrong = [verdict for verdict in audit.verdicts.values() if verdict.status in WRONG]
    if wrong:
        yield ""
        yield "what does not agree"
        yield from (f"  {line}" for verdict in wrong for line in mismatch(verdict))


def totals(audit: Audit) -> Iterator[str]:
    """Totals by status, with those only recalled apart; and by tier."""
    seen, recalled = audit.by_status(False), audit.by_status(True)
    yield f"{'status':24} {'seen':>5} {'recalled':>8}"
    for status in STATUSES:
        if seen[status] or recalled[status]:
            yield f"{status:24} {seen[status]:5} {recalled[status]:8}"
    yield f"{'claims':24} {seen.total():5} {recalled.total():8}"
    yield ""
    yield f"{'tier':12} " + " ".join(status.split()[0] for status in WITH_TIER)
    for tier, counts in audit.by_tier().items():
        yield f"{tier:12} " + " ".join(f"{counts[name]:{len(name.split()[0])}}" for name in WITH_TIER)


def listing(audit: Audit) -> Iterator[str]:
    """Every claim on a line, table by table."""
    for table in tables(audit.verdicts.values()):
        yield ""
        yield place(table)
        for verdict in table.cells.values():
            claim = verdict.claim
            words = " · ".join(filter(None, (claim.row, claim.column)))
            found = equation(verdict) + _ours(verdict)
            yield f"  {claim.id:14} {verdict.status:18} {found}  {words}"


def contradictions(found: Sequence[Found]) -> Iterator[str]:
    """Those that the claims show, then those of which only words are known, then those that are gone."""
    groups = (
        ("contradictions found from the claims", True),
        ("contradictions in words only: a side of them is not in the table, or is no number", None),
        ("contradictions of the table that the claims do not show", False),
    )
    for title, stands in groups:
        rows = [row for row in found if row.stands is stands]
        if rows:
            yield f"{title} ({len(rows)})"
        for row in rows:
            yield f"  {row.contradiction.id:4} {row.contradiction.what}"
            if row.words:
                yield f"       {row.words}"
            yield f"       {row.contradiction.which}"


def detail(verdict: Verdict, found: Sequence[Found]) -> Iterator[str]:
    """All that is known of one claim, fact by fact."""
    yield f"{verdict.claim.id}  {verdict.status}"
    yield from (f"  {name:11} {text}" for name, text in facts(verdict, found))


def facts(verdict: Verdict, found: Sequence[Found]) -> list[tuple[str, str]]:
    """What is known of one claim: names and texts, none empty."""
    claim, tier = verdict.claim, verdict.tier
    known = [("paper", claim.paper), ("where", claim.location), ("row", claim.row), ("column", claim.column),
             ("printed", equation(verdict))]  # fmt: skip
    if tier is not None:
        known += [("ours", own_value(verdict)), ("tier", f"{tier}: {TIERS[tier]}")]
    if verdict.status not in BY_ARITHMETIC:
        known.append(("how" if tier else "of" if verdict.status in ABSENT else "takes", verdict.how))
    known += [("reason", verdict.reason), ("check with", verdict.command), ("conditions", claim.conditions),
              ("known from", claim.provenance), *(("also", note) for note in verdict.notes)]  # fmt: skip
    rows = {row.contradiction.id: row.contradiction for row in found}
    known += [(key, f"{rows[key].what}: {rows[key].which}") for key in verdict.contradictions]
    return [(name, text) for name, text in known if text]


def equation(verdict: Verdict) -> str:
    """What is printed, and what other claims make of it."""
    text = printed(verdict.claim)
    return f"{text} {verdict.how}" if verdict.status in BY_ARITHMETIC else text


def as_json(audit: Audit) -> dict[str, Any]:
    """The audit as data; the keys stand in `fcn audit --help`."""
    seen, recalled = audit.by_status(False), audit.by_status(True)
    return {
        "totals": {status: {"seen": seen[status], "recalled": recalled[status]} for status in STATUSES},
        "tiers": {tier: dict(counts) for tier, counts in audit.by_tier().items()},
        "claims": [_claim_json(verdict) for verdict in audit.verdicts.values()],
        "contradictions": [
            {"id": row.contradiction.id, "what": row.contradiction.what, "which": row.contradiction.which,
             "claims": list(row.contradiction.ids), "found": row.stands, "values": row.words}
            for row in audit.contradictions
        ],
    }  # fmt: skip


def _claim_json(verdict: Verdict) -> dict[str, Any]:
    claim = verdict.claim
    return {
        "id": claim.id, "paper": claim.paper, "location": claim.location, "row": claim.row,
        "column": claim.column, "printed": claim.value, "unit": claim.unit, "recalled": claim.recalled,
        "status": verdict.status, "value": verdict.value, "tier": verdict.tier, "how": verdict.how,
        "reason": verdict.reason, "command": verdict.command, "notes": list(verdict.notes),
        "contradictions": list(verdict.contradictions),
    }  # fmt: skip


def mismatch(verdict: Verdict) -> Iterator[str]:
    """A claim that does not agree: what is printed and what we have, then why."""
    claim = verdict.claim
    where = " · ".join(filter(None, (claim.location, claim.row, claim.column)))
    yield f"{claim.id}  {where}: printed {equation(verdict)}{_ours(verdict)}"
    if verdict.reason:
        yield f"    {verdict.reason}"
    if verdict.contradictions:
        yield f"    see {', '.join(verdict.contradictions)}"


def _ours(verdict: Verdict) -> str:
    value = own_value(verdict)
    return f", ours {value}" if value else ""
