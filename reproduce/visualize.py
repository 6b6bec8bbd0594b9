"""Label maps as people look at them: VOC's colours, an overlay on the picture, a legend with shares.

The palette is that of the PASCAL VOC development kit; the overlay follows vis.py of
fcn.berkeleyvision.org (1305c73): half picture, half colour, the background left as it is. The legend is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from caffe_weights.files import PathLike
from reproduce.images import write_image

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
VOID = 255

_FONT_SIZE = 15
_ROW = 22
_PAD = 12
_MOST_ROWS = 25


def voc_palette() -> np.ndarray:
    """VOC's 256 colours, uint8 256 x 3: bit b of the label is bit 7 - b // 3 of channel b % 3."""
    labels = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= (((labels >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette


def write_label_png(labels: np.ndarray, path: PathLike, force: bool = False) -> None:
    """A label map H x W, integers 0..255, as an indexed PNG in VOC's colours: the stored bytes are labels."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(voc_palette().tobytes())
    write_image(image, path, force)


def overlay(
    image: np.ndarray, labels: np.ndarray, alpha: float = 0.5, background: int | None = 0
) -> np.ndarray:
    """Colours over a picture uint8 H x W x 3, `alpha` of them, where the label is not `background`."""
    colours = voc_palette()[labels].astype(np.float32)
    mixed = (image * (1 - alpha) + colours * alpha).astype(np.uint8)
    kept = labels[:, :, np.newaxis] == (-1 if background is None else background)
    return np.where(kept, image, mixed)


def shares(labels: np.ndarray) -> list[tuple[int, float]]:
    """The labels that occur, with their fraction of the pixels, most frequent first."""
    found, counts = np.unique(labels, return_counts=True)
    order = np.lexsort((found, -counts))
    return [(int(found[i]), float(counts[i] / labels.size)) for i in order]


def percent(part: float) -> str:
    """A fraction as percent; what is there but rounds to nothing is `<0.1%`."""
    return "<0.1%" if 0 < part < 0.0005 else f"{part:.1%}"


def with_legend(picture: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """The picture uint8 H x W x 3, and right of it the classes of `labels`: colour, name, share of pixels."""
    rows = [(label, class_name(label, names), percent(part)) for label, part in shares(labels)]
    more = len(rows) - _MOST_ROWS
    rows = rows[:_MOST_ROWS]
    font = ImageFont.load_default(_FONT_SIZE)
    name_width = int(max(font.getlength(name) for _, name, _ in rows)) + 1
    width = _PAD + _ROW + name_width + _PAD + int(font.getlength("100.0%")) + _PAD
    height = max(picture.shape[0], 2 * _PAD + _ROW * (len(rows) + (more > 0)))
    canvas = Image.new("RGB", (picture.shape[1] + width, height), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    left = picture.shape[1] + _PAD
    for i, (label, name, part) in enumerate(rows):
        _draw_row(draw, font, (left, _PAD + i * _ROW, canvas.width - _PAD), label, name, part)
    if more > 0:
        draw.text((left, _PAD + len(rows) * _ROW), f"and {more} more", "black", font)
    return canvas


def class_name(label: int, names: Sequence[str]) -> str:
    """The name of a label, or `class N` where none is known."""
    return names[label] if label < len(names) else "void" if label == VOID else f"class {label}"


def _draw_row(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    place: tuple[int, int, int],
    label: int,
    name: str,
    part: str,
) -> None:
    left, top, right = place
    box = (left, top + 2, left + _ROW - 8, top + _ROW - 6)
    colour = tuple(int(value) for value in voc_palette()[label])
    draw.rectangle(box, fill=(colour[0], colour[1], colour[2]), outline="black")
    draw.text((left + _ROW, top), name, "black", font)
    draw.text((right, top), part, "black", font, anchor="ra")
