"""The search space against the paper's numbers; decoding against brute force."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from caffe_weights.errors import InputError
from reproduce.nets.architecture import Architecture
from reproduce.search.decoding import decode, decode_cell, decode_path
from reproduce.search.space import CHOICES, block_choices, count_cells, count_paths, edges, paths

LEVELS = {4: 0, 8: 1, 16: 2, 32: 3}


def test_published_numbers() -> None:
    """20 edges x 8 operations, 5.6e14 cells; 28,657 and 75,025 paths, Fibonacci numbers both."""
    assert (len(edges()), len(CHOICES)) == (20, 8)
    assert [len(block_choices(i)) for i in range(1, 6)] == [16, 24, 32, 40, 48]
    assert count_cells() == (16 * 24 * 32 * 40 * 48) ** 2 and round(count_cells() / 1e14, 1) == 5.6
    assert (count_paths(first=(4,)), count_paths()) == (28_657, 75_025)
    assert count_paths(11) == 28_657  # the other reading of the paper's number
    assert round(log(count_cells() * count_paths(first=(4,)), 10)) == 19


def test_paths_are_those_that_obey_the_rule() -> None:
    """Against all 4^5 sequences."""
    every = np.array(np.meshgrid(*[range(4)] * 5, indexing="ij")).reshape(5, -1).T
    legal = {tuple(p) for p in every.tolist() if p[0] < 2 and max(abs(np.diff(p))) <= 1}
    assert {tuple(LEVELS[s] for s in path) for path in paths(5)} == legal


def random_beta(seed: int, layers: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(3), (layers, 4))


def brute_force(beta: np.ndarray, first: tuple[int, ...]) -> tuple[tuple[int, ...], float]:
    """The best of all paths, by the product of its transitions."""
    levels = np.array([[0, *(LEVELS[s] for s in path)] for path in paths(len(beta), first)])
    probability = np.ones(len(levels))
    for layer in range(len(beta)):
        old, new = levels[:, layer], levels[:, layer + 1]
        probability *= beta[layer, old, new - old + 1]
    best = int(probability.argmax())
    strides = tuple(4 * 2 ** int(level) for level in levels[best, 1:])
    return strides, float(probability[best])


@pytest.mark.parametrize("seed", range(6))
def test_viterbi_is_brute_force(seed: int) -> None:
    """Over all 75,025 paths, and over the 28,657 that begin at stride 4 (the way to 8 has no probability)."""
    beta = random_beta(seed, 12)
    assert decode_path(beta) == brute_force(beta, (4, 8))[0]
    pinned = beta.copy()
    pinned[0, 0] = (0, 1, 0)
    assert decode_path(pinned) == brute_force(pinned, (4,))[0]


def test_ways_that_do_not_exist_are_never_taken() -> None:
    beta = np.full((4, 4, 3), 0.01)
    beta[:, 0, 0] = beta[:, 3, 2] = 100.0  # from 4 to 2, from 32 to 64
    beta[:, :, 1] = 0.5
    assert decode_path(beta) == (4, 4, 4, 4)
    beta[:, :, 2] = np.where(np.arange(4) < 3, 0.9, 100.0)
    beta[:, 3, 1] = 0.6
    assert decode_path(beta) == (8, 16, 32, 32)


def test_a_long_path_does_not_vanish() -> None:
    beta = np.full((400, 4, 3), 1e-3)
    beta[:, :, 1], beta[:, :, 2] = 1.5e-3, 2e-3
    found = decode_path(beta)  # three steps to coarser strides, at whatever place, and 397 that stay
    assert len(found) == 400 and found[-1] == 32 and list(found) == sorted(found)


def test_zero_never_wins_and_two_edges_stay() -> None:
    alpha = np.full((5, 8), 0.01)
    alpha[:, 7] = 0.9  # zero, on every edge
    alpha[0, 2], alpha[1, 6] = 0.05, 0.04  # block 1: H-1, H-2
    alpha[2, 0], alpha[3, 1], alpha[4, 5] = 0.02, 0.06, 0.07  # block 2: H-1, H-2, block 1
    assert decode_cell(alpha) == (
        (("H-1", "atrous 3x3"), ("H-2", "skip")),
        (("block 1", "max pool 3x3"), ("H-2", "sep 5x5")),
    )


def test_decoded_cells_are_the_best_of_all_pairs() -> None:
    """Against all pairs of distinct edges with all operations but zero, by the sum of strengths."""
    for seed in range(4):
        alpha = np.random.default_rng(seed).dirichlet(np.ones(8), 20)
        rows = edges()
        for number, block in enumerate(decode_cell(alpha), 1):
            strengths = {(rows[i][1], CHOICES[k]): alpha[i, k] for i in range(20) for k in range(7)
                         if rows[i][0] == number}  # fmt: skip
            pairs = {frozenset((a, b)): strengths[a] + strengths[b] for a in strengths for b in strengths
                     if a[0] != b[0]}  # fmt: skip
            assert frozenset(block) == max(pairs, key=lambda pair: pairs[pair])


def test_the_architecture_is_legal() -> None:
    alpha = np.random.default_rng(1).dirichlet(np.ones(8), 9)
    found = decode(alpha, random_beta(2, 6), 4)
    assert isinstance(found, Architecture) and (len(found.strides), len(found.cell)) == (6, 3)


def test_wrong_shapes_and_values() -> None:
    with pytest.raises(InputError, match=r"alpha: shape \(3, 8\)"):
        decode_cell(np.zeros((3, 8)))
    with pytest.raises(InputError, match=r"alpha: shape \(2, 8\) or values that are no numbers"):
        decode_cell(np.full((2, 8), np.nan))
    for bad in (np.zeros((12, 3, 3)), np.zeros((0, 4, 3)), np.full((2, 4, 3), np.nan)):
        with pytest.raises(InputError, match="beta: shape"):
            decode_path(bad)
