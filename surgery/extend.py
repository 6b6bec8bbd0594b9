"""Weights for a net that grew: another input channel, more classes, two streams side by side.

Follows the FCN reference (shelhamer/fcn.berkeleyvision.org at 1305c73): `expand_score` of surgery.py, and the
solve.py files of nyud-fcn32s-color-d and nyud-fcn32s-color-hha. Results are new arrays; none is ever
repeated or cut to fit, which the reference's flat assignments would do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from caffe_weights.errors import WeightsError
from caffe_weights.weights import Weights
from surgery.geometry import dims


def widen_input(weight: np.ndarray, channels: int = 1, where: str = "weights") -> np.ndarray:
    """Convolution weights (out, in, kh, kw) with `channels` more inputs, each the mean of those there are.

    WeightsError unless there are four axes and at least one input.
    """
    if weight.ndim != 4 or weight.shape[1] < 1:
        raise WeightsError(where, f"shape {dims(weight.shape)}", "out x in x height x width")
    mean = weight.mean(axis=1, keepdims=True, dtype=np.float64).astype(weight.dtype)
    return np.concatenate([weight, *[mean] * channels], axis=1)


def expand_score(blobs: Sequence[np.ndarray], classes: int, where: str = "score layer") -> list[np.ndarray]:
    """Blobs of a score layer, weight (old, in, kh, kw) and bias (old), for `classes` classes, at least `old`.

    The first `old` classes keep their values, the new ones are zero. WeightsError for fewer classes, or for
    blobs that do not agree on how many there were.
    """
    old = blobs[0].shape[0]
    if any(blob.shape[:1] != (old,) for blob in blobs):
        found = " and ".join(dims(blob.shape) for blob in blobs)
        raise WeightsError(where, f"blobs of {found}", "the same number of classes in each")
    if classes < old:
        raise WeightsError(where, f"{old} classes", f"at most {classes}", "a class is never cut off")
    grown = []
    for blob in blobs:
        new = np.zeros((classes, *blob.shape[1:]), blob.dtype)
        new[:old] = blob
        grown.append(new)
    return grown


def join_streams(streams: Mapping[str, Mapping[str, Sequence[np.ndarray]]]) -> Weights:
    """The layers of several nets in one, each under its name with its stream's suffix (the key) behind it.

    Arrays are the ones given. WeightsError if two layers get one name.
    """
    joined = Weights()
    for suffix, weights in streams.items():
        for name, blobs in weights.items():
            if name + suffix in joined:
                raise WeightsError(f"layer {name + suffix}", "two streams would go there", "other suffixes")
            joined[name + suffix] = blobs
    return joined
