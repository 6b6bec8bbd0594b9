"""The audit as one HTML page that needs nothing else: the papers' tables, coloured by verdict.

No script: a cell links to what is known of its claim, which the browser shows at the foot of the window while
it is the target of the address.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from urllib.parse import quote

from reproduce.published.checks import TIERS
from reproduce.published.claims import load_claims
from reproduce.published.contradictions import Found
from reproduce.published.page_style import STYLE
from reproduce.published.report import facts
from reproduce.published.tables import (
    COPIED,
    PAPERS,
    RECALLED,
    SYMBOLS,
    WITH_TIER,
    Table,
    own_value,
    paper_of,
    place,
    short,
    symbol,
    tables,
)
from reproduce.published.timing_chart import chart
from reproduce.published.timings import Timing
from reproduce.published.verdicts import STATUSES, Audit, Verdict

TITLE = "What is published, and what of it holds"


def page(audit: Audit, timings: Sequence[Timing] = ()) -> str:
    """The whole page; every text of a claim is escaped."""
    body = [f"<h1>{TITLE}</h1>", *_totals(audit), *_papers(audit), *_times(timings)]
    body += [*_contradictions(audit.contradictions), *_details(audit)]
    return "\n".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{TITLE}</title>", f"<style>{STYLE}</style>", "</head>\n<body>", *body,
        "</body>\n</html>\n",
    ])  # fmt: skip


def _totals(audit: Audit) -> Iterator[str]:
    every, recalled = audit.by_status(), audit.by_status(True)
    yield f"<p>{every.total()} numbers, {recalled.total()} of them recalled and not seen in a source"
    yield f"({RECALLED}). Each cell tells what is known of a number; choose one to see how.</p>"
    yield _bar(every)
    yield '<div class="wide"><table class="totals"><tr><th>verdict</th><th>claims</th><th>recalled</th></tr>'
    for status, words in STATUSES.items():
        yield f'<tr><td class="{_class(status)}"><b>{SYMBOLS[status]}</b>{status}<small>{escape(words)}'
        yield f"</small></td><td>{every[status]}</td><td>{recalled[status]}</td></tr>"
    yield "</table></div>"
    yield '<div class="wide"><table class="totals"><tr><th>tier</th>'
    yield "".join(f'<th title="{status}">{SYMBOLS[status]}</th>' for status in WITH_TIER) + "</tr>"
    for tier, counts in audit.by_tier().items():
        numbers = "".join(f"<td>{counts[status]}</td>" for status in WITH_TIER)
        yield f"<tr><td>{tier}<small>{escape(TIERS[tier])}</small></td>{numbers}</tr>"
    yield "</table></div>"
    copied = f"{SYMBOLS['reproduced']}{COPIED}"
    yield f'<p class="soft">Tiers are never added up; <b>{copied}</b> marks what was transcribed.</p>'


def _bar(counts: Mapping[str, int]) -> str:
    """All verdicts in one line, each as wide as its share."""
    parts = [
        f'<i class="{_class(status)}" style="flex:{counts[status]}" title="{counts[status]} {status}"></i>'
        for status in STATUSES
        if counts[status]
    ]
    return f'<div class="bar" aria-hidden="true">{"".join(parts)}</div>'


def _papers(audit: Audit) -> Iterator[str]:
    chosen: dict[str, list[Verdict]] = {}
    for identity, verdict in audit.verdicts.items():
        chosen.setdefault(paper_of(identity), []).append(verdict)
    yield "<nav>" + " ".join(f'<a href="#{key}">{escape(PAPERS[key])}</a>' for key in chosen)
    yield '<a href="#times">times</a> <a href="#contradictions">contradictions</a></nav>'
    for key, verdicts in chosen.items():
        yield f'<h2 id="{key}">{escape(PAPERS[key])}</h2>'
        counts = {status: sum(v.status == status for v in verdicts) for status in STATUSES}
        yield _bar(counts)
        laid_out = tables(verdicts)
        alone = len({table.paper for table in laid_out}) == 1
        for table in laid_out:
            yield from _table(table, table.location if alone else place(table))


def _table(table: Table, title: str) -> Iterator[str]:
    yield f"<h3>{escape(title)}</h3>"
    conditions = {verdict.claim.conditions for verdict in table.cells.values()}
    if len(conditions) == 1 and (words := conditions.pop()):
        yield f'<p class="soft">{escape(words)}</p>'
    kind = "list" if table.columns == ("",) else "grid"
    yield f'<div class="wide"><table class="{kind}">'
    if kind == "grid":
        titles = "".join(f"<th>{escape(column or 'printed')}</th>" for column in table.columns)
        yield f"<tr><th></th>{titles}</tr>"
    for row in table.rows:
        cells = (_cell(table.cells.get((row, column))) for column in table.columns)
        yield f"<tr><th>{escape(row)}</th>{''.join(cells)}</tr>"
    yield "</table></div>"


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return "<td></td>"
    claim = verdict.claim
    value = "" if verdict.status == "reproduced" else own_value(verdict)
    mine = f"<small>{escape(value)}</small>" if value else ""
    words = f"{claim.id}: {verdict.status}"
    return (
        f'<td class="{_class(verdict.status)}"><a href="#{_anchor(claim.id)}" title="{escape(words)}">'
        f"{escape(short(claim))}<b>{symbol(verdict)}</b>{mine}</a></td>"
    )


def _times(timings: Sequence[Timing]) -> Iterator[str]:
    yield '<h2 id="times">Times then and now</h2>'
    yield '<p class="soft"><i class="key then"></i> printed, <i class="key now"></i> measured since'
    yield "(logarithmic; hold still over a bar for its device and date).</p>"
    if not timings:
        yield "<p>No measurement is committed yet.</p>"
    yield chart(load_claims(), timings)


def _contradictions(found: Sequence[Found]) -> Iterator[str]:
    yield '<h2 id="contradictions">Contradictions</h2>'
    for title, stands in (
        ("Found from the claims", True),
        ("In words only: a side is not in the table, or is no number", None),
        ("In the table, but not shown by the claims", False),
    ):
        rows = [row for row in found if row.stands is stands]
        if rows:
            yield f"<h3>{title} ({len(rows)})</h3><ul>"
        for row in rows:
            values = f"<br>{escape(row.words)}" if row.words else ""
            item = row.contradiction
            yield f'<li id="{item.id}"><b>{item.id}</b> {escape(item.what)}{values}'
            yield f'<br><span class="soft">{escape(item.which)}</span></li>'
        if rows:
            yield "</ul>"


def _details(audit: Audit) -> Iterator[str]:
    for verdict in audit.verdicts.values():
        rows = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
            for name, text in facts(verdict, audit.contradictions)
        )
        yield (
            f'<aside id="{_anchor(verdict.claim.id)}"><a class="close" href="#_" aria-label="close">×</a>'
            f'<h4 class="{_class(verdict.status)}">{escape(verdict.claim.id)} '
            f"<b>{symbol(verdict)}</b> {verdict.status}</h4><dl>{rows}</dl></aside>"
        )


def _class(status: str) -> str:
    return status.replace(" ", "-")


def _anchor(identity: str) -> str:
    """An id without blanks that an address can hold."""
    return "claim-" + quote(identity, safe="").replace("%", "_")
