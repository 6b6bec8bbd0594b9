"""Times then and now, as an inline SVG: for each claim of a time the printed one and those measured since."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from reproduce.published.claims import Claim
from reproduce.published.tables import printed
from reproduce.published.timings import SECONDS, Timing, latest, time_unit

WIDTH, LEFT, RIGHT = 360, 6, 354  # in units of the drawing, a pixel each on a phone
CHARACTER = 5.6  # about the width of one
ROW, BAR, TEXT = 17, 9, 13  # heights of a bar's line, of a bar, of a line of text
DECADES = (-4, 2)  # of seconds that the axis shows


def chart(claims: Mapping[str, Claim], timings: Sequence[Timing]) -> str:
    """The drawing; logarithmic, a bar for the print and one for each device."""
    measured = latest(timings)
    parts: list[str] = []
    y = 22.0
    for claim in claims.values():
        if claim.check == "timing" and time_unit(claim) and len(claim.numbers) == 1:
            bars = list(_bars(claim, measured.get(claim.id, [])))
            parts += _group(claim, bars, y)
            y += TEXT + 8 + ROW * len(bars)
    body = "".join([*_axis(y), *parts])
    return (
        f'<svg class="times" viewBox="0 0 {WIDTH} {y + 4:.0f}" role="img" '
        f'aria-label="times printed and measured">{body}</svg>'
    )


def _bars(claim: Claim, timings: Sequence[Timing]) -> Iterator[tuple[str, float, str, str]]:
    """Class, seconds, label and words of each bar of a claim."""
    seconds = claim.number * SECONDS[time_unit(claim)]
    yield "then", seconds, _spelt(seconds), f"printed: {printed(claim)}"
    for timing in timings:
        seconds = timing.value * SECONDS["ms"]
        label = f"{_spelt(seconds)}, {timing.device}"
        yield "now", seconds, label, f"{timing.value:.4g} ms: {timing.words}"


def _group(claim: Claim, bars: Sequence[tuple[str, float, str, str]], y: float) -> Iterator[str]:
    title = f"{claim.id} {claim.row}"
    title = title if len(title) <= 58 else f"{title[:57]}…"
    yield f'<text class="title" x="{LEFT}" y="{y + TEXT - 3:.0f}">{escape(title)}</text>'
    for i, (kind, seconds, label, words) in enumerate(bars):
        top = y + TEXT + 2 + ROW * i
        end = _x(seconds)
        yield (
            f'<rect class="{kind}" x="{LEFT}" y="{top:.1f}" width="{max(end - LEFT, 1):.1f}" height="{BAR}">'
            f"<title>{escape(words)}</title></rect>"
        )
        before = end + 8 + CHARACTER * len(label) > WIDTH
        place = f'x="{end - 4:.1f}" text-anchor="end" class="in"' if before else f'x="{end + 4:.1f}"'
        yield f'<text {place} y="{top + BAR - 1:.1f}">{escape(label)}</text>'


def _axis(height: float) -> Iterator[str]:
    for decade in range(DECADES[0], DECADES[1] + 1):
        x = _x(10.0**decade)
        anchor = "start" if decade == DECADES[0] else "end" if decade == DECADES[1] else "middle"
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="16" y2="{height:.0f}"/>'
        yield f'<text x="{x:.1f}" y="11" text-anchor="{anchor}">{_spelt(10.0**decade)}</text>'


def _x(seconds: float) -> float:
    share = (math.log10(seconds) - DECADES[0]) / (DECADES[1] - DECADES[0])
    return LEFT + min(max(share, 0.0), 1.0) * (RIGHT - LEFT)


def _spelt(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
