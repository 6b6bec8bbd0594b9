"""From alpha and beta to an architecture: section 4.3 of Liu et al., CVPR 2019.

Cell: the strength of an edge is that of its strongest operation other than zero; each block keeps its two
strongest edges, with these operations. (Two ports take the maximum with zero among them, against the text.)
Network: the path of the greatest product of beta, read as transition probabilities from the stem to the
last layer, where it may end anywhere; by Viterbi's algorithm on logarithms. Probabilities at the borders of
the trellis, where only two ways lead on, are taken as they are.

Alpha is (edges, 8), in the order of `space.edges` and `space.CHOICES`. Beta is (layers, 4, 3): entry
[l, s, d] leads from layer l (0: the stem) at stride STRIDES[s] to layer l + 1 at half the stride, the same,
twice the stride (d = 0, 1, 2). Ways that do not exist count as 0 whatever stands there.
"""

from __future__ import annotations

import numpy as np

from caffe_weights.errors import InputError
from reproduce.nets.architecture import OPERATIONS, STRIDES, Architecture, Block, Edge
from reproduce.search.space import CHOICES, edges, next_strides

WAYS = 3


def decode(alpha: np.ndarray, beta: np.ndarray, filters: int) -> Architecture:
    """The architecture of probabilities `alpha` and `beta`, with F for the final net. InputError."""
    return Architecture(decode_path(beta), decode_cell(alpha), filters)


def decode_cell(alpha: np.ndarray) -> tuple[Block, ...]:
    """The blocks. InputError for another shape than (edges of some number of blocks, 8), or for NaN."""
    blocks = _blocks(alpha)
    found: list[list[tuple[float, Edge]]] = [[] for _ in range(blocks)]
    for row, (block, source) in zip(alpha, edges(blocks), strict=True):
        best = int(row[: len(OPERATIONS)].argmax())
        found[block - 1].append((float(row[best]), (source, OPERATIONS[best])))
    return tuple(_two_strongest(block) for block in found)


def decode_path(beta: np.ndarray) -> tuple[int, ...]:
    """The strides of the most probable path. InputError for another shape than (layers, 4, 3), or for NaN."""
    beta = np.asarray(beta, float)
    if beta.ndim != 3 or not len(beta) or beta.shape[1:] != (len(STRIDES), WAYS) or np.isnan(beta).any():
        raise InputError("beta", f"shape {beta.shape} or values that are no numbers", "(layers, 4, 3)")
    with np.errstate(divide="ignore"):
        steps = np.log(np.maximum(beta, 0))
    best = {STRIDES[0]: 0.0}  # log-probability of the best way to each stride, the stem's first
    back: list[dict[int, int]] = []
    for layer in range(len(beta)):
        ways = {
            (old, new): score + steps[layer, STRIDES.index(old), way(old, new)]
            for old, score in best.items()
            for new in next_strides(old)
        }
        origin = {new: max((o for o, n in ways if n == new), key=lambda o: ways[o, new]) for _, new in ways}
        best = {new: ways[old, new] for new, old in origin.items()}
        back.append(origin)
    path = [max(best, key=lambda stride: best[stride])]
    for origin in reversed(back[1:]):
        path.append(origin[path[-1]])
    return tuple(reversed(path))


def way(old: int, new: int) -> int:
    """The last index of beta: 0 to half the stride, 1 the same, 2 to twice the stride."""
    return STRIDES.index(new) - STRIDES.index(old) + 1


def _two_strongest(edges_of_block: list[tuple[float, Edge]]) -> Block:
    # sorted() keeps the order of equal ones, so that the earlier edge wins
    first, second = sorted(edges_of_block, key=lambda edge: -edge[0])[:2]
    return first[1], second[1]


def _blocks(alpha: np.ndarray) -> int:
    blocks = 1
    while len(edges(blocks)) < len(alpha):
        blocks += 1
    if alpha.shape != (len(edges(blocks)), len(CHOICES)) or np.isnan(alpha).any():
        raise InputError("alpha", f"shape {alpha.shape} or values that are no numbers",
                         f"(2, 5, 9, 14, 20, ...; {len(CHOICES)})")  # fmt: skip
    return blocks
