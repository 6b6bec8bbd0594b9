"""The fully connected CRF behind DeconvNet and DeepLab, on any scores: `fcn crf`.

The model is that of `reproduce.mean_field`; a picture of usual size goes through the permutohedral lattice of
Kraehenbuehl and Koltun's library by the package pydensecrf2 (the extra `[crf]`). The settings are those of
the released scripts: generate_EDeconvNet_CRF_results.m of HyeonwooNoh/DeconvNet at 87dd133 with the wrapper
that it calls, run_densecrf.sh of DeepLab. Departures: whatever the settings leave to a library's default,
above all the normalisation of the kernels, is named here; the energy is taken from the scores by a log
softmax, which cannot overflow.

The lattice is an approximation. With a normalised kernel its messages are within some percent of the
Gaussian's. Without, they are too small by a factor: 0.88 for the two-dimensional kernel, and less where
colours count, so the published weights without normalisation are weights for this lattice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from caffe_weights.errors import InputError
from reproduce.mean_field import (
    MOST_PIXELS,
    NORMALIZATIONS,
    colour_features,
    gaussian_kernel,
    mean_field,
    place_features,
    softmax,
)

LEAST_PROBABILITY = 1e-30


@dataclass(frozen=True)
class CrfSettings:
    """Weights (`compat` in pydensecrf) and standard deviations of the two kernels: `sxy` in pixels, `srgb` in
    values of 0..255. `normalization` is a key of NORMALIZATIONS; `origin` says where the numbers are from."""

    gaussian_weight: float
    gaussian_sxy: float
    bilateral_weight: float
    bilateral_sxy: float
    bilateral_srgb: float
    iterations: int = 10
    normalization: str = "none"
    origin: str = ""

    def words(self) -> str:
        """The settings in words, for a report."""
        return (f"gaussian {self.gaussian_weight:g} ({self.gaussian_sxy:g} px), bilateral"
                f" {self.bilateral_weight:g} ({self.bilateral_sxy:g} px, {self.bilateral_srgb:g}),"
                f" {self.iterations} iterations, normalization {self.normalization}")  # fmt: skip


_LIBRARY_2011 = "normalisation recalled: that of the library of 2011"

SETTINGS = {
    "deconvnet": CrfSettings(3, 3, 5, 20, 3, 10, "none", "generate_EDeconvNet_CRF_results.m, 87dd133"),
    "deeplab-v1": CrfSettings(3, 3, 4, 49, 5, 10, "after", f"run_densecrf.sh, LargeFOV; {_LIBRARY_2011}"),
    "deeplab-msc-largefov": CrfSettings(
        3, 3, 5, 50, 3, 10, "after", f"script of a stored fork; {_LIBRARY_2011}"),
    "deeplab-vgg128": CrfSettings(
        3, 3, 10, 60, 20, 10, "after", f"early script, vgg128_noup; {_LIBRARY_2011}"),
    "deeplab-v2": CrfSettings(3, 1, 4, 67, 3, 10, "after", f"recalled; {_LIBRARY_2011}"),
    "deeplab-v2-fork": CrfSettings(2, 2, 4, 65, 3, 10, "after", f"script of a stored fork; {_LIBRARY_2011}"),
}  # fmt: skip


def unary_of_scores(scores: np.ndarray) -> np.ndarray:
    """-log softmax of scores C x H x W, float64."""
    shifted = scores.astype(np.float64) - scores.max(axis=0, keepdims=True)
    return np.asarray(np.log(np.exp(shifted).sum(axis=0, keepdims=True)) - shifted)


def unary_of_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """-log of probabilities C x H x W, float64; zero counts as 1e-30."""
    return -np.log(np.maximum(probabilities.astype(np.float64), LEAST_PROBABILITY))


def dense_crf(unary: np.ndarray, image: np.ndarray, settings: CrfSettings, exact: bool = False) -> np.ndarray:
    """Q, float32 C x H x W, from energies C x H x W and the picture uint8 H x W x 3 (RGB) they are of.

    `exact` sums over all pairs, for pictures of at most 64 x 64 pixels. InputError where sizes or settings
    do not fit, or pydensecrf2 is missing.
    """
    _check(unary, image, settings)
    if not settings.iterations or not (settings.gaussian_weight or settings.bilateral_weight):
        return softmax(-unary.astype(np.float64)).astype(np.float32)
    run = _exact if exact else _lattice
    return run(unary, image, settings).reshape(unary.shape).astype(np.float32)


def find_settings(name: str, **changes: Any) -> CrfSettings:
    """The settings of a published system with those changes that are not None. InputError."""
    if name not in SETTINGS:
        raise InputError("crf settings", repr(name), " or ".join(SETTINGS))
    return replace(SETTINGS[name], **{key: value for key, value in changes.items() if value is not None})


def _exact(unary: np.ndarray, image: np.ndarray, settings: CrfSettings) -> np.ndarray:
    height, width = image.shape[:2]
    if height * width > MOST_PIXELS:
        raise InputError("exact mean field", f"{height} x {width} pixels", f"at most {MOST_PIXELS}",
                         "take the lattice, which needs pydensecrf2")  # fmt: skip
    normalized = NORMALIZATIONS[settings.normalization]
    places = place_features(height, width, settings.gaussian_sxy)
    colours = colour_features(image, settings.bilateral_sxy, settings.bilateral_srgb)
    kernels = [(settings.gaussian_weight, normalized(gaussian_kernel(places))),
               (settings.bilateral_weight, normalized(gaussian_kernel(colours)))]  # fmt: skip
    return mean_field(unary.reshape(len(unary), -1), kernels, settings.iterations)


def _lattice(unary: np.ndarray, image: np.ndarray, settings: CrfSettings) -> np.ndarray:
    library = _library()
    height, width = image.shape[:2]
    field = library.DenseCRF2D(width, height, len(unary))
    field.setUnaryEnergy(np.ascontiguousarray(unary.reshape(len(unary), -1), np.float32))
    how = {"kernel": library.CONST_KERNEL, "normalization": getattr(library, _NAMES[settings.normalization])}
    if settings.gaussian_weight:
        field.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_weight, **how)
    if settings.bilateral_weight:
        field.addPairwiseBilateral(
            sxy=settings.bilateral_sxy, srgb=settings.bilateral_srgb, compat=settings.bilateral_weight,
            rgbim=np.ascontiguousarray(image), **how,
        )  # fmt: skip
    return np.array(field.inference(settings.iterations))


_NAMES = {
    "none": "NO_NORMALIZATION",
    "before": "NORMALIZE_BEFORE",
    "after": "NORMALIZE_AFTER",
    "symmetric": "NORMALIZE_SYMMETRIC",
}


def _library() -> Any:
    try:
        from pydensecrf import densecrf
    except ImportError:
        raise InputError("dense CRF", "the package pydensecrf2 is not installed", "it, for the lattice",
                         "pip install pydensecrf2 (it builds with a C++ compiler), or --exact for small"
                         " pictures") from None  # fmt: skip
    return densecrf


def _check(unary: np.ndarray, image: np.ndarray, settings: CrfSettings) -> None:
    if unary.ndim != 3 or unary.shape[1:] != image.shape[:2]:
        found = "scores of " + " x ".join(map(str, unary.shape))
        raise InputError("dense CRF", found, "classes x {} x {}, as the picture".format(*image.shape[:2]))
    if not np.isfinite(unary).all():
        raise InputError("dense CRF", "scores that are no finite numbers", "finite numbers")
    if settings.normalization not in NORMALIZATIONS:
        raise InputError("normalization", repr(settings.normalization), " or ".join(NORMALIZATIONS))
    numbers = {name: getattr(settings, name) for name in SETTING_NAMES}
    for name, value in numbers.items():
        low = name.endswith(("sxy", "srgb"))
        if not np.isfinite(value) or value < 0 or (low and not value):
            raise InputError(name, f"{value:g}", "above 0" if low else "0 or more")


SETTING_NAMES = (
    "gaussian_weight", "gaussian_sxy", "bilateral_weight", "bilateral_sxy", "bilateral_srgb", "iterations",
)  # fmt: skip
