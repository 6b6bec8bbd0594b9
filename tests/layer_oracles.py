"""The layers with windows, in numpy the slow way: forward and backward as sums over index triples.

Nothing here is shared with the code under test. `links` lists, for one axis, which input each tap of each
output position reads; everything else is loops over its products.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FLT_MAX = float(np.finfo(np.float32).max)
Sizes = Sequence[int]
Places = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Shape:
    """Kernel, stride, padding and dilation, one value an axis."""

    kernel: Sizes
    stride: Sizes
    pad: Sizes
    dilation: Sizes


def links(size: int, out: int, kernel: int, stride: int, pad: int, dilation: int) -> list[tuple[int, ...]]:
    """(output position, tap, input position) wherever the tap meets the input."""
    triples = [(o, t, o * stride - pad + t * dilation) for o in range(out) for t in range(kernel)]
    return [triple for triple in triples if 0 <= triple[2] < size]


def all_links(size: Sizes, out: Sizes, shape: Shape) -> list[Places]:
    """(outputs, taps, inputs), each with one index an axis."""
    axes = [
        links(*values)
        for values in zip(size, out, shape.kernel, shape.stride, shape.pad, shape.dilation, strict=True)
    ]
    return [tuple(zip(*triples, strict=True)) for triples in itertools.product(*axes)]


def conv_out(size: Sizes, shape: Shape) -> list[int]:
    """Output sizes; a division that cuts towards zero, as C's does."""
    values = zip(size, shape.kernel, shape.stride, shape.pad, shape.dilation, strict=True)
    return [math.trunc((n + 2 * p - (d * (k - 1) + 1)) / s) + 1 for n, k, s, p, d in values]


def convolve(
    x: np.ndarray, w: np.ndarray, dy: np.ndarray | None, shape: Shape, group: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y without bias, and for a gradient dy of y those of x and w. x (N, C, ...), w (O, C / group, ...)."""
    out = conv_out(x.shape[2:], shape)
    n, g, grouped = x.shape[0], group, np.split(w, group)
    y = np.zeros((n, w.shape[0], *out))
    dy = np.zeros_like(y) if dy is None else dy
    dx, dw = np.zeros_like(x), [np.zeros_like(part) for part in grouped]
    xs, ys, dxs, dys = (np.split(a, g, axis=1) for a in (x, y, dx, dy))  # views, one a group
    for o, t, i in all_links(x.shape[2:], out, shape):
        for k in range(g):
            taps = grouped[k][_at(t)]  # (O / g, C / g)
            ys[k][_at(o)] += xs[k][_at(i)] @ taps.T
            dxs[k][_at(i)] += dys[k][_at(o)] @ taps
            dw[k][_at(t)] += dys[k][_at(o)].T @ xs[k][_at(i)]
    return y, dx, np.concatenate(dw)


def deconvolve(
    x: np.ndarray, w: np.ndarray, dy: np.ndarray, shape: Shape, group: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The convolution run backwards: x takes the place of its top's gradient, dy that of its bottom."""
    blank = np.zeros((x.shape[0], w.shape[1] * group, *dy.shape[2:]))
    _, y, _ = convolve(blank, w, x, shape, group)
    dx, _, _ = convolve(dy, w, None, shape, group)
    _, _, dw = convolve(dy, w, x, shape, group)
    return y, dx, dw


def pool_out(size: Sizes, shape: Shape, floor: bool) -> list[int]:
    """Output sizes: rounded up, or down; with padding the last window begins inside."""
    counts = []
    for n, k, s, p in zip(size, shape.kernel, shape.stride, shape.pad, strict=True):
        count = (math.floor if floor else math.ceil)((n + 2 * p - k) / s) + 1
        while any(shape.pad) and (count - 1) * s >= n + p:
            count -= 1
        counts.append(count)
    return counts


def pool(x: np.ndarray, dy: np.ndarray, shape: Shape, average: bool) -> tuple[np.ndarray, np.ndarray]:
    """y and the gradient of x (N, C, H, W) for the gradient dy of y, value by value."""
    out, size = dy.shape[2:], x.shape[2:]
    y, dx = np.zeros(dy.shape), np.zeros(x.shape)
    for n, c, *place in np.ndindex(*dy.shape):
        at = (n, c, *place)
        begins = [o * s - p for o, s, p in zip(place, shape.stride, shape.pad, strict=True)]
        ends = [min(b + k, m + p) for b, k, m, p in zip(begins, shape.kernel, size, shape.pad, strict=True)]
        area = math.prod(e - b for b, e in zip(begins, ends, strict=True))
        inside = [range(max(b, 0), min(e, m)) for b, e, m in zip(begins, ends, size, strict=True)]
        cells = [(n, c, *cell) for cell in itertools.product(*inside)]
        if average:
            with np.errstate(invalid="ignore"):
                y[at] = np.float64(sum(x[cell] for cell in cells)) / np.float64(area)
            for cell in cells:
                dx[cell] += dy[at] / area
            continue
        y[at] = -FLT_MAX
        winner = None
        for cell in cells:
            if x[cell] > y[at]:
                y[at], winner = x[cell], cell
        if winner is not None:
            dx[winner] += dy[at]
    assert len(out) == 2
    return y, dx


def lrn(
    x: np.ndarray, dy: np.ndarray, size: int, alpha: float, beta: float, k: float, within: bool
) -> tuple[np.ndarray, np.ndarray]:
    """y and the gradient of x. Across: k + alpha / size * sum; within a channel: 1 + alpha / size^2 * sum."""
    half, share = size // 2, alpha / size ** (2 if within else 1)
    neighbours = [
        [at for at in np.ndindex(*x.shape) if _near(here, at, half, within)] for here in np.ndindex(*x.shape)
    ]
    flat = {here: neighbours[i] for i, here in enumerate(np.ndindex(*x.shape))}
    scale = {here: (1 if within else k) + share * sum(x[at] ** 2 for at in flat[here]) for here in flat}
    y, dx = np.zeros_like(x), np.zeros_like(x)
    for here, around in flat.items():
        y[here] = x[here] * scale[here] ** -beta
        pull = sum(dy[at] * x[at] * scale[at] ** (-beta - 1) for at in around)
        dx[here] = dy[here] * scale[here] ** -beta - 2 * beta * share * x[here] * pull
    return y, dx


def _at(places: tuple[int, ...]) -> Any:
    return (..., *places)


def _near(a: tuple[int, ...], b: tuple[int, ...], half: int, within: bool) -> bool:
    n, c, row, column = (abs(p - q) for p, q in zip(a, b, strict=True))
    if within:
        return n == c == 0 and row <= half and column <= half
    return n == row == column == 0 and c <= half
