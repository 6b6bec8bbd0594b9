"""One picture, its most probable classes: what pycaffe's Classifier does without cropping and mirroring.

A picture is resized to the net's input (BVLC/caffe 9b891540, python/caffe/classifier.py with one crop of the
whole picture). Where a fully convolutional form gives a map instead of one value a class, the mean over the
map is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from caffe_weights.errors import NetError
from reproduce.images import Preprocess
from reproduce.inference import forward
from reproduce.net import Net


@dataclass(frozen=True)
class Prediction:
    """A class, its name or "", and its value in the output blob."""

    label: int
    name: str
    score: float


def class_scores(
    net: Net, input_blob: str, output_blob: str, image: np.ndarray, preprocess: Preprocess
) -> tuple[np.ndarray, int]:
    """Scores float32 (classes,) of a picture uint8 H x W x 3, and how many positions they are the mean of."""
    blob = forward(net, {input_blob: preprocess(image)}, [output_blob])[output_blob]
    if blob.ndim < 2 or blob.shape[0] != 1 or blob.size == 0:
        raise NetError(f"blob {output_blob!r}", "shape " + " x ".join(map(str, blob.shape)),
                       "1 x classes", "name the output with --blob")  # fmt: skip
    maps = blob.reshape(blob.shape[1], -1)
    return maps.mean(1), maps.shape[1]


def top_predictions(scores: np.ndarray, count: int, names: Sequence[str] = ()) -> list[Prediction]:
    """The `count` best classes, best first; of equal ones the smaller label first."""
    order = np.argsort(-scores, kind="stable")[:count]
    return [Prediction(int(i), names[i] if i < len(names) else "", float(scores[i])) for i in order]
