"""Pictures of an architecture and of a running search, after the figures of Liu et al., CVPR 2019.

An architecture: above its path through the trellis (Figure 1), below its cell (Figure 3), inputs left and the
output right. A search: alpha as a table of edges and operations, beta as lines as thick as they are
probable, with the path and the cell that would be decoded now.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from caffe_weights.files import PathLike, replace_file
from reproduce.nets.architecture import STRIDES, Architecture
from reproduce.search.decoding import decode_cell, decode_path, way
from reproduce.search.space import CHOICES, edges, next_strides, paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

STEM_PLACES = ((-2.0, -1.0), (-1.0, 0.0))  # column and row of the stem's two marks: strides 2 and 4
CHOSEN, FAINT = "#1f5fa8", "#c8c8c8"
FILLS = {"sep": "#dce9f7", "atrous": "#f9dfc8", "avg": "#dff0da", "max": "#dff0da", "skip": "#ececec"}


def draw_architecture(architecture: Architecture, path: PathLike, force: bool = False) -> None:
    """Write path and cell of an architecture as a PNG. FileError."""
    cells, blocks = len(architecture.strides), len(architecture.cell)
    figure, (above, below) = _figure(
        max(8.0, 0.75 * cells + 3), 3.2 + 1.1 * blocks + 1.2, (3.2, 1.1 * blocks + 1.2)
    )
    _trellis(above, cells)
    _walk(above, architecture.strides)
    above.set_title(f"path of {cells} cells, F = {architecture.filters}")
    _cell(below, architecture)
    below.set_title("cell: each block is the sum of two operations")
    _save(figure, path, force)


def draw_search(alpha: np.ndarray, beta: np.ndarray, path: PathLike, title: str = "") -> None:
    """Write alpha (edges, 8) and beta (layers, 4, 3), both after their softmax, as a PNG; an old one goes."""
    rows, layers = len(alpha), len(beta)
    figure, (above, below) = _figure(max(8.0, 0.75 * layers + 3), 3.4 + 0.28 * rows, (3.0, 0.28 * rows + 0.4))
    _trellis(above, layers, beta)
    _walk(above, decode_path(beta))
    above.set_title(title or "beta, and the most probable path")
    _table(below, alpha)
    _save(figure, path, force=True)


def _figure(width: float, height: float, heights: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(2, 1, height_ratios=heights))


def _trellis(axes: Axes, layers: int, beta: np.ndarray | None = None) -> None:
    """All maps and ways; with beta each way as thick as it is probable."""
    reached = {(layer, stride) for p in paths(min(layers, 4)) for layer, stride in enumerate(p, 1)}
    reached |= {(layer, stride) for layer in range(5, layers + 1) for stride in STRIDES}
    axes.plot(*zip(*STEM_PLACES, strict=True), "ks-", ms=6, lw=1)
    for layer, old in [(0, STRIDES[0]), *sorted(reached)]:
        if layer == layers:
            continue
        for new in next_strides(old):
            start = STEM_PLACES[1] if layer == 0 else (layer, _row(old))
            width = 0.6 if beta is None else 5 * float(beta[layer, STRIDES.index(old), way(old, new)])
            axes.plot([start[0], layer + 1], [start[1], _row(new)], color=FAINT, lw=width, zorder=1)
    for layer, stride in reached:
        axes.plot(layer, _row(stride), "o", color=FAINT, ms=9, zorder=2)
    axes.set(yticks=range(-1, 4), yticklabels=["2", "4", "8", "16", "32"], ylim=(3.5, -1.5), ylabel="stride",
             xticks=range(1, layers + 1), xlim=(-2.6, layers + 0.6), xlabel="cell")  # fmt: skip
    _bare(axes)


def _walk(axes: Axes, strides: tuple[int, ...]) -> None:
    columns = [STEM_PLACES[1][0], *range(1, len(strides) + 1)]
    rows = [STEM_PLACES[1][1], *map(_row, strides)]
    axes.plot(columns, rows, color=CHOSEN, lw=2.2, zorder=3)
    axes.plot(columns[1:], rows[1:], "o", color=CHOSEN, ms=10, zorder=4)


def _cell(axes: Axes, architecture: Architecture) -> None:
    """Inputs on the left, a row a block: two boxes, their sum; an arrow from each block to the output."""
    blocks = len(architecture.cell)
    middle = (blocks - 1) / 2
    ends = {"H-2": (0.0, middle - 0.7), "H-1": (0.0, middle + 0.7)}
    ends |= {f"block {i}": (3.0 + 1.9 * (i - 1), float(i - 1)) for i in range(1, blocks + 1)}
    right = ends[f"block {blocks}"][0] + 1.6
    concat = _box(axes, (right, middle), "concat", "w")
    for name in ("H-2", "H-1"):
        _box(axes, ends[name], name, "w")
    for number, block in enumerate(architecture.cell, 1):
        x, y = ends[f"block {number}"]
        for shift, (source, operation) in zip((-0.22, 0.22), block, strict=True):
            place, fill = (x - 0.95, y + shift), FILLS[operation.split(" ", maxsplit=1)[0]]
            axes.plot([place[0], x], [place[1], y], color="#777777", lw=1, zorder=1)
            _arrow(axes, ends[source], _box(axes, place, operation, fill), "#777777")
        _arrow(axes, (x, y), concat, CHOSEN)
        _box(axes, (x, y), "+", "w", "circle,pad=0.25")
        axes.text(x + 0.05, y - 0.28, str(number), fontsize=8, color=CHOSEN)
    axes.set(xlim=(-0.5, right + 0.6), ylim=(blocks - 0.4, -0.6), xticks=[], yticks=[])
    _bare(axes)


def _table(axes: Axes, alpha: np.ndarray) -> None:
    blocks = len({block for block, _ in edges_of(alpha)})
    kept = {(i, edge) for i, block in enumerate(decode_cell(alpha), 1) for edge in block}
    image = axes.imshow(alpha, aspect="auto", cmap="Blues", vmin=0, vmax=max(0.25, float(alpha.max())))
    for row, (block, source) in enumerate(edges_of(alpha)):
        for column, choice in enumerate(CHOICES):
            if (block, (source, choice)) in kept:
                axes.plot(column, row, "o", mfc="none", mec="#d62728", ms=9)
    axes.set(xticks=range(len(CHOICES)), xticklabels=CHOICES, yticks=range(len(alpha)),
             yticklabels=[f"{source} to block {block}" for block, source in edges_of(alpha)])  # fmt: skip
    axes.tick_params(labelsize=7)
    axes.set_title(f"alpha; circles: what {blocks} blocks would keep now", fontsize=9)
    axes.figure.colorbar(image, ax=axes)


def edges_of(alpha: np.ndarray) -> list[tuple[int, str]]:
    """The edges that the rows of alpha stand for."""
    blocks = 1
    while len(edges(blocks)) < len(alpha):
        blocks += 1
    return edges(blocks)


def _box(
    axes: Axes, place: tuple[float, float], words: str, fill: str, style: str = "round,pad=0.28"
) -> Text:
    box = {"boxstyle": style, "fc": fill, "ec": "#888888"}
    return axes.text(*place, words, ha="center", va="center", fontsize=8, zorder=5, bbox=box)


def _arrow(axes: Axes, start: tuple[float, float], end: Text, colour: str) -> None:
    """From a place, under whatever box lies there, to the edge of a box."""
    style = {"arrowstyle": "-|>", "color": colour, "lw": 0.9, "alpha": 0.75, "shrinkA": 0, "shrinkB": 0,
             "patchB": end.get_bbox_patch()}  # fmt: skip
    axes.annotate("", end.get_position(), start, arrowprops=style, zorder=1)


def _row(stride: int) -> float:
    return float(STRIDES.index(stride))


def _bare(axes: Axes) -> None:
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)


def _save(figure: Figure, path: PathLike, force: bool) -> None:
    with replace_file(Path(path), force=force) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
