"""What it would take to check a claim that is not computed, and the command that does it.

`tables/requirements.csv` is read from the top: the first row whose patterns fit a claim's id, row and column
holds. `needs` says how the claim is checked:

  weights+data   the named weights scored on the named data set
  difference     of two such scores
  server         label maps of a test set whose truth only its server has
  data           counted in the data set
  training       trained anew
  search         searched for anew
  not built      by something that the toolkit does not have; `note` says what
  out of scope   not at all: another system's number, named by `note`
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from reproduce.published.claims import TABLES, Claim

TIMINGS = "python benchmarks/published_timings.py --device cuda --save"
DECONVNET = (
    "fcn data deconvnet voc DIR --out CROPS; fcn train --recipe deconvnet --data deconvnet:CROPS --out DIR"
)
SYSTEMS = ("DeconvNet", "Auto-DeepLab", "Cityscapes")


@dataclass(frozen=True)
class Requirement:
    """One row of the table."""

    ids: str
    row: str
    column: str
    needs: str
    net: str
    weights: str
    data: str
    note: str

    def fits(self, claim: Claim) -> bool:
        """Whether the row is about this claim."""
        return (
            fnmatchcase(claim.id, self.ids)
            and fnmatchcase(claim.row, self.row)
            and fnmatchcase(claim.column, self.column)
        )


def load_requirements() -> list[Requirement]:
    """All rows, in order."""
    lines = (TABLES / "requirements.csv").read_text(encoding="utf-8").splitlines()
    return [Requirement(**row) for row in csv.DictReader(lines)]


def requirement_of(claim: Claim, table: Sequence[Requirement]) -> Requirement:
    """The first row that fits; for an architecture claim without one, that its system is not built."""
    for row in table:
        if row.fits(claim):
            return row
    if claim.check == "timing":
        return Requirement(claim.id, "", "", "gpu", "", "", "", "")
    system = next((name for name in SYSTEMS if name in claim.paper), claim.paper)
    return Requirement(claim.id, "", "", "not built", "", "", "", system)


def command(claim: Claim, required: Requirement) -> str:
    """The command that would check the claim, "" where there is none."""
    if claim.check == "timing":
        return f"{TIMINGS}; fcn audit --claim {claim.id}"
    net, data, file = required.net, required.data, required.weights
    if required.needs in ("weights+data", "difference"):
        return f"fcn audit --claim {claim.id} --weights {net}={file} --data {data}:DIR"
    if required.needs == "server":
        crops = " --proposals auto --faithful" if net == "deconvnet" else ""
        return f"fcn segment --net {net} --weights {file}{crops} --out DIR IMAGE...; the server scores them"
    if required.needs == "data":
        return f"fcn audit --claim {claim.id} --data {data}:DIR"
    if required.needs == "search":
        return f"fcn search --data {data}:DIR --out DIR"
    if required.needs == "training" and net == "deconvnet":
        return DECONVNET
    if required.needs == "training":
        return f"fcn train {net} --from WEIGHTS --data {data}:DIR --out DIR"
    return ""
