"""Two small nets, their data and how to look at a solver's parameters; for the tests of the solver."""

from __future__ import annotations

import numpy as np

from reproduce.solver import Solver

LINEAR = """
name: "linear"
layer { name: "data" type: "Input" top: "data" top: "target"
  input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 0.5 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "target" top: "loss" }
"""
DROPOUT = """
layer { name: "data" type: "Input" top: "data" top: "target"
  input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } } }
layer { name: "ip1" type: "InnerProduct" bottom: "data" top: "ip1"
  inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "ip1" top: "bn" }
layer { name: "drop" type: "Dropout" bottom: "bn" top: "bn" }
layer { name: "ip2" type: "InnerProduct" bottom: "bn" top: "ip2"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip2" bottom: "target" top: "loss" }
"""


def data(number: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(number)
    return {"data": draw.normal(size=(4, 3)), "target": draw.normal(size=(4, 2))}


def values(solver: Solver) -> dict[str, list[np.ndarray]]:
    return {name: [p.detach().numpy().copy() for p in ps] for name, ps in solver.net.params.items()}


def assert_same(one: Solver, other: Solver) -> None:
    for name, arrays in values(one).items():
        for a, b in zip(arrays, values(other)[name], strict=True):
            np.testing.assert_array_equal(a, b)
