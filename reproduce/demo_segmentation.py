"""The demo's second part: FCN-32s, 16s and 8s on canvases of digits that none of them ever saw.

The three are narrow VGG16-FCNs, trained one from the other by `benchmarks/digits.py` through `fcn train`, on
composites of other digits. Figure 4 of the FCN paper (CVPR 2015) shows the same on photographs: the finer the
stride, the finer what is seen.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from PIL import Image

from caffe_weights.export import read_weights
from reproduce.data.transforms import picture_blob
from reproduce.demo_data.composites import CANVASES, composite
from reproduce.images import write_image
from reproduce.inference import forward
from reproduce.net import Net
from reproduce.nets import Form, make_net
from reproduce.score import histogram, score

FORM = Form(narrow=12, fc=64, classes=11)
MODELS = {  # by stride, coarse to fine: the net and its shipped weights
    "32s": ("voc-fcn32s", "digits-fcn32s.caffemodel.gz"),
    "16s": ("voc-fcn16s", "digits-fcn16s.caffemodel.gz"),
    "8s": ("voc-fcn8s", "digits-fcn8s.caffemodel"),
}
CANVAS = CANVASES["canvases"]
COUNT, SEED = 20, 7
METRICS = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
BLACK = (0.0, 0.0, 0.0)  # the mean that is taken off


@dataclass(frozen=True)
class Segmented:
    """Canvases (uint8 N x H x W), their classes, what each net says (by stride), and its four metrics."""

    pictures: np.ndarray
    truth: np.ndarray
    labels: dict[str, np.ndarray]
    scores: dict[str, dict[str, float]]


def segment_canvases(images: np.ndarray, digits: np.ndarray, count: int = COUNT) -> Segmented:
    """Draw canvases of held-out digits (N x 8 x 8, values 0..16) and run the three nets on them."""
    rng = np.random.default_rng(SEED)
    drawn = [composite(CANVAS, images, digits, rng) for _ in range(count)]
    pictures, truth = (np.stack(part) for part in zip(*drawn, strict=True))
    blobs = np.stack([picture_blob(np.repeat(p[:, :, np.newaxis], 3, 2), BLACK) for p in pictures])
    labels, scores = {}, {}
    for stride in MODELS:
        net = load_model(stride)
        labels[stride] = np.concatenate(
            [forward(net, {"data": blob[np.newaxis]})["score"].argmax(1) for blob in blobs]
        )
        counts = histogram(truth, labels[stride], 11)
        scores[stride] = {key: score(counts).metrics()[key] for key in METRICS}
    return Segmented(pictures, truth, labels, scores)


def load_model(stride: str) -> Net:
    """A shipped net with its weights, for canvases of the demo's size."""
    name, file = MODELS[stride]
    with as_file(files("reproduce") / "demo_data" / file) as path:
        return Net(make_net(name, size=(CANVAS.size, CANVAS.size), form=FORM), read_weights(path))


def leave_files(segmented: Segmented, out: Path) -> None:
    """canvas.png, the 8s, and segmentation.png, into the folder `out`."""
    from reproduce.demo_picture import draw_segmentation

    file = MODELS["8s"][1]
    with as_file(files("reproduce") / "demo_data" / file) as path:
        shutil.copyfile(path, out / file)
    write_image(Image.fromarray(segmented.pictures[0]), out / "canvas.png", True)
    draw_segmentation(segmented, out / "segmentation.png")
