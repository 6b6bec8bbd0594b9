"""What Auto-DeepLab searches: a path through the trellis of strides, and one cell; as a small JSON file.

Liu et al., CVPR 2019, section 3: a cell is a directed graph of blocks, each the sum of two operations on
earlier outputs; the path says at which stride each cell works. `PUBLISHED` is the architecture of
core/nas_network.py in tensorflow/models (research/deeplab, `hnasnet`), where states are numbered with the
previous cell's output first. The file names things as the paper does:

    {"strides": [4, 4, 8], "cell": [[["H-2", "sep 3x3"], ["H-1", "skip"]], [["block 1", "sep 5x5"], ...]]}

H-1 is the output of the cell before, H-2 that of the one before it. `filters` is optional: F of the paper.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caffe_weights.errors import FormatError, NetError
from caffe_weights.files import PathLike, open_input, replace_file

STRIDES = (4, 8, 16, 32)
OPERATIONS = ("sep 3x3", "sep 5x5", "atrous 3x3", "atrous 5x5", "avg pool 3x3", "max pool 3x3", "skip")
INPUTS = ("H-1", "H-2")
FILTERS = {"s": 20, "m": 32, "l": 48}  # F of the published sizes
MOST_FILE_BYTES = 1 << 20

Edge = tuple[str, str]  # input, operation
Block = tuple[Edge, Edge]


@dataclass(frozen=True)
class Architecture:
    """A path (the stride of each cell) and the cell's blocks, the same in every cell.

    `filters` is F: a block at stride s has F s / 4 channels. NetError, naming the place, for a path that
    leaves the trellis or a cell that is none.
    """

    strides: tuple[int, ...]
    cell: tuple[Block, ...]
    filters: int = FILTERS["s"]

    def __post_init__(self) -> None:
        _check_path(self.strides)
        if not self.cell:
            raise NetError("cell", "no blocks", "at least one")
        for number, block in enumerate(self.cell, 1):
            _check_block(number, block)
        if self.filters < 1:
            raise NetError("filters", str(self.filters), "at least 1")

    @property
    def levels(self) -> tuple[int, ...]:
        """The path as levels: 0 is stride 4, 3 stride 32."""
        return tuple(map(STRIDES.index, self.strides))

    def channels(self, stride: int) -> int:
        """Of a block at a stride; a cell's output has as many for each block."""
        return self.filters * stride // 4

    def as_dict(self) -> dict[str, Any]:
        """What the JSON file holds."""
        cell = [[list(edge) for edge in block] for block in self.cell]
        return {"strides": list(self.strides), "cell": cell, "filters": self.filters}


def block_inputs(number: int) -> tuple[str, ...]:
    """What block `number` (from 1) may read: both cells before, and the blocks before it."""
    return (*INPUTS, *(f"block {earlier}" for earlier in range(1, number)))


def read_architecture(path: PathLike) -> Architecture:
    """The architecture in a JSON file. FileError, FormatError for broken JSON, NetError with the place."""
    with open_input(path) as stream:
        data = stream.read(MOST_FILE_BYTES + 1)
    if len(data) > MOST_FILE_BYTES:
        raise FormatError(str(path), "more than 1 MiB", "an architecture, a few lines of JSON")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(str(path), f"no JSON ({error})", "an architecture: strides and cell") from None
    try:
        return parse_architecture(values)
    except NetError as error:
        raise NetError(f"{path}: {error.where}", error.found, error.wanted, error.do) from None


def parse_architecture(values: Any) -> Architecture:
    """The architecture that the values of a JSON file describe. NetError."""
    if not isinstance(values, dict) or not {"strides", "cell"} <= values.keys():
        raise NetError("architecture", _short(values), "an object with strides and cell")
    unknown = sorted(values.keys() - {"strides", "cell", "filters"})
    if unknown:
        raise NetError("architecture", f"the key {unknown[0]!r}", "strides, cell, filters")
    for name, kind in (("strides", list), ("cell", list), ("filters", int)):
        value = values.get(name, 1)
        if name in values and (not isinstance(value, kind) or isinstance(value, bool)):
            raise NetError(name, _short(value), "a list" if kind is list else "a whole number")
    blocks = tuple(_parse_block(number, block) for number, block in enumerate(values["cell"], 1))
    return Architecture(tuple(values["strides"]), blocks, values.get("filters", FILTERS["s"]))


def write_architecture(architecture: Architecture, path: PathLike, force: bool = False) -> None:
    """Write the JSON file, a line a block. FileError where it exists and `force` is not given."""
    values = architecture.as_dict()
    blocks = ",\n".join(f"    {json.dumps(block)}" for block in values["cell"])
    text = (
        f'{{\n  "strides": {json.dumps(values["strides"])},\n  "cell": [\n{blocks}\n  ],\n'
        f'  "filters": {values["filters"]}\n}}\n'
    )
    with replace_file(path, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _check_path(strides: Sequence[Any]) -> None:
    if not strides:
        raise NetError("strides", "no cells", "at least one")
    before: int | None = None
    for number, stride in enumerate(strides, 1):
        where = f"strides, cell {number}"
        if isinstance(stride, bool) or stride not in STRIDES:
            raise NetError(where, f"stride {_short(stride)}", "4, 8, 16 or 32")
        if before is None and stride > 8:
            raise NetError(where, f"stride {stride}", "4 or 8: the stem ends at stride 4")
        if before is not None and max(stride, before) > 2 * min(stride, before):
            raise NetError(where, f"stride {stride} after {before}", "at most twice or half of it")
        before = stride


def _check_block(number: int, block: Block) -> None:
    where = f"cell, block {number}"
    for source, operation in block:
        known = block_inputs(number)
        if source not in known:
            later = source.startswith("block ") and source[6:].isdigit() and int(source[6:]) >= number
            found = f"the input {source!r}" + (", which is no earlier block" if later else "")
            raise NetError(where, found, " or ".join(known))
        if operation not in OPERATIONS:
            near = difflib.get_close_matches(operation, OPERATIONS, n=2)
            raise NetError(where, f"the operation {operation!r}", " or ".join(near) or ", ".join(OPERATIONS))


def _parse_block(number: int, block: Any) -> Block:
    pairs = block if isinstance(block, list) else []
    edges = [tuple(edge) for edge in pairs if isinstance(edge, list) and len(edge) == 2]
    texts = all(isinstance(text, str) for edge in edges for text in edge)
    if len(pairs) != 2 or len(edges) != 2 or not texts:
        raise NetError(f"cell, block {number}", _short(block), 'two pairs, as ["H-1", "sep 3x3"]')
    return edges[0], edges[1]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


PUBLISHED = Architecture(
    (4, 4, 4, 8, 16, 8, 16, 16, 32, 32, 16, 8),
    (
        (("H-2", "atrous 5x5"), ("H-1", "sep 3x3")),
        (("H-2", "sep 3x3"), ("H-1", "atrous 3x3")),
        (("block 2", "sep 3x3"), ("H-2", "sep 3x3")),
        (("block 3", "sep 5x5"), ("block 1", "sep 5x5")),
        (("block 2", "sep 5x5"), ("block 4", "atrous 5x5")),
    ),
)
