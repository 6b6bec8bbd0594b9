"""Exact mean field of the fully connected CRF, in float64, for small pictures: the oracle of `reproduce.crf`.

Follows Kraehenbuehl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials
(NIPS 2011), equations 2, 3 and algorithm 1, with Potts compatibility: Q <- softmax(-unary + sum_m w_m K_m Q).
Two conventions are those of their library, which the published systems ran: a pixel sends its message to
itself too (K_ii = 1), and kernels may be normalised. The sums run over all pairs of pixels, so time and
memory grow with the square of their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

MOST_PIXELS = 64 * 64  # a kernel of 128 MiB

# How a kernel K of N x N values is normalised, with D the sums of its rows.
NORMALIZATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda kernel: kernel,
    "before": lambda kernel: kernel / _sums(kernel)[np.newaxis, :],
    "after": lambda kernel: kernel / _sums(kernel)[:, np.newaxis],
    "symmetric": lambda kernel: kernel / np.sqrt(np.outer(_sums(kernel), _sums(kernel))),
}


def gaussian_kernel(features: np.ndarray) -> np.ndarray:
    """exp(-|f_i - f_j|^2 / 2) for features N x d, which are divided by their standard deviations before."""
    norms = (features**2).sum(1)
    squares = norms[:, np.newaxis] + norms[np.newaxis] - 2 * features @ features.T
    return np.exp(-np.maximum(squares, 0) / 2)


def place_features(height: int, width: int, sxy: float) -> np.ndarray:
    """Column and row of each pixel, N x 2, over the standard deviation in pixels."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows], -1).reshape(-1, 2) / sxy


def colour_features(image: np.ndarray, sxy: float, srgb: float) -> np.ndarray:
    """Place and colour of each pixel, N x 5, of a picture uint8 H x W x 3; `srgb` in values of 0..255."""
    colours = image.reshape(-1, 3).astype(np.float64) / srgb
    return np.hstack([place_features(image.shape[0], image.shape[1], sxy), colours])


def mean_field(unary: np.ndarray, kernels: Sequence[tuple[float, np.ndarray]], iterations: int) -> np.ndarray:
    """Q, float64 C x N, after parallel updates of all pixels; `unary` C x N are energies.

    `kernels` are weights with their kernels N x N, normalised already.
    """
    energies = np.asarray(unary, np.float64)
    beliefs = softmax(-energies)
    for _ in range(iterations):
        messages = [weight * beliefs @ kernel.T for weight, kernel in kernels]
        beliefs = softmax(sum(messages, start=-energies))
    return beliefs


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities over the first axis."""
    raised = np.exp(scores - scores.max(axis=0, keepdims=True))
    return np.asarray(raised / raised.sum(axis=0, keepdims=True))


def _sums(kernel: np.ndarray) -> np.ndarray:
    return np.asarray(kernel.sum(axis=1))
