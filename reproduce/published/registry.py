"""All checks by the id of their claim."""

from __future__ import annotations

from reproduce.published.checks import Check, autodeeplab, deconvnet, fcn, repository

MODULES = (fcn, repository, deconvnet, autodeeplab)

CHECKS: dict[str, Check] = {claim: check for module in MODULES for claim, check in module.CHECKS.items()}
assert len(CHECKS) == sum(len(module.CHECKS) for module in MODULES), "a claim has two checks"
