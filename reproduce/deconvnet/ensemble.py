"""DeconvNet and FCN-8s together, and the energies that a CRF or an arg max takes.

`product-scores` is what was released (generate_EDeconvNet_CRF_results.m of HyeonwooNoh/DeconvNet at
87dd133): raw scores are clipped at 0 and multiplied, and the softmax comes after. `mean-probability` is the
paper's: softmax first, then the mean (recalled, not checked against the paper). All arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from caffe_weights.errors import NetError
from reproduce.crf import unary_of_probabilities, unary_of_scores
from reproduce.images import Preprocess
from reproduce.mean_field import softmax

RELEASED, PAPER = "product-scores", "mean-probability"
FCN_SIDE = 500  # the released FCN-8s takes pictures padded to this size

ENSEMBLES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    RELEASED: lambda deconv, fcn: unary_of_scores(product_scores(deconv, fcn)),
    PAPER: lambda deconv, fcn: unary_of_probabilities(mean_probability(deconv, fcn)),
}


def ensemble_energies(rule: str, deconv: np.ndarray, fcn: np.ndarray) -> np.ndarray:
    """-log of the ensemble's probabilities, float64 C x H x W, from both nets' raw scores of that shape.

    NetError where the shapes differ.
    """
    if deconv.shape != fcn.shape:
        found = "scores of " + " x ".join(map(str, fcn.shape))
        raise NetError("ensemble", found, " x ".join(map(str, deconv.shape)), "give nets of the same classes")
    return ENSEMBLES[rule](deconv, fcn)


def product_scores(deconv: np.ndarray, fcn: np.ndarray) -> np.ndarray:
    """The released ensemble's scores: both clipped at 0, multiplied."""
    return np.maximum(deconv, 0).astype(np.float64) * np.maximum(fcn, 0)


def mean_probability(deconv: np.ndarray, fcn: np.ndarray) -> np.ndarray:
    """The paper's ensemble: the mean of both nets' probabilities."""
    return (softmax(deconv.astype(np.float64)) + softmax(fcn.astype(np.float64))) / 2


def padded_blob(image: np.ndarray, preprocess: Preprocess, side: int = FCN_SIDE) -> np.ndarray:
    """A picture's blob 1 x C x side x side, zeros (the mean) below and right of it, as released.

    NetError for a picture that is larger, on which the released code fails.
    """
    blob = preprocess(image)
    height, width = blob.shape[2:]
    if max(height, width) > side:
        raise NetError("picture", f"{height} x {width} pixels", f"at most {side} x {side}, as released",
                       "leave out --faithful, or make it smaller")  # fmt: skip
    return np.pad(blob, ((0, 0), (0, 0), (0, side - height), (0, side - width)))
