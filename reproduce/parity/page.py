"""The report as one HTML page that needs nothing else: verdict, a chart of all blobs in order, tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from reproduce.parity.measure import words_of
from reproduce.parity.report import Report, Row, verdict

LOWEST, HIGHEST = -9.0, 1.0  # decades that the chart shows
HEIGHT, TOP, LEFT = 220, 12, 44  # of the chart, in its own units
BAR = (14, 30)  # least and most from one bar to the next
CHART_WIDTH = 1160
COLUMNS = ("blob", "state", "layer type", "shape", "relative", "absolute", "worst at", "ulp", "over", "own")

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --back: #fff; --panel: #f5f7f9;
  --agree: #2c7a4b; --rounding: #b07d12; --differ: #b3261e; --absent: #8a94a1; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaef; --soft: #9aa5b3; --line: #333c47;
  --back: #14181d;
  --panel: #1d232a; --agree: #5cc48a; --rounding: #e2b04a; --differ: #ff8a80; --absent: #7d8894; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 76rem; color: var(--ink);
  background: var(--back);  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .8rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.verdict { border-left: 6px solid var(--agree); background: var(--panel); padding: .8rem 1rem;
  overflow-wrap: anywhere; }
.verdict.differ { border-color: var(--differ); } .verdict p { margin: .15rem 0; }
.verdict .guilty { font-weight: 700; color: var(--differ); } .verdict .more { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 1rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
svg { display: block; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--line); } svg .bound { stroke: var(--differ); stroke-dasharray: 5 4; }
svg .own { stroke: var(--ink); stroke-width: 2; }
.agree { fill: var(--agree); } .rounding { fill: var(--rounding); } .differ, .shape { fill: var(--differ); }
.absent { fill: var(--absent); }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--back); }
td.state { font-weight: 600; color: var(--agree); } tr.differ td.state,
tr.shape td.state { color: var(--differ); }
tr.rounding td.state { color: var(--rounding); } tr.absent td.state { color: var(--absent); }
tr.guilty td { background: color-mix(in srgb, var(--differ) 14%, var(--back)); }
p.legend { color: var(--soft); font-size: .86rem; margin: .5rem 0 0; }
@media (max-width: 34rem) { body { padding: 1rem .7rem 2rem; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; } th:first-child, td:first-child { min-width: 8rem;
  max-width: 9.5rem; white-space: normal; overflow-wrap: anywhere; } }
"""


def page(report: Report) -> str:
    """The whole page; every name in it is escaped."""
    title = f"Parity of {report.case.ours.path}"
    body = [f"<h1>{escape(title)}</h1>", *_verdict(report), *_facts(report), "<h2>Blobs</h2>"]
    body += [*_chart(report.rows, report.tolerance), *_table(report.rows, report)]
    if report.gradients:
        body += ["<h2>Gradients</h2>", *_chart(report.gradients, report.gradient_tolerance)]
        body += _table(report.gradients, report)
    return "\n".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", "</head>\n<body>", *body,
        "</body>\n</html>\n",
    ])  # fmt: skip


def _verdict(report: Report) -> Iterator[str]:
    yield f'<section class="verdict{"" if report.passed else " differ"}">'
    important = ("guilty", "suspects", "also guilty", "DIFFER")
    for line in verdict(report):
        kind = "guilty" if line.startswith(important) else "more" if line.startswith(("  ", "note")) else ""
        yield f'<p class="{kind}">{escape(line.strip())}</p>'
    yield "</section>"


def _facts(report: Report) -> Iterator[str]:
    case = report.case
    facts = [("ours", report.ours), ("theirs", report.theirs), ("weights", case.ours.weights_path)]
    if not case.same_files:
        facts += [("their net", case.theirs.path), ("their weights", case.theirs.weights_path)]
    for name, digest in case.digests().items():
        facts.append((f"input {name}", f"{_shape(case.inputs[name].shape)}, sha256 {digest[:16]}"))
    facts.append(("phase", case.phase))
    facts.append(("tolerance", f"{report.tolerance:g}, gradients {report.gradient_tolerance:g}"))
    yield "<dl>"
    for term, text in facts:
        yield f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>"
    yield "</dl>"


def _chart(rows: Sequence[Row], bound: float) -> Iterator[str]:
    """A bar for each row on a logarithmic axis, the tolerance as a line, `own` as a tick."""
    pitch = max(BAR[0], min(BAR[1], (CHART_WIDTH - LEFT) // max(len(rows), 1)))
    width = LEFT + pitch * len(rows) + 8
    yield '<div class="wide">'
    yield (f'<svg width="{width}" height="{HEIGHT}" viewBox="0 0 {width} {HEIGHT}" role="img" '
           'aria-label="relative difference of each blob">')  # fmt: skip
    for decade in range(int(LOWEST), int(HIGHEST) + 1, 2):
        y = _height(10.0**decade)
        yield f'<line class="grid" x1="{LEFT}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">1e{decade}</text>'
    for i, row in enumerate(rows):
        yield from _bar(row, LEFT + pitch * i + 3, pitch)
    y = _height(bound)
    yield f'<line class="bound" x1="{LEFT}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>'
    yield "</svg></div>"
    yield (
        '<p class="legend">Relative difference in the order of execution; dashed: the tolerance; dark tick: '
        "what the layer alone makes of the other side's inputs. Two shapes fill the whole height.</p>"
    )


def _bar(row: Row, x: int, pitch: int) -> Iterator[str]:
    foot = HEIGHT - TOP
    value = math.inf if row.state == "shape" else row.difference.relative if row.difference else 0.0
    top = _height(value)
    words = f"{row.words} ({row.type}): {row.state}"
    words += f", {row.difference.relative:.2g}" if row.difference else ""
    yield (f'<rect class="{row.state}" x="{x}" y="{top:.1f}" width="{pitch - 4}" '
           f'height="{max(foot - top, 1.5):.1f}"><title>{escape(words)}</title></rect>')  # fmt: skip
    if row.own is not None:
        y = _height(row.own)
        yield f'<line class="own" x1="{x - 2}" x2="{x + pitch - 2}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _height(value: float) -> float:
    decade = (
        LOWEST
        if not value > 0
        else min(max(math.log10(value), LOWEST), HIGHEST)
        if value < math.inf
        else HIGHEST
    )
    return TOP + (HIGHEST - decade) / (HIGHEST - LOWEST) * (HEIGHT - 2 * TOP)


def _table(rows: Sequence[Row], report: Report) -> Iterator[str]:
    found = [f for f in (report.guilty, report.guilty_gradient) if f]
    suspects = {(layer, finding.row.key) for finding in found for layer in finding.suspects}
    yield '<div class="wide" style="margin-top:.8rem"><table>'
    yield "<tr>" + "".join(f"<th>{name}</th>" for name in COLUMNS) + "</tr>"
    for row in rows:
        guilty = " guilty" if any(row.key == key for _, key in suspects) else ""
        name, *others = (f"<td>{escape(text)}</td>" for text in _cells(row))
        state = escape(", ".join(filter(None, [row.state, row.remark])))
        yield f'<tr class="{row.state}{guilty}">{name}<td class="state">{state}</td>{"".join(others)}</tr>'
    yield "</table></div>"


def _cells(row: Row) -> tuple[str, ...]:
    shape = (
        _shape(row.shape)
        if row.state != "shape"
        else f"{_shape(row.shape)} | {_shape(row.their_shape or ())}"
    )
    own = "" if row.own is None else f"{row.own:.1e}"
    d = row.difference
    if d is None:
        return row.words, row.type, shape, "", "", "", "", "", own
    return (row.words, row.type, shape, f"{d.relative:.1e}", f"{d.absolute:.1e}", words_of(d.absolute_at),
            f"{d.ulp_of_largest:.1f}", f"{d.share:.2%}", own)  # fmt: skip


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1 value"
