"""The optimizers and rate policies alone, against recursions in float64 written from the definitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from caffe_weights.caffe_pb2 import SolverParameter
from caffe_weights.errors import InputError
from caffe_weights.prototxt import parse_solver
from reproduce.learning_rate import LearningRate
from reproduce.optimizers import OPTIMIZERS, SGD, AdaDelta, Adam, CaffeOptimizer, Nesterov, RMSProp

STEPS = 12
METHODS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "Nesterov": {"momentum": 0.95},
    "AdaGrad": {"delta": 1e-3},
    "RMSProp": {"rms_decay": 0.9, "delta": 1e-3},
    "AdaDelta": {"momentum": 0.9, "delta": 1e-3},
    "Adam": {"momentum": 0.9, "momentum2": 0.99, "delta": 1e-3},
}


# ---- oracles: one scalar at a time, from the papers' and Caffe's formulas ----


def sgd(grads: list[float], rates: list[float], momentum: float) -> Iterator[float]:
    velocity = 0.0
    for grad, rate in zip(grads, rates, strict=True):
        velocity = rate * grad + momentum * velocity
        yield velocity


def nesterov(grads: list[float], rates: list[float], momentum: float) -> Iterator[float]:
    velocities = [0.0, *sgd(grads, rates, momentum)]
    for old, new in pairwise(velocities):
        yield new + momentum * (new - old)


def adagrad(grads: list[float], rates: list[float], delta: float) -> Iterator[float]:
    for t, rate in enumerate(rates):
        yield rate * grads[t] / (math.sqrt(sum(g * g for g in grads[: t + 1])) + delta)


def rmsprop(grads: list[float], rates: list[float], rms_decay: float, delta: float) -> Iterator[float]:
    for t, rate in enumerate(rates):
        yield rate * grads[t] / (math.sqrt(weighted_squares(grads[: t + 1], rms_decay)) + delta)


def adadelta(grads: list[float], rates: list[float], momentum: float, delta: float) -> Iterator[float]:
    raw: list[float] = []
    for t, rate in enumerate(rates):
        above = weighted_squares(raw, momentum) + delta
        below = weighted_squares(grads[: t + 1], momentum) + delta
        raw.append(grads[t] * math.sqrt(above / below))
        yield rate * raw[-1]


def adam(
    grads: list[float], rates: list[float], momentum: float, momentum2: float, delta: float
) -> Iterator[float]:
    for t, rate in enumerate(rates):
        mean = sum((1 - momentum) * momentum ** (t - i) * g for i, g in enumerate(grads[: t + 1]))
        squares = weighted_squares(grads[: t + 1], momentum2)
        unbias = math.sqrt(1 - momentum2 ** (t + 1)) / (1 - momentum ** (t + 1))
        yield rate * unbias * mean / (math.sqrt(squares) + delta)


def weighted_squares(values: list[float], keep: float) -> float:
    return sum((1 - keep) * keep ** (len(values) - 1 - i) * v * v for i, v in enumerate(values))


ORACLES: dict[str, Callable[..., Iterator[float]]] = {
    "SGD": sgd, "Nesterov": nesterov, "AdaGrad": adagrad, "RMSProp": rmsprop, "AdaDelta": adadelta,
    "Adam": adam,
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_updates_follow_the_definition(name: str) -> None:
    draw = np.random.default_rng(7)
    grads, rates = draw.normal(size=STEPS), draw.uniform(0.01, 0.1, STEPS)
    want = 0.5 - np.cumsum(list(ORACLES[name](list(grads), list(rates * 3), **METHODS[name])))
    p = parameter([0.5])
    optimizer = OPTIMIZERS[name]([{"params": [p], "lr_mult": 3.0}], lr=1.0, **METHODS[name])
    for i in range(STEPS):
        optimizer.param_groups[0]["lr"] = rates[i]
        p.grad = torch.tensor([grads[i]], dtype=torch.float64)
        optimizer.step()
        assert float(p.detach()) == pytest.approx(want[i], rel=1e-12)


@pytest.mark.parametrize("kind", ["L2", "L1"])
@pytest.mark.parametrize("clip", [-1.0, 0.0, 0.5, 1e9])
def test_clips_then_divides_then_decays(kind: str, clip: float) -> None:
    draw = np.random.default_rng(3)
    values, grads = [draw.normal(size=4) for _ in "ab"], [draw.normal(size=4) * 3 for _ in "ab"]
    values[0][1] = 0.0  # L1 leaves a zero alone
    norm = np.linalg.norm(np.concatenate(grads))
    scale = min(1.0, clip / float(norm)) if clip >= 0 else 1.0
    parameters = [parameter(v) for v in values]
    groups = [{"params": [p], "decay_mult": m} for p, m in zip(parameters, (1.0, 0.5), strict=True)]
    optimizer = SGD(groups, lr=0.1, weight_decay=0.01, regularization=kind, clip_gradients=clip, iter_size=5)
    for p, g in zip(parameters, grads, strict=True):
        p.grad = torch.from_numpy(g.copy())
    optimizer.step()
    for p, v, g, mult in zip(parameters, values, grads, (1.0, 0.5), strict=True):
        decay = np.sign(v) if kind == "L1" else v
        np.testing.assert_allclose(p.detach().numpy(), v - 0.1 * (g * scale / 5 + 0.01 * mult * decay), 1e-13)
        np.testing.assert_array_equal(np.asarray(p.grad), g)  # left as it was


def test_velocity_keeps_the_old_rate() -> None:
    ours, torchs = parameter([1.0]), parameter([1.0])
    one, other = SGD([ours], lr=0.1, momentum=0.5), torch.optim.SGD([torchs], lr=0.1, momentum=0.5)
    for rate in (0.1, 0.01):
        for p, optimizer in ((ours, one), (torchs, other)):
            optimizer.param_groups[0]["lr"] = rate
            p.grad = torch.ones_like(p)
            optimizer.step()
    assert float(ours.detach()) == pytest.approx(1 - 0.1 - (0.01 + 0.5 * 0.1))
    assert float(torchs.detach()) == pytest.approx(1 - 0.1 - 0.01 * (1 + 0.5 * 1))


@pytest.mark.parametrize("name", METHODS)
def test_is_an_ordinary_optimizer(name: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = OPTIMIZERS[name](model.parameters(), lr=1 if name == "AdaDelta" else 0.05, **METHODS[name])
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        return loss

    first = float(optimizer.step(closure).detach())
    for _ in range(60):
        last = float(optimizer.step(closure).detach())
    assert last < 0.5 * first


def test_state_dict_round_trip() -> None:
    runs = []
    for cut in (None, 4):
        p = parameter([1.0, -2.0])
        optimizer: CaffeOptimizer = Adam([p], lr=0.1, momentum=0.9)
        for i in range(8):
            if i == cut:
                saved, optimizer = optimizer.state_dict(), Adam([p], lr=5.0, momentum=0.1)
                optimizer.load_state_dict(saved)
            p.grad = torch.tensor([0.3, -0.1 * i], dtype=torch.float64)
            optimizer.step()
        runs.append(p.detach().numpy().copy())
    np.testing.assert_array_equal(runs[0], runs[1])


def test_without_gradient_nothing_moves() -> None:
    p = parameter([1.0])
    SGD([p], lr=0.1, weight_decay=0.5).step()
    assert float(p.detach()) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Adam(p, lr=0.1, momentum=1.0), "momentum: 1; wanted at least 0 and below 1"),
        (lambda p: Adam(p, lr=0.1, momentum2=-0.1), "momentum2: -0.1; wanted at least 0 and below 1"),
        (lambda p: RMSProp(p, lr=0.1, rms_decay=1.0), "rms_decay: 1; wanted"),
        (lambda p: SGD(p, lr=math.nan), "lr: nan; wanted a finite number"),
        (lambda p: SGD(p, lr=0.1, weight_decay=math.inf), "weight_decay: inf"),
        (lambda p: SGD(p, lr=0.1, iter_size=0), "iter_size: 0; wanted at least 1"),
        (lambda p: SGD(p, lr=0.1, clip_gradients=math.nan), "clip_gradients: nan"),
        (lambda p: AdaDelta(p, lr=0.1, regularization="L3"), "regularization_type: 'L3'; wanted L2 or L1"),
    ],
)
def test_bad_options(make: Callable[[list[torch.Tensor]], Any], message: str) -> None:
    with pytest.raises(InputError, match="^" + message.replace("(", r"\(")) as caught:
        make([parameter([1.0])])
    assert "\n" not in str(caught.value)


def test_unknown_option() -> None:
    with pytest.raises(TypeError, match="Nesterov has no option delta"):
        Nesterov([parameter([1.0])], lr=0.1, delta=1.0)


# ---- rates ----

RATES = [  # worked by hand from caffe.proto's description of lr_policy
    ('lr_policy: "fixed" base_lr: 0.5', [0.5, 0.5, 0.5, 0.5, 0.5]),
    ('lr_policy: "step" base_lr: 8 gamma: 0.5 stepsize: 2', [8, 8, 4, 4, 2]),
    ('lr_policy: "exp" base_lr: 16 gamma: 0.5', [16, 8, 4, 2, 1]),
    ('lr_policy: "inv" base_lr: 12 gamma: 1 power: 1', [12, 6, 4, 3, 2.4]),
    ('lr_policy: "multistep" base_lr: 8 gamma: 0.5 stepvalue: [1, 3]', [8, 4, 4, 2, 2]),
    ('lr_policy: "multistep" base_lr: 8 gamma: 0.5 stepvalue: [1, 1, 1]', [8, 4, 2, 1, 1]),
    ('lr_policy: "poly" base_lr: 8 power: 2 max_iter: 4', [8, 4.5, 2, 0.5, 0]),
    ('lr_policy: "sigmoid" base_lr: 2 gamma: 0 stepsize: 1', [1, 1, 1, 1, 1]),
]


@pytest.mark.parametrize(("text", "want"), RATES)
def test_rates(text: str, want: list[float]) -> None:
    rate = LearningRate(parse_solver(text))
    assert [rate(i) for i in range(5)] == pytest.approx(want, rel=1e-15)


def test_sigmoid_rises_through_its_middle() -> None:
    rate = LearningRate(parse_solver('lr_policy: "sigmoid" base_lr: 2 gamma: 1 stepsize: 3'))
    assert rate(3) == 1.0
    assert rate(4) == pytest.approx(2 / (1 + 1 / math.e))


def test_current_step_is_that_of_a_snapshot() -> None:
    step = LearningRate(parse_solver('lr_policy: "step" base_lr: 1 gamma: 0.5 stepsize: 3'))
    steps = LearningRate(parse_solver('lr_policy: "multistep" base_lr: 1 gamma: 0.5 stepvalue: [2, 2]'))
    for i in range(7):
        step(i), steps(i)
    assert (step.current_step, steps.current_step) == (2, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_lr: 1", "solver: no lr_policy; wanted one of fixed, step"),
        ('lr_policy: "cosine" base_lr: 1', "solver: lr_policy: 'cosine'; wanted one of fixed, step"),
        ('lr_policy: "fixed"', "solver: lr_policy 'fixed': no base_lr"),
        ('lr_policy: "fixed" base_lr: nan', "solver: base_lr: nan; wanted a finite number"),
        ('lr_policy: "step" base_lr: 1 stepsize: 3', "solver: lr_policy 'step': no gamma"),
        ('lr_policy: "step" base_lr: 1 gamma: 0.1', "solver: lr_policy 'step': no stepsize"),
        (
            'lr_policy: "step" base_lr: 1 gamma: 0.1 stepsize: 0',
            "solver: lr_policy 'step': stepsize: 0; wanted",
        ),
        ('lr_policy: "exp" base_lr: 1 gamma: -1', "solver: lr_policy 'exp': gamma: -1; wanted 0 or more"),
        ('lr_policy: "inv" base_lr: 1 gamma: 1', "solver: lr_policy 'inv': no power"),
        ('lr_policy: "multistep" base_lr: 1 gamma: 1', "solver: lr_policy 'multistep': no stepvalue"),
        ('lr_policy: "multistep" base_lr: 1 gamma: 1 stepvalue: [3, 2]', "solver: .*stepvalue: 3, 2; wanted"),
        ('lr_policy: "poly" base_lr: 1 power: 1', "solver: lr_policy 'poly': no max_iter"),
        ('lr_policy: "sigmoid" base_lr: 1 gamma: 1', "solver: lr_policy 'sigmoid': no stepsize"),
    ],
)
def test_bad_policies(text: str, message: str) -> None:
    with pytest.raises(InputError, match="^" + message):
        LearningRate(parse_solver(text))


@pytest.mark.parametrize(
    ("solver", "iteration"),
    [
        (SolverParameter(lr_policy="poly", base_lr=1, power=0.5, max_iter=4), 5),
        (SolverParameter(lr_policy="poly", base_lr=1, power=-1, max_iter=4), 4),
        (SolverParameter(lr_policy="exp", base_lr=1, gamma=10), 1000),
    ],
)
def test_a_rate_that_is_no_number(solver: SolverParameter, iteration: int) -> None:
    with pytest.raises(InputError, match=f"no finite rate at iteration {iteration}"):
        LearningRate(solver)(iteration)


def parameter(values: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(np.asarray(values), dtype=torch.float64))
