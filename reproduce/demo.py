"""The main job on what the package ships: convert a Caffe model, cut it, check it, run it.

The model is a narrow LeNet that `reproduce/demo_data/train.py` trained on single 28 x 28 fields with real
handwritten digits. Its fully connected layers become convolutions and it reads a strip of any width, one
field every 4 pixels, which is where fully convolutional nets began: Matan, Burges, LeCun and Denker 1992,
"Multi-digit recognition using a space displacement neural network". It was not trained on these digits. Then
`reproduce.demo_segmentation`: narrow FCN-32s, 16s and 8s on canvases of digits.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from caffe_weights.export import read_weights
from reproduce.conversion import convert
from reproduce.digits import draw_digit, draw_strip, field_centres
from reproduce.images import write_image
from reproduce.inference import forward
from reproduce.net import Net
from reproduce.tolerances import CONV, worst_difference

NONE = 10  # the class "no digit in the middle of the field"
SEED = 5
DIGITS = 12
STRIPS = 50


@dataclass(frozen=True)
class Strip:
    """A strip of digits and what the net makes of it.

    `image` float32 28 x W in [0, 1]; `centres` and `truth` one a digit; `probabilities` 11 x positions;
    `found` is (digit, first position, last position) of each digit read.
    """

    image: np.ndarray
    centres: list[int]
    truth: list[int]
    probabilities: np.ndarray
    found: list[tuple[int, int, int]]

    @property
    def read(self) -> list[int]:
        """The digits read, left to right."""
        return [digit for digit, _, _ in self.found]

    def hits(self) -> int:
        """Digits whose nearest field says the right class."""
        places = field_centres(self.image.shape[1])
        nearest = [int(np.abs(places - centre).argmin()) for centre in self.centres]
        winners = self.probabilities[:, nearest].argmax(0)
        return int((winners == np.array(self.truth)).sum())


@dataclass(frozen=True)
class DemoResult:
    """What the demo found; the checks are `bits_equal` and `worst_difference` within `tolerance`.

    `segmentation` has the four metrics by stride (32s, 16s, 8s), on so many `canvases`.
    """

    out: str
    parameter_count: int
    bits_equal: bool
    worst_difference: float
    tolerance: float
    alone_right: int
    alone_count: int
    truth: str
    read: str
    strips_right: int
    strips_count: int
    digits_right: int
    digits_count: int
    canvases: int
    segmentation: dict[str, dict[str, float]]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the conversion and the surgery kept what they must keep."""
        return self.bits_equal and self.worst_difference <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "passed": self.passed}


def run_demo(out: Path) -> DemoResult:
    """Do it all; results go into the folder `out`, which exists. Files of an earlier demo are replaced."""
    from reproduce.demo_picture import draw_reading
    from reproduce.demo_segmentation import leave_files, segment_canvases

    start = time.perf_counter()
    images, labels = _unpack(out)
    equal, count = _convert(out)
    classifier = Net.from_prototxt(out / "digits.prototxt", weights=str(out / "digits.safetensors"))
    reader = Net.from_prototxt(out / "digits-conv.prototxt", weights=str(out / "digits-conv.safetensors"))
    fields = np.stack([draw_digit(image) for image in images])[:, np.newaxis]  # (N, 1, 28, 28)
    alone = forward(classifier, {"data": fields})["prob"]
    worst = _largest_difference(classifier, reader, fields)
    strip = read_strip(reader, images, labels, SEED)
    write_image(Image.fromarray(np.rint(strip.image * 255).astype(np.uint8)), out / "strip-input.png", True)
    draw_reading(strip, out / "strip.png")
    others = [read_strip(reader, images, labels, SEED + 1 + i) for i in range(STRIPS)]
    segmented = segment_canvases(images, labels)
    leave_files(segmented, out)
    result = DemoResult(
        str(out), count, equal, worst, CONV, int((alone.argmax(1) == labels).sum()), len(labels),
        _joined(strip.truth), _joined(strip.read), sum(s.read == s.truth for s in others), STRIPS,
        sum(s.hits() for s in others), STRIPS * DIGITS, len(segmented.pictures), segmented.scores,
        time.perf_counter() - start,
    )  # fmt: skip
    (out / "report.md").write_text("\n".join(report(result)) + "\n", encoding="utf-8")
    return result


def read_strip(net: Net, images: np.ndarray, labels: np.ndarray, seed: int) -> Strip:
    """Draw DIGITS digits side by side with random gaps and read them with the fully convolutional `net`."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(images))[:DIGITS]
    gaps = rng.integers(4, 18, DIGITS + 1)
    gaps[[0, -1]] += 8
    image, centres = draw_strip(images[chosen], gaps)
    image = np.rint(image * 255).astype(np.float32) / 255  # as a picture file holds it
    probabilities = forward(net, {"data": image[np.newaxis, np.newaxis]})["prob"][0, :, 0]  # (11, positions)
    truth = [int(label) for label in labels[chosen]]
    return Strip(image, centres, truth, probabilities, find_digits(probabilities))


def find_digits(probabilities: np.ndarray) -> list[tuple[int, int, int]]:
    """Digits in a row of class probabilities (11 x positions), as (digit, first, last position).

    Neighbouring positions that all see some digit see the same one: the class with the greatest sum wins.
    """
    found = []
    start = None
    seen = [*(probabilities.argmax(0) != NONE), False]
    for position, some in enumerate(seen):
        if some and start is None:
            start = position
        elif not some and start is not None:
            digit = int(probabilities[:NONE, start:position].sum(1).argmax())
            found.append((digit, start, position - 1))
            start = None
    return found


def report(result: DemoResult) -> list[str]:
    """The report as Markdown."""
    good = {True: "yes", False: "NO"}
    return [
        "# What `fcn demo` did",
        "",
        f"A Caffe classifier of single digits ({result.parameter_count:,} parameters, `digits.caffemodel`):",
        "",
        "| step | result |",
        "|---|---|",
        f"| to safetensors and back to a caffemodel, all bits equal | {good[result.bits_equal]} |",
        "| cut fully convolutional: largest difference to the classifier on 28 x 28 |"
        f" {result.worst_difference:.1e} (allowed {result.tolerance:.0e}) |",
        f"| held-out digits read alone | {result.alone_right} of {result.alone_count} |",
        f"| the strip of strip.png | truth {result.truth}, read {result.read} |",
        f"| {result.strips_count} more strips read without any error | {result.strips_right} |",
        f"| digits on them whose nearest field is right | {result.digits_right} of {result.digits_count} |",
        f"| seconds | {result.seconds:.1f} |",
        "",
        f"Narrow FCNs on {result.canvases} canvases of held-out digits (`segmentation.png`):",
        "",
        "| net | pixel accuracy | mean accuracy | mean IU | f.w. IU |",
        "|---|---|---|---|---|",
        *(
            f"| FCN-{stride} | {' | '.join(f'{value:.3f}' for value in scores.values())} |"
            for stride, scores in result.segmentation.items()
        ),
        "",
        "Next:",
        "",
        "```",
        *next_commands(result.out),
        "```",
    ]


def next_commands(out: str) -> list[str]:
    """Commands to go on with, on the files that the demo left."""
    scale = "--scale 0.003921569"
    return [
        f"fcn inspect {out}/digits.caffemodel --check",
        f"fcn run {out}/digits-conv.prototxt {out}/digits-conv.safetensors"
        f" --input {out}/strip-input.png {scale} --out {out}/scores.npz",
        f"fcn classify {out}/digit.png --net {out}/digits.prototxt"
        f" --weights {out}/digits.safetensors {scale}",
        f"fcn segment {out}/canvas.png --weights {out}/digits-fcn8s.caffemodel --mean 0,0,0"
        f" --overlay --force --out {out}/segmented",
        "convert-weights YOUR.caffemodel YOUR.safetensors --convolutional",
    ]


def _unpack(out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Copy the shipped model to `out`; the held-out digits, uint8 N x 8 x 8, and their labels."""
    with as_file(files("reproduce") / "demo_data") as shipped:
        for name in ("digits.caffemodel", "digits.prototxt"):
            shutil.copyfile(shipped / name, out / name)
        with np.load(shipped / "held_out.npz", allow_pickle=False) as held:
            images, labels = held["images"], held["labels"]
    digit = Image.fromarray(np.rint(draw_digit(images[0]) * 255).astype(np.uint8))
    write_image(digit, out / "digit.png", True)
    return images, labels


def _convert(out: Path) -> tuple[bool, int]:
    """To safetensors, back, and fully convolutional; whether all bits came back, and how many parameters."""
    first, tensors, again = (
        out / "digits.caffemodel",
        out / "digits.safetensors",
        out / "digits-again.caffemodel",
    )
    net = str(out / "digits.prototxt")
    done = convert(str(first), str(tensors), force=True)
    convert(str(tensors), str(again), net, force=True)
    convert(str(tensors), str(out / "digits-conv.safetensors"), net, convolutional=True, force=True)
    before, after = read_weights(first), read_weights(again)
    equal = list(before) == list(after) and all(
        [(x.shape, x.tobytes()) for x in before[name]] == [(x.shape, x.tobytes()) for x in after[name]]
        for name in before
    )
    return equal, done.parameter_count


def _largest_difference(classifier: Net, reader: Net, fields: np.ndarray) -> float:
    """Between the scores before the softmax, relative to the largest."""
    wanted = forward(classifier, {"data": fields}, ["ip2"])["ip2"]  # (N, 11)
    maps = forward(reader, {"data": fields}, ["ip2"])["ip2"]  # (N, 11, 1, 1)
    return worst_difference(maps[:, :, 0, 0], wanted)[0]


def _joined(digits: Sequence[int]) -> str:
    return "".join(map(str, digits))
