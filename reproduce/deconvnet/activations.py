"""Pictures of what a deconvolution network does: its activation maps from coarse to fine in one figure.

After figure 4 of the DeconvNet paper (ICCV 2015), as recalled: maps of unpooling layers are sparse and keep
places, deconvolutions make them dense. Of each layer the strongest channels are shown, those of the greatest
mean; a row begins with each unpooling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isqrt
from typing import Any

import numpy as np

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import NetError
from caffe_weights.files import PathLike, replace_file
from reproduce.visualize import voc_palette

SHOWN = ("Deconvolution", "Unpooling", "Upsample")
PANEL_INCHES, TITLE_INCHES, DPI = 2.3, 0.4, 110


@dataclass(frozen=True)
class Maps:
    """One panel: a blob, the channels that are shown, strongest first, and their maps, K x H x W."""

    blob: str
    kind: str
    channels: tuple[int, ...]
    maps: np.ndarray


def shown_blobs(net: NetParameter) -> dict[str, str]:
    """The tops of unpooling and deconvolution layers with the layer's type, in order. NetError if none."""
    found = {layer.top[0]: layer.type for layer in net.layer if layer.type in SHOWN}
    if not found:
        raise NetError("net", "no deconvolution and no unpooling", "one to show", "fcn run keeps any blob")
    return found


def strongest(blob: str, kind: str, values: np.ndarray, count: int) -> Maps:
    """The channels of the greatest mean in a blob C x H x W."""
    order = np.argsort(-values.astype(np.float64).mean(axis=(1, 2)), kind="stable")[:count]
    return Maps(blob, kind, tuple(int(i) for i in order), values[order])


def rows_of(panels: Sequence[Maps]) -> list[list[Maps]]:
    """Panels in rows, each beginning with an unpooling."""
    rows: list[list[Maps]] = [[]]
    for panel in panels:
        if panel.kind != "Deconvolution" and rows[-1]:
            rows.append([])
        rows[-1].append(panel)
    return rows


def mosaic(maps: np.ndarray) -> np.ndarray:
    """Maps K x H x W beside and below each other in a square, one line of NaN between them."""
    count, height, width = maps.shape
    side = isqrt(count - 1) + 1
    tall = ceil(count / side)
    result = np.full((tall * (height + 1) - 1, side * (width + 1) - 1), np.nan)
    for number, values in enumerate(maps):
        top, left = number // side * (height + 1), number % side * (width + 1)
        result[top : top + height, left : left + width] = values
    return result


def draw(
    picture: np.ndarray,
    labels: np.ndarray | None,
    panels: Sequence[Maps],
    path: PathLike,
    force: bool = False,
) -> None:
    """Write the figure as PNG: the picture uint8 H x W x 3, the labels H x W, then the panels. FileError."""
    from matplotlib.figure import Figure

    rows = rows_of(panels)
    across = max(2 + len(rows[0]) if labels is not None else 1 + len(rows[0]), *(len(row) for row in rows))
    height = (PANEL_INCHES + TITLE_INCHES) * len(rows)
    figure = Figure(figsize=(PANEL_INCHES * across, height), layout="constrained")
    axes = figure.subplots(len(rows), across, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
        axis.set_anchor("S")  # the room is for titles, which the layout does not see
    _image(axes[0][0], picture, "picture")
    for row, line in zip(rows, axes, strict=True):
        first = 1 if row is rows[0] else 0
        for axis, panel in zip(line[first:], row, strict=False):
            _panel(axis, panel)
    if labels is not None:
        _image(axes[0][1 + len(rows[0])], voc_palette()[labels], "labels")
    with replace_file(path, force) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")


def summary(panels: Sequence[Maps]) -> list[Mapping[str, Any]]:
    """What is shown, for a report: blob, kind, height, width, channels with their means and maxima."""
    return [
        {"blob": panel.blob, "kind": panel.kind, "height": panel.maps.shape[1], "width": panel.maps.shape[2],
         "channels": [{"channel": number, "mean": float(values.mean()), "max": float(values.max()),
                       "nonzero": float((values != 0).mean())}
                      for number, values in zip(panel.channels, panel.maps, strict=True)]}
        for panel in panels
    ]  # fmt: skip


def _image(axis: Any, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture, interpolation="nearest")
    axis.set_title(title, fontsize=9)


def _panel(axis: Any, panel: Maps) -> None:
    """Black is the least value; each panel has its own scale, whose end the title tells."""
    values = mosaic(panel.maps)
    axis.imshow(values, cmap="inferno", interpolation="antialiased")
    size = f"{panel.maps.shape[1]}x{panel.maps.shape[2]}"
    axis.set_title(f"{panel.blob}  {size}\nup to {np.nanmax(values):.3g}", fontsize=9)
