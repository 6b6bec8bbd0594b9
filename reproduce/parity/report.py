"""What a comparison found, as objects, for machines and in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from reproduce.parity.case import Case
from reproduce.parity.measure import Difference, Flips, words_of

BAD = ("differ", "shape")


@dataclass
class Row:
    """One content of a blob, or one gradient.

    `state`: agree; rounding (over the tolerance, but not by its layer's doing, see `guilt`); differ; shape
    (two shapes); absent (the other side does not have it). `own` is the difference that its layer alone makes
    when it is fed with the other side's inputs. `from_float64`: how far ours and the other side's are from
    our net in float64.
    """

    words: str
    layer: str
    type: str
    key: tuple[str, ...]
    shape: tuple[int, ...]
    their_shape: tuple[int, ...] | None = None
    state: str = "absent"
    difference: Difference | None = None
    in_place: bool = False
    output: bool = False
    flips: Flips | None = None
    own: float | None = None
    from_float64: tuple[float, float] | None = None
    remark: str = ""


@dataclass(frozen=True)
class Finding:
    """A guilty layer, or several suspects where the other side cannot say what stood between them.

    `row` is where it shows; `inputs` the largest difference among what it was computed from, None where that
    is not known; `hints` say what differs between the two sides' files there.
    """

    row: Row
    suspects: tuple[str, ...]
    inputs: float | None
    hints: tuple[str, ...] = ()


@dataclass
class Report:
    """All that was found.

    `also` are further layers that are out of tolerance on the other side's inputs.
    """

    case: Case
    ours: str
    theirs: str
    tolerance: float
    gradient_tolerance: float
    channels: bool  # whether differences are also relative to each channel
    rows: list[Row]
    gradients: list[Row] = field(default_factory=list)
    guilty: Finding | None = None
    also: list[Finding] = field(default_factory=list)
    guilty_gradient: Finding | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return not any(row.state in BAD for row in (*self.rows, *self.gradients))

    @property
    def compared(self) -> int:
        """How many contents and gradients both sides have."""
        return sum(row.their_shape is not None for row in (*self.rows, *self.gradients))

    @property
    def nearer(self) -> str:
        """Which side is nearer to float64 at the outputs: ours, theirs, equal; "" if that is not known."""
        known = [row.from_float64 for row in self.rows if row.output and row.from_float64]
        if not known:
            return ""
        ours, theirs = (max(pair[i] for pair in known) for i in (0, 1))
        return "equal" if ours == theirs else "ours" if ours < theirs else "theirs"


def as_dict(report: Report) -> dict[str, Any]:
    """The report for JSON; keys as `fcn parity --help` lists them."""
    case = report.case
    return {
        "net": case.ours.path, "weights": case.ours.weights_path,
        "against_net": case.theirs.path, "against_weights": case.theirs.weights_path,
        "phase": case.phase, "backward": case.backward,
        "ours": report.ours, "theirs": report.theirs,
        "inputs": {name: {"shape": list(a.shape), "sha256": case.digests()[name]}
                   for name, a in case.inputs.items()},
        "tolerance": report.tolerance, "gradient_tolerance": report.gradient_tolerance,
        "channels": report.channels,
        "passed": report.passed, "compared": report.compared,
        "guilty": _finding(report.guilty),
        "also": [_finding(finding) for finding in report.also],
        "guilty_gradient": _finding(report.guilty_gradient),
        "nearer_to_float64": report.nearer or None,
        "blobs": [_row(row) for row in report.rows],
        "gradients": [_row(row) for row in report.gradients],
        "notes": report.notes,
    }  # fmt: skip


def lines(report: Report) -> Iterator[str]:
    """The report for a terminal."""
    yield f"ours       {report.ours}"
    yield f"theirs     {report.theirs}"
    for name, digest in report.case.digests().items():
        shape = "x".join(map(str, report.case.inputs[name].shape))
        yield f"input      {name} {shape}, the same array in both, sha256 {digest[:12]}"
    channels = ", and of each of its channels" if report.channels else ""
    yield f"tolerance  {report.tolerance:g} of the largest magnitude of a blob{channels}"
    yield ""
    yield from table(report.rows)
    if report.gradients:
        yield ""
        yield f"gradients, tolerance {report.gradient_tolerance:g}, in the order in which they are computed"
        yield ""
        yield from table(report.gradients)
    yield ""
    yield from verdict(report)


def table(rows: list[Row]) -> Iterator[str]:
    """One line a row, aligned."""
    head = ("blob", "type", "shape", "relative", "absolute", "at", "ulp", "over", "own", "")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    for line in cells:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()


def verdict(report: Report) -> Iterator[str]:
    """The conclusion, one sentence a line."""
    states = [row.state for row in (*report.rows, *report.gradients)]
    kind = "agree" if report.passed else "DIFFER"
    count = sum(state in BAD for state in states) if not report.passed else report.compared
    yield f"{kind}: {count} of {report.compared} compared blobs" + (
        " and gradients" if report.gradients else ""
    )
    if states.count("rounding"):
        yield (
            f"{states.count('rounding')} of them are over the tolerance by rounding that has grown: fed with"
            " the other side's values their layers agree"
        )
    if report.guilty:
        yield from finding_words(report.guilty)
    for finding in report.also:
        yield f"also guilty: {_suspects(finding)}, out of tolerance on the other side's own inputs"
    if report.guilty_gradient:
        if report.guilty:
            yield "gradients differ as they must where the forward pass does"
        else:
            yield from finding_words(report.guilty_gradient)
    for row in report.rows:
        if row.flips:
            yield agreement_words(row)
        if row.flips and row.flips.flipped:
            yield flip_words(row)
    if report.nearer:
        yield nearer_words(report)
    for note in report.notes:
        yield f"note: {note}"


def finding_words(finding: Finding) -> Iterator[str]:
    """Who is guilty, where it shows, and how that is known."""
    row = finding.row
    who = (
        "guilty" if len(finding.suspects) == 1 else "suspects, of which the other side shows nothing between"
    )
    yield f"{who}: {_suspects(finding)}"
    begins = "shows" if row.state in BAD else "begins, still within the tolerance,"
    yield f"  it {begins} in {row.words}: {_apart_words(row)}"
    if finding.inputs is None:
        yield "  it has no inputs that could be compared"
    else:
        yield f"  its inputs still agreed ({finding.inputs:.2g})"
    if row.own is not None and len(row.key) == 2:
        yield f"  fed with the other side's inputs it differs by {row.own:.2g}"
    for hint in finding.hints:
        yield f"  {hint}"


def agreement_words(row: Row) -> str:
    """The share of equal labels, and the worst difference of the scores."""
    assert row.flips is not None and row.difference is not None
    return (f"labels of {row.words}: {row.flips.equal_share:.3%} of {row.flips.labels} equal; the scores"
            f" differ by at most {row.difference.of_largest:.2g} of the largest")  # fmt: skip


def flip_words(row: Row) -> str:
    """How many labels flipped, and how near the ties were."""
    assert row.flips is not None
    f = row.flips
    text = (
        f"labels of {row.words}: {f.flipped} of {f.labels} flipped, the widest gap {f.gap:.2g} of the largest"
    )
    return f"{text} score at {words_of(f.at)}" + (
        f"; {f.clear} were no tie" if f.clear else "; all near ties"
    )


def nearer_words(report: Report) -> str:
    """The judgement of float64."""
    known = [row.from_float64 for row in report.rows if row.output and row.from_float64]
    ours, theirs = (max(pair[i] for pair in known) for i in (0, 1))
    if report.nearer == "equal":
        return f"float64 judges: both are equally near ({ours:.2g})"
    who = "ours is" if report.nearer == "ours" else "the other side is"
    return f"float64 judges: {who} nearer at the output (ours {ours:.2g}, theirs {theirs:.2g})"


def _apart_words(row: Row) -> str:
    if row.state == "shape":
        ours, theirs = ("x".join(map(str, s or ())) for s in (row.shape, row.their_shape))
        return f"shape {ours}, the other side has {theirs}"
    d = row.difference
    assert d is not None
    return (f"{d.relative:.2g} at {words_of(d.relative_at)}, ours {d.relative_values[0]:.8g}, "
            f"theirs {d.relative_values[1]:.8g}")  # fmt: skip


def _suspects(finding: Finding) -> str:
    kinds = f" ({finding.row.type})" if len(finding.suspects) == 1 else ""
    return ", ".join(finding.suspects) + kinds


def _cells(row: Row) -> tuple[str, ...]:
    shape = "x".join(map(str, row.shape)) or "1 value"
    if row.state == "shape":
        shape += " | " + ("x".join(map(str, row.their_shape or ())) or "1 value")
    own = "" if row.own is None else f"{row.own:.1e}"
    end = "" if row.state == "agree" else row.state.upper() if row.state in BAD else row.state
    end = ", ".join(filter(None, [end, row.remark]))
    d = row.difference
    if d is None:
        return row.words, row.type, shape, "", "", "", "", "", own, end
    probed = f" of {d.probed} probed" if d.probed is not None else ""
    return (row.words, row.type, shape, f"{d.relative:.1e}", f"{d.absolute:.1e}", words_of(d.absolute_at),
            f"{d.ulp_of_largest:.1f}", f"{d.share:.2%}{probed}", own, end)  # fmt: skip


def _finding(finding: Finding | None) -> dict[str, Any] | None:
    if finding is None:
        return None
    return {
        "layer": finding.suspects[0] if len(finding.suspects) == 1 else None,
        "suspects": list(finding.suspects), "shows_in": finding.row.words,
        "inputs_agreed": True, "inputs_worst": finding.inputs, "own": finding.row.own,
        "hints": list(finding.hints),
    }  # fmt: skip


def _row(row: Row) -> dict[str, Any]:
    judged = row.from_float64
    return {
        "name": row.words, "layer": row.layer, "type": row.type, "state": row.state,
        "in_place": row.in_place, "output": row.output, "shape": list(row.shape),
        "their_shape": None if row.their_shape is None else list(row.their_shape),
        "difference": asdict(row.difference) if row.difference else None,
        "own": row.own,
        "from_float64": {"ours": judged[0], "theirs": judged[1]} if judged else None,
        "flips": {**asdict(row.flips), "equal_share": row.flips.equal_share} if row.flips else None,
        "remark": row.remark,
    }  # fmt: skip
