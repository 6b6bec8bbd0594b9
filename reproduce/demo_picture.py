"""The demo's pictures: a strip with what each field says and the digits read from it; segmented canvases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from caffe_weights.files import replace_file
from reproduce.digits import FIELD, STRIDE, field_centres

if TYPE_CHECKING:
    from reproduce.demo import Strip
    from reproduce.demo_segmentation import Segmented

CLASSES = [*"0123456789", "none"]
RIGHT, WRONG, FRAME = "#1a7f37", "#cf222e", "#f59e0b"
SHOWN = 4  # canvases
COLOURS = np.concatenate([np.zeros((1, 3)), colormaps["tab10"](range(10))[:, :3]])  # of ground and digits


def draw_reading(strip: Strip, path: Path) -> None:
    """Write the picture of a strip and its reading as PNG."""
    width = strip.image.shape[1]
    figure = Figure(figsize=(width / 28, 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[2.4, 5.5, 1.6])
    _draw_strip(top, strip)
    shown = _draw_confidence(middle, strip)
    _draw_digits(bottom, strip)
    figure.colorbar(shown, ax=middle, label="confidence", pad=0.01, fraction=0.03)
    figure.suptitle(
        "A classifier of single digits, cut fully convolutional, reads a strip of digits it never saw"
    )
    with replace_file(path, force=True) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def draw_segmentation(segmented: Segmented, path: Path) -> None:
    """Write a picture of the first canvases: a row for each, with input, truth, and what each net says."""
    columns = {"input": segmented.pictures, "truth": segmented.truth, **segmented.labels}
    figure = Figure(figsize=(2.1 * len(columns), 2.1 * SHOWN + 1.1), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(SHOWN, len(columns), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for column, (name, maps) in enumerate(columns.items()):
        for row, one in enumerate(maps[:SHOWN]):
            shown = np.repeat(one[:, :, np.newaxis], 3, 2) if name == "input" else COLOURS[one]
            grid[row, column].imshow(shown, interpolation="nearest")
        found = segmented.scores.get(name)
        title = f"FCN-{name}\nmean IU {found['mean_iu']:.2f}" if found else f"{name}\n"
        grid[0, column].set_title(title, fontsize=11)
    colours = [Patch(color=COLOURS[1 + digit], label=str(digit)) for digit in range(10)]
    figure.legend(handles=colours, ncols=10, loc="outside lower center", frameon=False, title="digit")
    figure.suptitle("The finer the stride, the finer what is seen: composites of real digits, held out")
    with replace_file(path, force=True) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_strip(axes: Any, strip: Strip) -> None:
    height, width = strip.image.shape
    axes.imshow(strip.image, cmap="gray", extent=(0, width, height, 0), aspect="equal", vmin=0, vmax=1)
    axes.add_patch(Rectangle((0.5, 0.5), FIELD - 1, FIELD - 1, fill=False, edgecolor=FRAME, linewidth=1.5))
    field = f"in orange the first of the net's fields, {FIELD} x {FIELD}, the next ones {STRIDE} pixels on"
    axes.set_title(f"the input, {height} x {width} pixels; {field}", fontsize=9, loc="left")
    axes.set_yticks([])
    axes.tick_params(bottom=False)
    axes.set_xlim(0, width)


def _draw_confidence(axes: Any, strip: Strip) -> Any:
    """The output map: one column a field, at the field's middle; frames where a digit was read."""
    places = field_centres(strip.image.shape[1])
    half = STRIDE / 2
    extent = (places[0] - half, places[-1] + half, len(CLASSES) - 0.5, -0.5)
    shown = axes.imshow(strip.probabilities, extent=extent, aspect="auto", cmap="Blues", vmin=0, vmax=1)
    for digit, first, last in strip.found:
        box = (places[first] - half, digit - 0.5), places[last] - places[first] + STRIDE, 1
        axes.add_patch(Rectangle(*box, fill=False, edgecolor=FRAME, linewidth=1.8))
    axes.set_yticks(range(len(CLASSES)), CLASSES, fontsize=8)
    axes.tick_params(bottom=False)
    axes.set_title(f"the output, {len(CLASSES)} classes x {len(places)} positions in one pass",
                   fontsize=9, loc="left")  # fmt: skip
    return shown


def _draw_digits(axes: Any, strip: Strip) -> None:
    places = field_centres(strip.image.shape[1])
    for centre, digit in zip(strip.centres, strip.truth, strict=True):
        axes.text(centre, 0.28, str(digit), ha="center", va="center", fontsize=13, color="black")
    for digit, first, last in strip.found:
        middle = (places[first] + places[last]) / 2
        nearest = min(range(len(strip.centres)), key=lambda i: abs(strip.centres[i] - middle))
        colour = RIGHT if strip.truth[nearest] == digit else WRONG
        axes.text(
            middle, 0.72, str(digit), ha="center", va="center", fontsize=13, color=colour, weight="bold"
        )
    axes.set_ylim(0, 1)
    axes.set_yticks([0.72, 0.28], ["read", "truth"])
    axes.tick_params(length=0, labelbottom=False)
    verdict = "every digit right" if strip.read == strip.truth else "not every digit right"
    axes.set_title(f"the digits, {verdict}", fontsize=9, loc="left")
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
