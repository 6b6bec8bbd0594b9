"""First values of parameters, by Caffe's fillers.

Follows include/caffe/filler.hpp (commit 9b891540): the distributions are Caffe's, the random numbers are
not, since its generator is a library's own. A blob's fans are fan_in = count / shape[0] and
fan_out = count / shape[1], also for the weight of a Deconvolution or a transposed InnerProduct, where they
do not count inputs and outputs. Where a setting has no meaning Caffe aborts; here it is a NetError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod, sqrt

import numpy as np

from caffe_weights.caffe_pb2 import FillerParameter
from caffe_weights.errors import NetError, WeightsError
from surgery.interpolation import bilinear_filler

Rule = Callable[[tuple[int, ...], FillerParameter, np.random.Generator], np.ndarray]


def fill(
    shape: Sequence[int], filler: FillerParameter | None = None, seed: np.random.Generator | int | None = None
) -> np.ndarray:
    """A new float32 array of `shape`, filled as `filler` says (by default with zeros).

    `seed` is a generator, which moves on, or the seed of a new one. NetError: an unknown type, settings
    without meaning, a shape that the filler cannot fill.
    """
    filler = filler or FillerParameter()
    if filler.type not in FILLERS:
        raise _fail(filler, "unknown type", f"one of {', '.join(FILLERS)}", "set type")
    if filler.sparse != -1 and filler.type != "gaussian":
        raise _fail(filler, f"sparse {filler.sparse}", "no sparse", "only the gaussian filler can be sparse")
    sizes = tuple(int(size) for size in shape)
    return np.asarray(FILLERS[filler.type](sizes, filler, np.random.default_rng(seed)), np.float32)


def _constant(shape: tuple[int, ...], filler: FillerParameter, rng: np.random.Generator) -> np.ndarray:
    return np.full(shape, filler.value, np.float32)


def _uniform(shape: tuple[int, ...], filler: FillerParameter, rng: np.random.Generator) -> np.ndarray:
    if filler.min > filler.max:
        raise _fail(filler, f"min {filler.min:g} over max {filler.max:g}", "min at most max")
    return _between(filler.min, filler.max, shape, rng)


def _gaussian(shape: tuple[int, ...], filler: FillerParameter, rng: np.random.Generator) -> np.ndarray:
    """Normal values; `sparse` keeps so many of shape[0] on average, for each value independently."""
    if filler.std <= 0:
        raise _fail(filler, f"std {filler.std:g}", "above 0", "use the constant filler for equal values")
    values = _normal(filler.std, shape, rng) + np.float32(filler.mean)
    if filler.sparse == -1:
        return values
    outputs = shape[0] if shape else 1
    if not 0 <= filler.sparse <= outputs:
        raise _fail(filler, f"sparse {filler.sparse}", f"0 to {outputs}, the first size of the blob")
    values *= rng.random(shape, np.float32) < filler.sparse / outputs
    return values


def _positive_unitball(
    shape: tuple[int, ...], filler: FillerParameter, rng: np.random.Generator
) -> np.ndarray:
    """Uniform values, scaled so that those of each index of the first axis sum to 1."""
    values = rng.random(shape, np.float32)
    sums = values.sum(axis=tuple(range(1, len(shape))), keepdims=True)
    values /= sums
    return values


def _xavier(shape: tuple[int, ...], filler: FillerParameter, rng: np.random.Generator) -> np.ndarray:
    scale = sqrt(3 / _fan(shape, filler))
    return _between(-scale, scale, shape, rng)


def _msra(shape: tuple[int, ...], filler: FillerParameter, rng: np.random.Generator) -> np.ndarray:
    return _normal(sqrt(2 / _fan(shape, filler)), shape, rng)


def _bilinear(shape: tuple[int, ...], filler: FillerParameter, rng: np.random.Generator) -> np.ndarray:
    try:
        return bilinear_filler(shape)
    except WeightsError as error:  # the net is at fault, not weights
        raise _fail(filler, error.found, error.wanted, error.do) from None


FILLERS: dict[str, Rule] = {
    "constant": _constant,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "positive_unitball": _positive_unitball,
    "xavier": _xavier,
    "msra": _msra,
    "bilinear": _bilinear,
}


def _fan(shape: tuple[int, ...], filler: FillerParameter) -> float:
    if not shape:
        raise _fail(filler, "a blob without axes", "at least 1 axis", "use the constant filler")
    count = prod(shape)
    fan_in = count / shape[0]
    fan_out = count / shape[1] if len(shape) > 1 else count
    fans = {
        FillerParameter.FAN_IN: fan_in,
        FillerParameter.FAN_OUT: fan_out,
        FillerParameter.AVERAGE: (fan_in + fan_out) / 2,
    }
    return fans[filler.variance_norm]


def _between(low: float, high: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    values = rng.random(shape, np.float32)
    values *= np.float32(high - low)
    values += np.float32(low)
    return values


def _normal(std: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    values = rng.standard_normal(shape, np.float32)
    values *= np.float32(std)
    return values


def _fail(filler: FillerParameter, found: str, wanted: str, do: str = "") -> NetError:
    return NetError(f"filler {filler.type}", found, wanted, do)
