"""Convolution, Deconvolution, Pooling and LRN over products of settings, against loops in float64 numpy."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from layer_nets import FILL, draw, net_of, run
from layer_oracles import Shape, convolve, deconvolve, lrn, pool, pool_out

from reproduce.net import Net

EXACT = 1e-11  # float64 against float64: the order of sums only
FIELDS = ("kernel", "stride", "pad", "dilation")


def sample(count: int, *columns: Iterable[Any], valid: Any = lambda *_: True) -> list[tuple[Any, ...]]:
    """So many cases of the full product, the same in every run."""
    cases = [case for case in itertools.product(*columns) if valid(*case)]
    return random.Random(0).sample(cases, min(count, len(cases)))


def fits(size: tuple[int, ...], *window: tuple[int, ...]) -> bool:
    """Whether the dilated kernel lies in the padded input."""
    return all(d * (k - 1) + 1 <= n + 2 * p for n, k, _, p, d in zip(size, *window, strict=True))


PLANE = [(1, 1), (3, 3), (2, 3), (4, 1)], [(1, 1), (2, 2), (3, 1)], [(0, 0), (1, 1), (0, 3)], [(1, 1), (2, 1)]
CONVOLUTIONS = [
    *sample(30, [(5, 6), (4, 7)], *PLANE, [1, 2, 4], valid=lambda *c: fits(*c[:5])),
    *sample(8, [(7,)], [(3,), (2,)], [(1,), (2,)], [(0,), (2,)], [(1,), (2,)], [1, 2]),
    *sample(8, [(3, 4, 3)], [(2, 3, 1)], [(1, 1, 1), (1, 2, 2)], [(0, 0, 0), (1, 1, 0)], [(1, 1, 1)], [1, 2]),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(case: tuple[Any, ...]) -> None:
    size, *window, group = case
    net = net_of("Convolution", [(2, 4, *size)], fields(window, f"num_output: 8 group: {group} {FILL}"))
    check_linear(net, convolve, (2, 4, *size), Shape(*window), group)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_deconvolution(case: tuple[Any, ...]) -> None:
    size, *window, group = case
    spans = [
        s * (n - 1) + d * (k - 1) + 1 - 2 * p for n, k, s, p, d in zip(size, *window, strict=True)
    ]  # fmt: skip
    if min(spans) < 1:
        window[2] = (0,) * len(size)
    net = net_of("Deconvolution", [(2, 4, *size)], fields(window, f"num_output: 8 group: {group} {FILL}"))
    check_linear(net, deconvolve, (2, 4, *size), Shape(*window), group)


def test_convolution_of_a_kernel_a_little_larger_than_its_input() -> None:
    """Division towards zero makes one output, whose window hangs over the edge."""
    window = [(4, 3), (2, 1), (0, 0), (1, 1)]
    net = net_of("Convolution", [(2, 4, 3, 3)], fields(window, f"num_output: 8 {FILL}"))
    check_linear(net, convolve, (2, 4, 3, 3), Shape(*window), 1)


POOLS = sample(
    70,
    [(5, 6), (7, 4), (2, 3)],
    [(1, 1), (2, 2), (3, 3), (3, 2), (4, 4)],
    [(1, 1), (2, 2), (3, 3), (5, 4)],
    [(0, 0), (1, 1), (2, 1), (3, 3)],
    ["MAX", "AVE"],
    ["CEIL", "FLOOR"],
    valid=lambda size, kernel, stride, pad, *_: (
        all(p < k for p, k in zip(pad, kernel, strict=True))
        and all(k <= n + 2 * p for n, k, p in zip(size, kernel, pad, strict=True))
    ),
)


@pytest.mark.parametrize("case", POOLS, ids=str)
def test_pooling(case: tuple[Any, ...]) -> None:
    """Padding to kernel - 1, strides above the kernel, both roundings."""
    size, *window, method, rounding = case
    shape = Shape(window[0], window[1], window[2], (1, 1))
    more = " ".join(f"{name}_h: {v[0]} {name}_w: {v[1]}" for name, v in zip(FIELDS, window, strict=False))
    net = net_of(
        "Pooling", [(2, 3, *size)], f"pooling_param {{ pool: {method} round_mode: {rounding} {more} }}"
    )
    check_pool(net, size, shape, pool_out(size, shape, rounding == "FLOOR"), method == "AVE")


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_global_pooling(method: str, size: tuple[int, int]) -> None:
    net = net_of("Pooling", [(2, 3, *size)], f"pooling_param {{ pool: {method} global_pooling: true }}")
    check_pool(net, size, Shape(size, (1, 1), (0, 0), (1, 1)), [1, 1], method == "AVE")


@pytest.mark.parametrize(
    "case", sample(12, [1, 3, 5], [0.5, 2.0], [0.75, 0.4], [1.0, 2.5], [False, True]), ids=str
)
def test_lrn(case: tuple[Any, ...]) -> None:
    size, alpha, beta, k, within = case
    region = "WITHIN_CHANNEL" if within else "ACROSS_CHANNELS"
    more = f"local_size: {size} alpha: {alpha} beta: {beta} k: {k} norm_region: {region}"
    net = net_of("LRN", [(1, 4, 3, 4)], f"lrn_param {{ {more} }}")
    x, dy = draw(1, 4, 3, 4), draw(1, 4, 3, 4, seed=1)
    close(backward(net, x, dy), lrn(x.numpy(), dy.numpy(), size, alpha, float(np.float32(beta)), k, within))


def fields(window: Sequence[tuple[int, ...]], more: str) -> str:
    names = ("kernel_size", "stride", "pad", "dilation")
    values = " ".join(f"{name}: {v}" for name, vs in zip(names, window, strict=True) for v in vs)
    return f"convolution_param {{ {values} {more} }}"


def check_linear(net: Net, oracle: Any, bottom: tuple[int, ...], shape: Shape, group: int) -> None:
    """Forward, and the gradients of bottom, weight and bias."""
    x, (weight, bias) = draw(*bottom), net.params["l"]
    dy = draw(*net.shapes().blobs["y0"], seed=1)
    y, dx, dw = oracle(x.numpy(), weight.detach().numpy(), dy.numpy(), shape, group)
    y += bias.detach().numpy().reshape(-1, *(1,) * (y.ndim - 2))
    got = backward(net, x, dy)
    db = dy.numpy().sum(axis=(0, *range(2, y.ndim)))
    grads = [p.grad.numpy() for p in (weight, bias) if p.grad is not None]
    close([*got, *grads], (y, dx, dw, db))


def check_pool(net: Net, size: tuple[int, ...], shape: Shape, out: list[int], average: bool) -> None:
    x, dy = draw(2, 3, *size), draw(2, 3, *out, seed=1)
    close(backward(net, x, dy), pool(x.numpy(), dy.numpy(), shape, average))


def backward(net: Net, x: torch.Tensor, dy: torch.Tensor) -> list[np.ndarray]:
    """The top, and the gradient of the bottom for the top's gradient dy."""
    leaf = x.clone().requires_grad_()
    (y,) = run(net, leaf)
    assert y.shape == dy.shape
    # a window without a value has no gradient to take: NaN times 0
    (torch.where(y.isnan(), 0.0, y) * dy).sum().backward()
    assert leaf.grad is not None
    return [y.detach().numpy(), leaf.grad.numpy()]


def close(got: Iterable[np.ndarray], want: Iterable[np.ndarray]) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT)
