"""A torchvision VGG16 checkpoint as Caffe's VGG16: other names, BGR, and pixels of 0 to 255.

torchvision feeds x = (rgb / 255 - mean) / std (models/vgg.py, `VGG16_Weights.IMAGENET1K_V1`); Caffe's nets
take bgr - mean in pixels. So conv1_1's input channels are reversed and its weights divided by 255 * std,
and the mean to subtract is `MEAN_BGR`. Zero padding stays right, because zero is the mean in both. The
division is done in float64 and rounded once; everything else is copied bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from caffe_weights.errors import WeightsError
from caffe_weights.weights import Weights

_MEAN_RGB = (0.485, 0.456, 0.406)
_STD_RGB = (0.229, 0.224, 0.225)
MEAN_BGR = tuple(round(255 * mean, 6) for mean in reversed(_MEAN_RGB))
_CONVOLUTIONS = {
    0: "conv1_1", 2: "conv1_2", 5: "conv2_1", 7: "conv2_2", 10: "conv3_1", 12: "conv3_2", 14: "conv3_3",
    17: "conv4_1", 19: "conv4_2", 21: "conv4_3", 24: "conv5_1", 26: "conv5_2", 28: "conv5_3",
}  # fmt: skip
_LAYERS = {f"features.{i}": name for i, name in _CONVOLUTIONS.items()} | {
    "classifier.0": "fc6",
    "classifier.3": "fc7",
    "classifier.6": "fc8",
}


def is_vgg16(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of torchvision's VGG16 (without batch normalisation)."""
    wanted = {f"{layer}.{kind}" for layer in _LAYERS for kind in ("weight", "bias")}
    return set(tensors) == wanted


def convert_vgg16(tensors: Mapping[str, np.ndarray], source: str) -> Weights:
    """The same net under Caffe's names and conventions; `notes` say the mean to use and the rounding."""
    blobs = {name: [tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]] for layer, name in _LAYERS.items()}
    first = blobs["conv1_1"][0]
    if first.ndim != 4 or first.shape[1] != 3:
        raise WeightsError(f"{source}: features.0.weight", f"shape {first.shape}", "(64, 3, 3, 3)")
    exact = (first.astype(np.float64) / (255 * np.array(_STD_RGB)[None, :, None, None]))[:, ::-1]
    blobs["conv1_1"][0] = rounded = np.ascontiguousarray(exact.astype(np.float32))
    note = (
        f"torchvision's VGG16: conv1_1 takes BGR pixels minus the mean {MEAN_BGR}; dividing its weights by "
        f"255 * std rounded them by at most {_largest_relative(rounded, exact):.2g} of their value"
    )
    return Weights(blobs, source=source, notes=[note])


def _largest_relative(rounded: np.ndarray, exact: np.ndarray) -> float:
    nonzero = exact != 0
    return float(np.max(np.abs(rounded - exact)[nonzero] / np.abs(exact[nonzero]), initial=0.0))
