"""Does labelling a folder keep the device busy? Images per second, against the net's calls alone.

Three ways over the same pictures (JPEG, sizes as in PASCAL VOC), in one process, in turn:

  folder   what `fcn segment FOLDER` does: reading ahead, equal sizes together, writing behind
  in turn  the same steps one after the other
  bare     the net's calls alone, one picture each, on blobs that lie on the device already

Label maps of all ways are compared in the same run: equal wherever the two best scores leave no doubt. The
bound, the project's own, holds on a GPU: the folder within 10 % of the bare calls (`LIMIT`; exit 1 when
missed). On a CPU the net and the threads share the cores, and what reading and writing cost must show: there
the ratio is told, not judged.

    python benchmarks/folder.py [--device cuda] [--narrow 1] [--pictures 48] [--batch 1] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frame import random_weights, words
from measure import alternate, spread, write_result
from PIL import Image

from reproduce.deconvnet.segmenter import Segmenter
from reproduce.gpu import arrange
from reproduce.images import VOC_MEAN_BGR, Preprocess, read_image
from reproduce.inference import PictureNet, compute, pick_device
from reproduce.labelling import Labelled, label_pictures
from reproduce.net import Net
from reproduce.nets import Form, make_net
from reproduce.picture_jobs import Job, expand, make_jobs
from reproduce.precision import Precision
from reproduce.tolerances import FULL
from reproduce.visualize import write_label_png

LIMIT = 0.9
SIZES = ((375, 500), (500, 375), (333, 500), (375, 500))  # of four pictures of VOC about two have the first
DOUBT = {"float32": FULL, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}  # of the scores, not a verdict on them


def make_pictures(folder: Path, count: int, shrink: int = 1) -> None:
    """JPEGs of smooth random colours: as heavy to decode as photographs of their size."""
    rng = np.random.default_rng(0)
    for i in range(count):
        height, width = (side // shrink for side in SIZES[i % len(SIZES)])
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:04}.jpg", quality=90)


def make_segmenter(options: argparse.Namespace) -> Segmenter:
    """A published net with random weights."""
    place, form = pick_device(options.device), Form(options.narrow)
    net = Net(make_net(options.net, form=form), random_weights(options.net, form))
    ready = Precision(options.precision, place).inferring(arrange(net.to(place), place, options.precision))
    return Segmenter(PictureNet(ready, "data", "score", 3, None), Preprocess("bgr", np.array(VOC_MEAN_BGR)))


class Ways:
    """The three ways over a folder; `seen` are the label maps that the last run of each made."""

    def __init__(self, segmenter: Segmenter, folder: Path, out: Path, batch: int, workers: int) -> None:
        self.segmenter, self.batch, self.workers = segmenter, batch, workers
        self.net = segmenter.picture.net
        self.jobs, _ = make_jobs(expand([str(folder)]), out, False, True)
        self.device = next(self.net.parameters()).device
        self.blobs = [torch.from_numpy(self._blob(job)).to(self.device) for job in self.jobs]
        self.seen: dict[str, list[np.ndarray]] = {"folder": [], "in turn": []}

    def folder(self) -> None:
        done = label_pictures(self.jobs, self.segmenter, self._write, self.batch, self.workers)
        assert not done.failed
        self.seen["folder"] = done.rows

    def in_turn(self) -> None:
        rows = []
        for job in self.jobs:
            score = compute(self.net, {"data": torch.from_numpy(self._blob(job))}, ["score"])["score"]
            labels = score[0].cpu().numpy().argmax(0)
            write_label_png(labels, job.labels, True)
            rows.append(labels)
        self.seen["in turn"] = rows

    def bare(self) -> None:
        for blob in self.blobs:
            compute(self.net, {"data": blob}, ["score"])
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def check(self, bound: float) -> int:
        """AssertionError where labels differ without doubt; the number of pixels that differ at all."""
        other = 0
        for i, blob in enumerate(self.blobs):
            score = compute(self.net, {"data": blob}, ["score"])["score"][0]
            best = score.topk(2, dim=0).values
            sure = (best[0] - best[1] > 2 * bound * score.abs().max()).cpu().numpy()
            want = score.argmax(0).cpu().numpy()
            for name, found in self.seen.items():
                assert (found[i] == want)[sure].all(), f"{name}: labels of {self.jobs[i].image} differ"
                other += int((found[i] != want).sum())
        return other

    def _blob(self, job: Job) -> np.ndarray:
        return self.segmenter.preprocess(read_image(job.image))

    def _write(self, done: Labelled) -> np.ndarray:
        write_label_png(done.labels, done.picture.job.labels, True)
        return done.labels


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Images per second of each way, and what the folder keeps of the bare rate."""
    pictures = folder / "in"
    pictures.mkdir()
    (folder / "out").mkdir()
    make_pictures(pictures, options.pictures, options.shrink)
    ways = Ways(make_segmenter(options), pictures, folder / "out", options.batch, options.workers)
    before = os.getloadavg()[0]
    run: dict[str, Callable[[], None]] = {"folder": ways.folder, "in turn": ways.in_turn, "bare": ways.bare}
    seconds = alternate(run, options.repeats)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "net": options.net, "narrow": options.narrow, "precision": options.precision,
        "device": torch.cuda.get_device_name(ways.device) if ways.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(), "pictures": options.pictures, "batch": options.batch,
        "workers": options.workers, "sizes": [words(size) for size in SIZES], "shrink": options.shrink,
        "load": {"before": round(before, 2), "after": round(os.getloadavg()[0], 2)},
        "labels_other": ways.check(DOUBT[options.precision]),
        "seconds_a_folder": {name: spread(values) for name, values in seconds.items()},
        "images_per_second": {name: round(options.pictures / value, 3) for name, value in median.items()},
        "folder_over_bare": round(median["bare"] / median["folder"], 3),
        "folder_over_in_turn": round(median["in turn"] / median["folder"], 3),
    }  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--net", default="voc-fcn8s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=list(DOUBT), default="float32")
    parser.add_argument("--narrow", type=int, default=1, help="divide the widths by this")
    parser.add_argument(
        "--shrink", type=int, default=1, help="divide the pictures' sides by this, for a trial"
    )
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write the committed result file")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="fcn-folder-") as folder:
        result = measure(options, Path(folder))
    judged = result["device"] != "cpu"
    over = result["folder_over_bare"]
    missed = [f"folder over bare: {over}, limit {LIMIT}"] if judged and over < LIMIT else []
    result |= {"limit": LIMIT if judged else None, "missed": missed}
    print(json.dumps(result, indent=1))
    if options.save:
        write_result("folder" if options.narrow == 1 else "folder-narrow", result)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
