"""One cell of Auto-DeepLab in float64 numpy, from the words of its description; nothing of ours is used.

Every operation is ReLU first and ends with batch normalisation by stored statistics. Convolutions are sums
over their taps, resizing is interpolation with corners aligned by matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Array = np.ndarray
EPS = float(np.float32(1e-3))
Params = Mapping[str, Sequence[Array]]  # blobs by layer


def cell(
    params: Params, name: str, last: Array, before: Array, move: str,
    blocks: Sequence[Sequence[Sequence[str]]], width: int,
) -> Array:  # fmt: skip
    """The output of a cell; `last` and `before` are (N, C, H, W), move is same, up or down."""
    if move == "up":
        last = resize(last, tuple(2 * (n - 1) + 1 for n in last.shape[2:]))
    if before.shape[2:] != last.shape[2:]:
        before = resize(before, last.shape[2:])
    if before.shape[1] != width:
        before = normalised(params, f"{name}_before", relu(before))
    states = {"H-2": before, "H-1": normalised(params, f"{name}_last", relu(last))}
    for number, pair in enumerate(blocks, 1):
        terms = []
        for side, (source, operation) in zip(("left", "right"), pair, strict=True):
            stride = 2 if move == "down" and source in ("H-1", "H-2") else 1
            terms.append(operate(params, f"{name}_block{number}_{side}", operation, states[source], stride))
        states[f"block {number}"] = terms[0] + terms[1]
    return np.concatenate([states[f"block {i}"] for i in range(1, len(blocks) + 1)], 1)


def operate(params: Params, name: str, operation: str, x: Array, stride: int) -> Array:
    kind, _, size = operation.partition(" ")
    if kind == "sep":
        for number, step in ((1, stride), (2, 1)):
            k = int(size[0])
            x = conv(relu(x), params[f"{name}_depthwise{number}"][0], step, k // 2, 1, grouped=True)
            x = normalised(params, f"{name}_pointwise{number}", x)
        return x
    if kind == "atrous":
        k, x = int(size[0]), relu(x)
        rate = 2 if stride == 1 else 1
        if stride == 2:
            x = resize(x, tuple(int((n - 1) / 2 + 1) for n in x.shape[2:]))
        return normalised(params, f"{name}_atrous", x, 1, rate * (k // 2), rate)
    if kind in ("avg", "max"):
        return pool(x, kind, stride)
    return x if stride == 1 else normalised(params, f"{name}_skip", relu(x), 2)


def normalised(params: Params, name: str, x: Array, stride: int = 1, pad: int = 0, rate: int = 1) -> Array:
    """Convolution, then (x - mean) / sqrt(variance + eps) gamma + beta."""
    y = conv(x, params[name][0], stride, pad, rate)
    mean, variance, factor = params[f"{name}_bn"]
    gamma, beta = params[f"{name}_scale"]
    columns = [v.reshape(-1, 1, 1) for v in (mean / factor, variance / factor, gamma, beta)]
    return (y - columns[0]) / np.sqrt(columns[1] + EPS) * columns[2] + columns[3]


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def conv(x: Array, w: Array, stride: int, pad: int, rate: int, grouped: bool = False) -> Array:
    k = w.shape[2]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    size = [(n - rate * (k - 1) - 1) // stride + 1 for n in padded.shape[2:]]
    total = np.zeros((x.shape[0], w.shape[0], *size))
    for i in range(k):
        for j in range(k):
            rows = slice(i * rate, i * rate + stride * (size[0] - 1) + 1, stride)
            columns = slice(j * rate, j * rate + stride * (size[1] - 1) + 1, stride)
            tap = padded[:, :, rows, columns]
            if grouped:
                total += tap * w[:, 0, i, j].reshape(-1, 1, 1)
            else:
                total += np.einsum("oc,nchw->nohw", w[:, :, i, j], tap)
    return total


def pool(x: Array, kind: str, stride: int) -> Array:
    """3 x 3 with a border of 1, which counts as zero in the mean."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0 if kind == "avg" else -np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    return np.asarray(windows.mean((-2, -1)) if kind == "avg" else windows.max((-2, -1)))


def resize(x: Array, size: Sequence[int]) -> Array:
    """Pixel i of m lies at i (n - 1) / (m - 1) of n."""
    for axis, m in ((2, size[0]), (3, size[1])):
        n = x.shape[axis]
        places = np.arange(m) * ((n - 1) / (m - 1) if m > 1 else 0.0)
        weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(n)[None, :]))
        x = np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)
    return x
