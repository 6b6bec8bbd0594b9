"""The search space of Auto-DeepLab, enumerated: edges and operations of a cell, paths through the trellis.

Liu et al., CVPR 2019, sections 3 and 5.1. A cell has 5 blocks; each reads two of the outputs of the two cells
before and of the blocks before it, by one of 8 operations each: 20 edges. A path has 12 cells at strides of 4
to 32, neighbours a factor of 2 apart at most, the stem ending at stride 4.

The paper counts 5.6e14 cells, the two inputs of a block chosen freely and in order, and 2.9e4 paths. By its
own rule there are 75,025 paths; 28,657, its number, are those whose first cell is at stride 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from reproduce.nets.architecture import OPERATIONS, STRIDES, block_inputs

ZERO = "zero"
CHOICES = (*OPERATIONS, ZERO)  # what an edge may be, in the order of alpha's columns
BLOCKS, LAYERS = 5, 12
FIRST = (4, 8)  # strides of the first cell

Edge = tuple[int, str]  # block (from 1), input


def edges(blocks: int = BLOCKS) -> list[Edge]:
    """All edges of a cell, in the order of alpha's rows: by block, H-1 and H-2 first."""
    return [(block, source) for block in range(1, blocks + 1) for source in block_inputs(block)]


def block_choices(block: int) -> list[tuple[str, str]]:
    """What one side of a block may be: an input and an operation, the zero among them."""
    return [(source, choice) for source in block_inputs(block) for choice in CHOICES]


def count_cells(blocks: int = BLOCKS) -> int:
    """How many cells there are: two sides for each block, chosen freely and told apart."""
    return prod(len(block_choices(block)) ** 2 for block in range(1, blocks + 1))


def next_strides(stride: int) -> tuple[int, ...]:
    """Where the path may go on: half the stride, the same, twice the stride, as far as they exist."""
    return tuple(other for other in (stride // 2, stride, 2 * stride) if other in STRIDES)


def paths(layers: int = LAYERS, first: tuple[int, ...] = FIRST) -> Iterator[tuple[int, ...]]:
    """All paths of `layers` cells whose first cell is at one of the strides `first`."""
    waiting: list[tuple[int, ...]] = [(stride,) for stride in reversed(first)]
    while waiting:
        path = waiting.pop()
        if len(path) == layers:
            yield path
        else:
            waiting += [(*path, stride) for stride in reversed(next_strides(path[-1]))]


def count_paths(layers: int = LAYERS, first: tuple[int, ...] = FIRST) -> int:
    """How many of them there are, each of them made."""
    return sum(1 for _ in paths(layers, first))
