"""Training in the order of DeconvNet's fork, and in Caffe's, against the arithmetic in float64 numpy.

The net is a 1 x 1 convolution, BN on the batch's statistics and a Euclidean loss; gradients are written out.
"""

from __future__ import annotations

import numpy as np
import pytest

from caffe_weights.prototxt import parse_net, parse_solver
from reproduce.deconvnet.recipe import keep_last_gradients
from reproduce.solver import Solver

NET = """
layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 4 dim: 3 dim: 2 dim: 2 } } }
layer { name: "t" type: "Input" top: "t" input_param { shape { dim: 4 dim: 2 dim: 2 dim: 2 } } }
layer { name: "c" type: "Convolution" bottom: "d" top: "c" param { lr_mult: 1 decay_mult: 1 }
        param { lr_mult: 2 decay_mult: 0 } convolution_param { num_output: 2 kernel_size: 1
        weight_filler { type: "gaussian" std: 1 } bias_filler { type: "gaussian" std: 1 } } }
layer { name: "n" type: "BN" bottom: "c" top: "n" bn_param { scale_filler { type: "gaussian" std: 1 }
        shift_filler { type: "gaussian" std: 1 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "n" bottom: "t" top: "loss" }
"""
PASSES, RATE, MOMENTUM, DECAY, STEP = 4, 0.05, 0.9, 0.3, 3
SOLVER = f"""base_lr: {RATE} lr_policy: "step" gamma: 0.1 stepsize: {STEP} momentum: {MOMENTUM}
             weight_decay: {DECAY} iter_size: {PASSES} max_iter: 100 random_seed: 1 type: "SGD" """
MULTS = [(1, 1), (2, 0), (1, 1), (1, 1)]  # rate and decay: weight, bias, and of BN, which says nothing, 1


def batch(number: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(number)
    return {"d": draw.normal(size=(4, 3, 2, 2)), "t": draw.normal(size=(4, 2, 2, 2))}


def gradients(w: list[np.ndarray], blobs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Of weight (2, 3), bias, scale and shift (2,), for one batch of 16 values a channel."""
    x = blobs["d"].transpose(1, 0, 2, 3).reshape(3, -1)  # channel x place
    target = blobs["t"].transpose(1, 0, 2, 3).reshape(2, -1)
    z = w[0] @ x + w[1][:, None]
    deviation = np.sqrt(z.var(1, keepdims=True) + 1e-9)
    h = (z - z.mean(1, keepdims=True)) / deviation
    dy = (w[2][:, None] * h + w[3][:, None] - target) / 4  # half the squares over the batch
    dh = dy * w[2][:, None]
    dz = (dh - dh.mean(1, keepdims=True) - h * (dh * h).mean(1, keepdims=True)) / deviation
    return [dz @ x.T, dz.sum(1), (dy * h).sum(1), dy.sum(1)]


def train(w: list[np.ndarray], iterations: int, faithful: bool) -> None:
    """The fork's iteration: sum, BN's overwritten; decay; one division; or Caffe's: sum, divide, decay."""
    history = [np.zeros_like(v) for v in w]
    for iteration in range(iterations):
        sums = [np.zeros_like(v) for v in w]
        for number in range(PASSES):
            found = gradients(w, batch(iteration * PASSES + number))
            for i, gradient in enumerate(found):
                sums[i] = gradient if faithful and i > 1 else sums[i] + gradient
        rate = RATE * 0.1 ** (iteration // STEP)
        for i, (lr_mult, decay_mult) in enumerate(MULTS):
            if faithful:
                step = rate * lr_mult / PASSES * (sums[i] + DECAY * decay_mult * w[i])
            else:
                step = rate * lr_mult * (sums[i] / PASSES + DECAY * decay_mult * w[i])
            history[i] = MOMENTUM * history[i] + step
            w[i] = w[i] - history[i]


@pytest.mark.parametrize("faithful", [True, False])
def test_iterations_are_those_of_float64_numpy(faithful: bool) -> None:
    solver = parse_solver(SOLVER)
    solver.net_param.CopyFrom(parse_net(NET))
    if faithful:
        solver.weight_decay /= solver.iter_size  # as the recipe writes it
    run = Solver(solver)
    run.net.double()
    if faithful:
        keep_last_gradients(run.net)
    shapes = [(2, 3), (2,), (2,), (2,)]
    slots = run.net.learnable()
    w = [s.parameter().detach().numpy().copy().reshape(shape) for s, shape in zip(slots, shapes, strict=True)]
    first = [v.copy() for v in w]
    for _ in range(2 * STEP + 1):
        run.step(run.pull(batch))
    train(w, 2 * STEP + 1, faithful)
    for slot, wanted, start in zip(slots, w, first, strict=True):
        found = slot.parameter().detach().numpy().reshape(wanted.shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, err_msg=slot.key)  # the decay is a float32 field
        assert np.abs(wanted - start).max() > 0.01 or slot.key == "c.bias"  # which BN takes off again


def test_the_two_orders_differ_as_said() -> None:
    """Decay by a factor of iter_size; BN's step from one batch of four."""
    w = [np.ones((2, 3)), np.zeros(2), np.ones(2), np.zeros(2)]
    forks, caffes = ([v.copy() for v in w] for _ in range(2))
    train(forks, 1, True)
    train(caffes, 1, False)
    found = [gradients(w, batch(number)) for number in range(PASSES)]
    extra = RATE * DECAY * w[0] * (1 - 1 / PASSES)
    np.testing.assert_allclose(forks[0] - caffes[0], extra)
    np.testing.assert_allclose(forks[3], -RATE / PASSES * found[-1][3])
    np.testing.assert_allclose(caffes[3], -RATE / PASSES * sum(g[3] for g in found))
