"""Proposals: where DeconvNet looks. Boxes from a file, from edge boxes, or a sliding window.

A box is x1, y1, x2, y2: columns and rows of the picture from 0, both ends belonging to it, as in the lists
of the fork's WINDOW_SEG_DATA; it may reach beyond the picture. The authors' files (`boxes_padded`, read by
generate_EDeconvNet_CRF_results.m of HyeonwooNoh/DeconvNet at 87dd133) count from 1 in a padded picture, W
rows above and H columns left of it; how they were made and enlarged was not released. Edge boxes (Zitnick
and Dollar, ECCV 2014) are those of OpenCV's ximgproc, the context is 1.2 times the box (recalled, not checked
against the paper). The sliding window is ours.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caffe_weights.errors import FileError, FormatError, InputError
from caffe_weights.files import PathLike, open_input

CONTEXT = 1.2  # recalled: how much larger than the object a box is
FAR = 1 << 20  # no coordinate is larger
MOST_BYTES = 1 << 26
SHRINK = math.sqrt(0.5)  # between the sides of one scale of the sliding window and the next
EDGE_BOXES = 2000
SUFFIXES = (".mat", ".npz", ".csv")
SOURCES = ("auto", "edgeboxes", "windows")


@dataclass(frozen=True)
class Proposals:
    """Boxes int64 N x 4, the best first, and in words where they come from."""

    boxes: np.ndarray
    origin: str


def propose(
    source: PathLike, image: np.ndarray, stem: str = "", count: int = 50, edge_model: PathLike | None = None
) -> Proposals:
    """The proposals for a picture uint8 H x W x 3, of which the first `count` will be used.

    `source`: a file of boxes, a folder with STEM.mat, .npz or .csv, "edgeboxes", "windows", or "auto", which
    is edge boxes where OpenCV has them and windows elsewhere. `edge_model` is the file of a structured forest
    for edge boxes. InputError, FileError, FormatError.
    """
    size = (image.shape[0], image.shape[1])
    if source == "windows":
        return Proposals(sliding_windows(*size, count), "sliding window")
    if source == "auto":
        library = _ximgproc()
        if library is None:
            return Proposals(sliding_windows(*size, count), "sliding window, as OpenCV has no ximgproc here")
    if source in ("auto", "edgeboxes"):
        how = "structured edges" if edge_model else "gradients for edges, as no --edge-model is given"
        return Proposals(edge_boxes(image, edge_model), f"edge boxes, {how}")
    path = find_file(Path(source), stem)
    return Proposals(read_boxes(path, *size), str(path))


def read_boxes(path: PathLike, height: int, width: int) -> np.ndarray:
    """The boxes of a file for a picture of this size, in the file's order.

    .mat: `boxes_padded` of the authors; .npz: the array `boxes`; .csv: a box a line, a line of names before
    them if need be. FormatError for what is no box, FileError.
    """
    name = Path(path).name.lower()
    readers: dict[str, Callable[[PathLike], np.ndarray]] = {
        ".mat": _read_mat,
        ".npz": _read_npz,
        ".csv": _read_csv,
    }
    suffix = next((suffix for suffix in readers if name.endswith(suffix)), None)
    if suffix is None:
        raise FormatError(str(path), "a file of unknown kind", "boxes as " + ", ".join(readers))
    boxes = _checked(readers[suffix](path), str(path))
    return boxes - np.array([height, width] * 2) - 1 if suffix == ".mat" else boxes


def find_file(source: Path, stem: str) -> Path:
    """The file of boxes for a picture in a folder, or the file itself. FileError."""
    if not source.is_dir():
        if not source.exists():
            raise FileError(
                str(source), "no such file", f"a file or folder of boxes, or {', '.join(SOURCES)}"
            )
        return source
    found = [source / f"{stem}{suffix}" for suffix in SUFFIXES if (source / f"{stem}{suffix}").is_file()]
    if not found:
        raise FileError(str(source), f"no boxes of {stem} in it", f"{stem}.mat, .npz or .csv")
    return found[0]


def sliding_windows(height: int, width: int, count: int) -> np.ndarray:
    """Windows of the picture's own shape in ever smaller scales, each overlapping the next by half or more.

    Whole scales only, from the whole picture down, as long as there are at most `count` windows.
    """
    boxes: list[tuple[int, int, int, int]] = []
    side = 1.0
    while True:
        tall, wide = max(1, round(height * side)), max(1, round(width * side))
        level = [
            (x, y, x + wide - 1, y + tall - 1) for y in _steps(height, tall) for x in _steps(width, wide)
        ]
        if boxes and (len(boxes) + len(level) > count or min(tall, wide) < 2):
            return np.array(boxes, np.int64)
        boxes += level
        side *= SHRINK


def edge_boxes(image: np.ndarray, model: PathLike | None = None, count: int = EDGE_BOXES) -> np.ndarray:
    """Edge boxes by OpenCV's ximgproc, the best first, enlarged to their context.

    Edges are those of a structured forest where its file `model` is given; else gradients of the gray
    picture, a weaker guess. InputError where OpenCV has no ximgproc.
    """
    library = _ximgproc()
    if library is None:
        raise InputError("edge boxes", "OpenCV with ximgproc is not installed", "it",
                         "pip install opencv-contrib-python-headless in place of opencv-python-headless,"
                         " or take --proposals windows")  # fmt: skip
    edges, directions = _forest(library, image, model) if model else _gradients(library, image)
    finder = library.createEdgeBoxes()
    finder.setMaxBoxes(count)
    found = np.asarray(finder.getBoundingBoxes(edges, directions)[0], np.int64).reshape(-1, 4)
    found[:, 2:] += found[:, :2] - 1  # from width and height to the last column and row
    return enlarged(found, CONTEXT)


def enlarged(boxes: np.ndarray, factor: float) -> np.ndarray:
    """Boxes with the same centre and sides `factor` times as long, to the nearest pixel."""
    middles, sides = (boxes[:, :2] + boxes[:, 2:] + 1) / 2, boxes[:, 2:] - boxes[:, :2] + 1
    starts = np.rint(middles - sides * factor / 2).astype(np.int64)
    ends = np.rint(middles + sides * factor / 2).astype(np.int64)
    return np.hstack([starts, np.maximum(ends, starts + 1) - 1])


def _steps(length: int, side: int) -> list[int]:
    """Evenly spaced starts of windows, half a side apart or less."""
    if length <= side:
        return [0]
    number = math.ceil((length - side) / (side / 2)) + 1
    return [round(i * (length - side) / (number - 1)) for i in range(number)]


def _ximgproc() -> Any:
    try:
        import cv2
    except ImportError:
        return None
    return getattr(cv2, "ximgproc", None)


def _forest(library: Any, image: np.ndarray, model: PathLike) -> tuple[np.ndarray, np.ndarray]:
    open_input(model).close()
    try:
        forest = library.createStructuredEdgeDetection(str(model))
        edges = forest.detectEdges(image.astype(np.float32) / 255)
    except Exception as error:  # OpenCV's own
        reason = " ".join(str(error).split())[:80]
        raise FormatError(
            str(model), f"not a structured forest ({reason})", "OpenCV's model.yml.gz"
        ) from None
    directions = forest.computeOrientation(edges)
    return forest.edgesNms(edges, directions), directions


def _gradients(library: Any, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges 0..1, thinned to their crests, and their direction in 0..pi, of Gaussian derivatives."""
    from scipy.ndimage import gaussian_filter

    gray = image.astype(np.float64) @ (0.299, 0.587, 0.114) / 255
    down, right = (gaussian_filter(gray, 1.5, order=order) for order in ((1, 0), (0, 1)))
    size = np.hypot(down, right)
    edges = (size / max(float(size.max()), 1e-12)).astype(np.float32)
    directions = (np.arctan2(down, right) % np.pi).astype(np.float32)
    return np.where(_crest(edges, directions), edges, np.float32(0)), directions


def _crest(edges: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Where an edge is not weaker than its two neighbours across it."""
    across = np.rint(directions / (np.pi / 4)).astype(int) % 4
    padded = np.pad(edges, 1)
    kept = np.zeros(edges.shape, bool)
    for number, (down, right) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        height, width = edges.shape
        ahead, behind = (padded[1 + s * down : 1 + s * down + height, 1 + s * right : 1 + s * right + width]
                         for s in (1, -1))  # fmt: skip
        kept |= (across == number) & (edges >= ahead) & (edges >= behind)
    return kept


def _read_mat(path: PathLike) -> np.ndarray:
    from reproduce.data.files import read_mat

    return read_mat(Path(path), "boxes_padded")


def _read_npz(path: PathLike) -> np.ndarray:
    from caffe_weights.zipped import read_npz

    arrays = read_npz(str(path))
    if "boxes" not in arrays:
        raise FormatError(str(path), f"the arrays {', '.join(arrays)}", "boxes, N x 4: x1, y1, x2, y2")
    return arrays["boxes"]


def _read_csv(path: PathLike) -> np.ndarray:
    with open_input(path) as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise FormatError(str(path), "more than 64 MiB", "a box a line")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FormatError(str(path), "no text", "a box a line: x1,y1,x2,y2") from None
    rows = []
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        try:
            rows.append([float(value) for value in row])
        except ValueError:
            if rows or number > 1:
                raise FormatError(f"{path} line {number}", repr(",".join(row)[:60]), "x1,y1,x2,y2") from None
        if rows and len(rows[-1]) != 4:
            if rows[-1]:
                raise FormatError(f"{path} line {number}", f"{len(row)} values", "4: x1,y1,x2,y2")
            rows.pop()
    return np.array(rows, np.float64).reshape(-1, 4)


def _checked(boxes: np.ndarray, path: str) -> np.ndarray:
    """Boxes as int64 N x 4. FormatError."""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) or boxes.dtype.kind not in "fiu":
        raise FormatError(path, f"an array of {' x '.join(map(str, boxes.shape))}", "N x 4: x1, y1, x2, y2")
    values = boxes.astype(np.float64)
    ordered = (values[:, 2:] >= values[:, :2]).all(axis=1)
    wrong = ~(np.isfinite(values).all(axis=1) & (np.abs(values) < FAR).all(axis=1) & ordered)
    if wrong.any():
        row = int(np.argmax(wrong))
        found = ", ".join(f"{value:g}" for value in values[row])
        raise FormatError(f"{path}: box {row + 1}", found, "x1, y1, x2, y2 with x1 <= x2 and y1 <= y2")
    return np.rint(values).astype(np.int64)
