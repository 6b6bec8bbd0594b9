"""A picture through DeconvNet: proposals cut out and resized, scored in batches, their scores put together.

Follows `generate_EDeconvNet_CRF_results.m` and `preprocess_image_bb.m` of HyeonwooNoh/DeconvNet at 87dd133.
`RELEASED` are their rules with the quirks: boxes under 112 pixels are skipped and not counted; the maximum
starts at 0, so negative scores are lost; the result is read one pixel up and left of where it lies. `CLEAN`
leaves these out. Departures in both: there is no padded canvas (what the picture lacks is black, and scores
outside of it are never looked at, which gives the same), boxes that miss the picture are counted but not
run, and pictures are not rounded to whole values while they are resized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from caffe_weights.errors import InputError, NetError
from reproduce.deconvnet.resize import imresize, resized_part
from reproduce.deconvnet.rules import AGGREGATIONS, CLEAN, RELEASED, Rules

__all__ = ["CLEAN", "RELEASED", "Rules", "make_crops", "picture_scores", "select_boxes"]

BATCHES = {"cpu": 2}  # crops at a time; more maps of 224 x 224 than that leave a CPU's caches
OTHER_BATCH = 16
Score = Callable[[Tensor], Tensor]  # crops N x 3 x S x S to scores N x C x S x S
Region = tuple[slice, slice]


def picture_scores(
    score: Score,
    image: np.ndarray,
    boxes: np.ndarray,
    side: int,
    mean: Sequence[float],
    rules: Rules = CLEAN,
    batch: int | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, int]:
    """Scores C x H x W of a picture uint8 H x W x 3, and the number of boxes used.

    `score` takes crops of `side` pixels in BGR minus `mean`; `boxes` as in `reproduce.deconvnet.boxes`.
    InputError where no box is left, NetError where `score` gives another size.
    """
    batch = BATCHES.get(torch.device(device).type, OTHER_BATCH) if batch is None else batch
    if batch < 1:
        raise InputError("batch", str(batch), "1 or more")
    height, width = image.shape[:2]
    chosen = select_boxes(boxes, rules)
    seen = chosen[_meets(chosen, height, width)]
    if not len(seen):
        found = f"{len(boxes)} boxes, none of them in the picture and of {rules.least_side} pixels or more"
        raise InputError("proposals", found, "a box to look at", "lower --least-side, or take windows")
    planes = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))
    planes = planes.to(device, torch.float32)
    canvas: Canvas | None = None
    for start in range(0, len(seen), batch):
        part = seen[start : start + batch]
        with torch.no_grad():
            found_scores = score(make_crops(planes, part, side, mean))
        _check(found_scores, len(part), side)
        canvas = canvas or Canvas(found_scores.shape[1], height, width, rules, found_scores)
        for box, scores in zip(part, found_scores, strict=True):
            canvas.add(box, scores)
    assert canvas is not None
    return canvas.result(), len(chosen)


def select_boxes(boxes: np.ndarray, rules: Rules) -> np.ndarray:
    """The boxes that count: the first `most` of those that are large enough."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    return boxes[sides.min(axis=1) >= rules.least_side][: rules.most]


def make_crops(planes: Tensor, boxes: np.ndarray, side: int, mean: Sequence[float]) -> Tensor:
    """The boxes of a picture C x H x W, black outside of it, resized to N x C x side x side, minus `mean`."""
    crops = torch.stack([imresize(cut(planes, box), (side, side)) for box in boxes])
    return crops - torch.tensor(mean, dtype=planes.dtype, device=planes.device)[:, None, None]


def cut(planes: Tensor, box: np.ndarray, fill: float = 0.0) -> Tensor:
    """A box of a picture C x H x W, both ends belonging to it; `fill` where there is no picture."""
    left, top, right, bottom = (int(value) for value in box)
    result = planes.new_full((planes.shape[0], bottom - top + 1, right - left + 1), fill)
    here, there = _overlap(box, planes.shape[1], planes.shape[2])
    result[:, there[0], there[1]] = planes[:, here[0], here[1]]
    return result


class Canvas:
    """The scores of a picture while they come in; dtype and device are those of `like`."""

    def __init__(self, classes: int, height: int, width: int, rules: Rules, like: Tensor) -> None:
        if rules.aggregate not in AGGREGATIONS:
            raise InputError("aggregate", repr(rules.aggregate), " or ".join(AGGREGATIONS))
        self.rules = rules
        start = -torch.inf if rules.aggregate == "max" and not rules.clip else 0.0
        self.scores = like.new_full((classes, height, width), start)
        self.counts = like.new_zeros((height, width))

    def add(self, box: np.ndarray, scores: Tensor) -> None:
        """Lay scores C x S x S over their box."""
        box = np.asarray(box) + self.rules.offset
        (rows, columns), inside = _overlap(box, *self.counts.shape)
        size = int(box[3] - box[1] + 1), int(box[2] - box[0] + 1)
        part = resized_part(scores, size, *inside)
        here = self.scores[:, rows, columns]
        if self.rules.aggregate == "max":
            torch.maximum(here, part, out=here)
        else:
            here += part
        self.counts[rows, columns] += 1

    def result(self) -> Tensor:
        """The scores C x H x W; 0 where no box was."""
        if self.rules.aggregate == "mean":
            return self.scores / self.counts.clamp(min=1)
        return torch.where(self.counts > 0, self.scores, 0.0)


def _overlap(box: np.ndarray, height: int, width: int) -> tuple[Region, Region]:
    """Rows and columns that a box and the picture have in common: in the picture, and in the box."""
    left, top, right, bottom = (int(value) for value in box)
    rows = slice(max(top, 0), max(min(bottom + 1, height), 0))
    columns = slice(max(left, 0), max(min(right + 1, width), 0))
    inside = (
        slice(rows.start - top, max(rows.stop - top, 0)),
        slice(columns.start - left, max(columns.stop - left, 0)),
    )
    return (rows, columns), inside


def _meets(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    return (boxes[:, 2:] >= 0).all(axis=1) & (boxes[:, 0] < width) & (boxes[:, 1] < height)


def _check(scores: Tensor, number: int, side: int) -> None:
    if scores.ndim != 4 or scores.shape[0] != number or scores.shape[2:] != (side, side):
        found = "scores of " + " x ".join(map(str, scores.shape))
        raise NetError("proposals", found, f"{number} x classes x {side} x {side}", "give a net of crops")
