"""Caffe's learning rate policies.

Follows `SGDSolver::GetLearningRate` in `src/caffe/solvers/sgd_solver.cpp` of BVLC/caffe at 9b891540. The
policy `multistep` counts its steps: each time the rate is read it goes on by at most one of them, so reading
is part of the iteration and the count is part of a snapshot. Departures: rates are computed in float64; a
field that a policy reads must be given (Caffe takes 0 for it), and a rate that is no finite number is an
error (Caffe goes on with it).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from caffe_weights.caffe_pb2 import SolverParameter
from caffe_weights.errors import InputError


class LearningRate:
    """The rate of each iteration: `rate(iteration)`, to be read once an iteration, in order.

    `solver` gives lr_policy, base_lr and what the policy needs of gamma, power, stepsize, stepvalue and
    max_iter. `current_step` is what Caffe keeps in a snapshot under this name. InputError for an unknown
    policy and missing or impossible fields.
    """

    def __init__(self, solver: SolverParameter) -> None:
        self.solver = solver
        self.current_step = 0
        _check(solver)

    def __call__(self, iteration: int) -> float:
        """The rate of this iteration, counted from 0; InputError where it is no finite number."""
        try:
            rate = self.solver.base_lr * POLICIES[self.solver.lr_policy][0](self, iteration)
        except (OverflowError, ZeroDivisionError):
            rate = math.inf
        if isinstance(rate, complex) or not math.isfinite(rate):
            fields = " and ".join(POLICIES[self.solver.lr_policy][1]) or "base_lr"
            raise InputError(f"solver: lr_policy {self.solver.lr_policy!r}",
                             f"no finite rate at iteration {iteration}", do=f"correct {fields}")  # fmt: skip
        return rate


def _step(rate: LearningRate, iteration: int) -> float:
    rate.current_step = iteration // rate.solver.stepsize
    return rate.solver.gamma**rate.current_step


def _multistep(rate: LearningRate, iteration: int) -> float:
    steps = rate.solver.stepvalue
    if rate.current_step < len(steps) and iteration >= steps[rate.current_step]:
        rate.current_step += 1
    return rate.solver.gamma**rate.current_step


def _exp(rate: LearningRate, iteration: int) -> float:
    return rate.solver.gamma**iteration


def _inv(rate: LearningRate, iteration: int) -> float:
    return (1 + rate.solver.gamma * iteration) ** -rate.solver.power


def _poly(rate: LearningRate, iteration: int) -> float:
    return (1 - iteration / rate.solver.max_iter) ** rate.solver.power


def _sigmoid(rate: LearningRate, iteration: int) -> float:
    return 1 / (1 + math.exp(-rate.solver.gamma * (iteration - rate.solver.stepsize)))


# Policy -> (factor of base_lr at an iteration, the fields it needs)
POLICIES: dict[str, tuple[Callable[[LearningRate, int], float], tuple[str, ...]]] = {
    "fixed": (lambda rate, iteration: 1.0, ()),
    "step": (_step, ("gamma", "stepsize")),
    "exp": (_exp, ("gamma",)),
    "inv": (_inv, ("gamma", "power")),
    "multistep": (_multistep, ("gamma", "stepvalue")),
    "poly": (_poly, ("power", "max_iter")),
    "sigmoid": (_sigmoid, ("gamma", "stepsize")),
}


def _check(solver: SolverParameter) -> None:
    known = "one of " + ", ".join(POLICIES)
    if not solver.HasField("lr_policy"):
        raise InputError("solver", "no lr_policy", known, "set it")
    if solver.lr_policy not in POLICIES:
        raise InputError("solver: lr_policy", repr(solver.lr_policy), known, "correct it")
    where = f"solver: lr_policy {solver.lr_policy!r}"
    for name in ("base_lr", *POLICIES[solver.lr_policy][1]):
        if name == "stepvalue":
            _check_stepvalue(solver, where)
        elif not solver.HasField(name):
            raise InputError(where, f"no {name}", name, "set it")
    if not math.isfinite(solver.base_lr):
        raise InputError("solver: base_lr", f"{solver.base_lr}", "a finite number")
    if solver.gamma < 0 or math.isnan(solver.gamma):
        raise InputError(f"{where}: gamma", f"{solver.gamma:g}", "0 or more")
    for name in ("stepsize", "max_iter"):
        if name in POLICIES[solver.lr_policy][1] and getattr(solver, name) < 1:
            raise InputError(f"{where}: {name}", f"{getattr(solver, name)}", "at least 1")


def _check_stepvalue(solver: SolverParameter, where: str) -> None:
    if not solver.stepvalue:
        raise InputError(where, "no stepvalue", "the iterations at which the rate falls", "set them")
    if list(solver.stepvalue) != sorted(solver.stepvalue):
        found = ", ".join(map(str, solver.stepvalue))
        raise InputError(f"{where}: stepvalue", found, "iterations in rising order", "sort them")
