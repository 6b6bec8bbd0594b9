"""Label maps of many pictures: read ahead, pictures of equal size together, results finished behind.

The net is never kept waiting: threads read and pre-process what comes, others write what is done. A picture
that cannot be read is told at the end and keeps no other from its labels; any other error ends the run. What
is held at a time is bounded, whatever the number of pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_weights.errors import FileError, FormatError, InputError
from reproduce.deconvnet.segmenter import Segmenter
from reproduce.gpu import Autotuning, Coming, pin
from reproduce.images import mean_note, read_image
from reproduce.inference import device_of
from reproduce.picture_jobs import Job
from reproduce.pipeline import Behind, ahead, grouped
from reproduce.segment import label_maps

HELD = 4  # so many batches of pictures may wait for others of their size


@dataclass
class Picture:
    """A picture that was read: uint8 H x W x 3, and the blob 1 x C x H x W where it goes to the net whole."""

    job: Job
    image: np.ndarray
    blob: Tensor | None = None


@dataclass(frozen=True)
class Labelled:
    """A picture with its label map uint8 H x W, and its share of the time that the net took."""

    picture: Picture
    labels: np.ndarray
    classes: int
    seconds: float


@dataclass
class Outcome:
    """What `finish` returned, in the order of the jobs, and what could not be read."""

    rows: list[Any] = field(default_factory=list)
    failed: list[tuple[Job, InputError]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """From the first that was begun to the last that was finished."""
        return len(self.rows) / max(self.seconds, 1e-9)


Finish = Callable[[Labelled], Any]


def label_pictures(
    jobs: Sequence[Job],
    segmenter: Segmenter,
    finish: Finish,
    batch: int = 1,
    threads: int = 2,
    step: Callable[[], None] = lambda: None,
) -> Outcome:
    """Label the pictures of `jobs`, up to `batch` of equal size at a time, and call `finish` with each.

    `threads` read and pre-process, as many call `finish`. InputError and its kinds, but for reading.
    """
    run = _Run(segmenter, finish, step)
    start = time.perf_counter()
    behind: Behind[tuple[int, Any]] = Behind(threads, most=2 * threads + batch)
    with behind:
        pictures = run.readable(ahead(run.read, jobs, threads, most=2 * threads + batch))
        for group in grouped(pictures, run.kind, batch, HELD * batch):
            coming, classes = run.label(group)
            for place, picture in enumerate(group):
                behind.put(run.finish, picture, coming, place, classes)
    rows = [row for _, row in sorted(behind.results, key=lambda pair: pair[0])]
    failed = sorted(run.failed, key=lambda pair: pair[0].number)
    notes = [*segmenter.notes, *run.notes]
    return Outcome(rows, failed, notes, time.perf_counter() - start)


class _Run:
    """The steps of `label_pictures`, and what they gather."""

    def __init__(self, segmenter: Segmenter, finish: Finish, step: Callable[[], None]) -> None:
        self.segmenter, self.finisher, self.step = segmenter, finish, step
        self.device = device_of(segmenter.picture.net)
        self.tuned = Autotuning(self.device)
        self.failed: list[tuple[Job, InputError]] = []
        self.notes: list[str] = []

    def read(self, job: Job) -> Picture | tuple[Job, InputError]:
        """In a thread: the picture, or why there is none."""
        try:
            picture = Picture(job, read_image(job.image))
        except (FileError, FormatError) as error:
            return job, error
        if self.segmenter.alone:
            blob = torch.from_numpy(self.segmenter.preprocess(picture.image))
            picture.blob = pin(blob, self.device)
        return picture

    def readable(self, found: Iterable[Picture | tuple[Job, InputError]]) -> Iterator[Picture]:
        """What was read; what was not is kept for the end."""
        for picture in found:
            if not isinstance(picture, Picture):
                self.failed.append(picture)
                self.step()
                continue
            size = self.segmenter.preprocess.size or picture.image.shape[:2]
            note = mean_note(self.segmenter.preprocess.mean, (size[0], size[1]))
            self.notes += [note] if note and note not in self.notes else []
            yield picture

    def kind(self, picture: Picture) -> object:
        """What pictures that go together have in common."""
        return picture.job.number if picture.blob is None else tuple(picture.blob.shape)

    def label(self, group: list[Picture]) -> tuple[Coming, int]:
        """Label maps N x H x W of pictures of one kind, on their way, and the number of classes."""
        begun = time.perf_counter()
        blobs = [picture.blob for picture in group if picture.blob is not None]
        if not blobs:
            (picture,) = group
            labels, classes = self.segmenter(picture.image, Path(picture.job.image).stem)
            return Coming(torch.from_numpy(labels[np.newaxis]), begun), classes
        net = self.segmenter.picture
        blob = blobs[0] if len(blobs) == 1 else pin(torch.cat(blobs), self.device)
        with self.tuned(tuple(blob.shape)):
            maps, classes = label_maps(net.net, net.input, net.output, blob)
        return Coming(maps, begun), classes

    def finish(self, picture: Picture, coming: Coming, place: int, classes: int) -> tuple[int, Any]:
        """In a thread: hand on what has come."""
        labels = coming.array()
        row = self.finisher(Labelled(picture, labels[place], classes, coming.seconds / len(labels)))
        self.step()
        return picture.job.number, row
