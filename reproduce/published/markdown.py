"""The audit as `docs/audit.md`: the same bytes for the same package, with no date and no machine in it."""

from __future__ import annotations

from collections.abc import Iterator

from reproduce.published.checks import TIERS
from reproduce.published.report import WRONG, contradictions, mismatch
from reproduce.published.tables import (
    COPIED,
    PAPERS,
    RECALLED,
    SYMBOLS,
    WITH_TIER,
    Table,
    ours,
    paper_of,
    place,
    short,
    symbol,
    tables,
)
from reproduce.published.verdicts import STATUSES, Audit, Verdict

INTRODUCTION = f"""# What is published, and what of it holds

`fcn audit` compares every number of the table of claims with what the toolkit computes; this page is its
output (`fcn audit --markdown docs/audit.md --force`), and a test says when it is stale. `fcn audit --claim
ID` says of one claim how it was found or what it would take; `fcn audit --html FILE` shows the papers' tables
with all of that.

A claim agrees when our value rounds to the printed one. **Tiers** are never added up: what was *transcribed*,
net and claim from the same source, proves only that it was copied rightly. Numbers marked {RECALLED} were
recalled and not seen in a source; they are counted apart. *Consistent* says that a number follows from other
printed numbers, not that anybody here measured it.

More is checked where more is given:

```
fcn audit --weights voc-fcn8s=fcn8s-heavy-pascal.caffemodel --data voc:VOCdevkit/VOC2011
fcn audit --data nyud:DIR --data siftflow:DIR --data pascal-context:DIR     counts what can be counted
python benchmarks/published_timings.py --device cuda --save                 then fcn audit shows the times
```

A claim about published weights is *reproduced* only by the published file: weights are looked up by the SHA-1
of their file, and by a hash of their values that is the same in every format, in
`reproduce/published/tables/known_weights.csv`. Scores of any other weights are shown as *other weights*.
Claims, the arithmetic between them, contradictions and what each claim takes are the other tables there; the
functions that compute are in `reproduce/published/checks/`.
"""


def markdown(audit: Audit) -> str:
    """The page `docs/audit.md`: totals, what does not agree, contradictions, and the tables."""
    lines = [INTRODUCTION, *_totals_md(audit), "", "## What does not agree", ""]
    for verdict in audit.verdicts.values():
        if verdict.status in WRONG:
            first, *more = mismatch(verdict)
            lines.append(f"* **{verdict.claim.id}** {_md(first.partition(' ')[2].strip())}")
            lines += [f"  {_md(line.strip())}" for line in more]
    lines += ["", "## Contradictions", *map(_contradiction_md, contradictions(audit.contradictions))]
    for key, name in PAPERS.items():
        chosen = [verdict for identity, verdict in audit.verdicts.items() if paper_of(identity) == key]
        lines += ["", f"## {key}: {name}"] if chosen else []
        for table in tables(chosen):
            lines += ["", f"### {_md(place(table))}", "", *_table_md(table)]
    return "\n".join(lines) + "\n"


def _totals_md(audit: Audit) -> Iterator[str]:
    every, recalled = audit.by_status(), audit.by_status(True)
    yield from ("## Totals", "", "| status | | claims | of them recalled | |", "|---|---|--:|--:|---|")
    for status, meaning in STATUSES.items():
        yield f"| {status} | {SYMBOLS[status]} | {every[status]} | {recalled[status]} | {meaning} |"
    yield f"| all | | {every.total()} | {recalled.total()} | |"
    yield from ("", f"| tier | {' | '.join(WITH_TIER)} | |", "|---|" + "--:|" * len(WITH_TIER) + "---|")
    for tier, counts in audit.by_tier().items():
        numbers = " | ".join(str(counts[status]) for status in WITH_TIER)
        yield f"| {tier} | {numbers} | {TIERS[tier]} |"
    yield from ("", f"`{SYMBOLS['reproduced']}{COPIED}` marks what was transcribed.")


def _table_md(table: Table) -> Iterator[str]:
    titles = [column or "printed" for column in table.columns]
    yield "| | " + " | ".join(map(_md, titles)) + " |"
    yield "|---|" + "---|" * len(titles)
    for row in table.rows:
        cells = [table.cells.get((row, column)) for column in table.columns]
        yield f"| {_md(row)} | " + " | ".join(map(_cell_md, cells)) + " |"


def _cell_md(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    mine = f" (ours {ours(verdict.claim, verdict.value)})" if verdict.status == "differs" else ""
    return f"{_md(short(verdict.claim))} {symbol(verdict)}{_md(mine)}"


def _contradiction_md(line: str) -> str:
    """Titles as headings, contradictions as items, their words below."""
    if not line.startswith(" "):
        return f"\n### {line[:1].upper()}{line[1:]}\n"
    if not line.startswith("      "):
        identity, _, what = line.strip().partition(" ")
        return f"* **{identity}** {_md(what.strip())}"
    return f"  <br>{_md(line.strip())}"


def _md(text: str) -> str:
    for character in "|*_<[":
        text = text.replace(character, f"\\{character}")
    return text
