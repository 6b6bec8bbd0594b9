"""What a check of a claim is: a function of the claim and a context that gives a finding.

Each module here exports `CHECKS`, claim id -> check; `reproduce.published.registry` puts them together. A
check computes and never compares: whether a value agrees with the print is decided in one place, by
`Claim.agrees`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from caffe_weights.errors import NetError
from reproduce.published.checks.nets import Nets
from reproduce.published.claims import Claim, Value

Tier = Literal["recomputed", "transcribed", "measured", "rescored", "retrained"]

TIERS: dict[Tier, str] = {
    "recomputed": "from first principles: kernel sizes, shapes, lists, arithmetic",
    "transcribed": "our net or setting and the claim come from the same source, so agreement proves only that"
    " it was copied rightly",
    "measured": "timed, with device and date",
    "rescored": "published weights on the data",
    "retrained": "trained here",
}


@dataclass(frozen=True)
class Finding:
    """What a check found: a value in base units (see `Claim.agrees`) and in one line how.

    `reason` says why the value differs, where it does and that is known, or what one that agrees means.
    `status`, one of those of `reproduce.published.verdicts`, stands in for the comparison: `not built`,
    `out of scope`; then `value` is None and `reason` names the system.
    """

    value: Value | None
    tier: Tier | None = None
    how: str = ""
    reason: str = ""
    status: str = ""


@dataclass
class Context:
    """What checks may look at. `nets` can hold changed nets: `Context(Nets(make=...))`."""

    nets: Nets = field(default_factory=Nets)


Check = Callable[[Claim, Context], Finding]


def finding(check: Check, claim: Claim, context: Context) -> Finding:
    """What a check finds; of nets that cannot be computed the error, which agrees with no print."""
    try:
        return check(claim, context)
    except NetError as error:
        return Finding("none", reason=f"it cannot be computed: {error}")


def recomputed(function: Callable[..., Value], *args: Any, reason: str = "") -> Check:
    """The check that calls `function(context.nets, *args)`, in the tier `recomputed`."""
    return _check("recomputed", function, args, reason)


def transcribed(function: Callable[..., Value], *args: Any, reason: str = "") -> Check:
    """The same in the tier `transcribed`."""
    return _check("transcribed", function, args, reason)


def without(status: str, system: str) -> Check:
    """The check of a claim that cannot be computed: `not built` or `out of scope`, and which system it is."""
    return lambda claim, context: Finding(None, reason=system, status=status)


def _check(tier: Tier, function: Callable[..., Value], args: tuple[Any, ...], reason: str) -> Check:
    words = " ".join((function.__doc__ or "").split("\n")[0].split()).rstrip(".")
    how = f"{words} [{', '.join(map(_words, args))}]" if args else words

    def check(claim: Claim, context: Context) -> Finding:
        return Finding(function(context.nets, *args), tier, how, reason)

    return check


def _words(arg: Any) -> str:
    if isinstance(arg, tuple):
        return " ".join(_words(item) for item in arg if item is not None)
    return str(arg)
