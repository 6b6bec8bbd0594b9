"""How far two contents of a blob are apart: values, probes of a stored blob, labels.

Relative differences are those of `reproduce.tolerances`. An error in ULPs counts in spacings of float32
numbers: of the element itself (`ulp`, which near zero grows without meaning) and of the blob's largest
(`ulp_of_largest`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from reproduce.tolerances import SMALLEST, relative_differences

Index = tuple[int, ...]


@dataclass(frozen=True)
class Probe:
    """What is stored of a blob instead of all values: its shape, some flat indices with values, sum, norm."""

    shape: Index
    idx: np.ndarray
    val: np.ndarray
    sum: float
    norm: float


Content = np.ndarray | Probe


@dataclass(frozen=True)
class Difference:
    """Ours against the other side's. Indices are into the blob; `share` is that over the tolerance.

    `relative` is the worst by the tolerance table's measure, `absolute` the largest |ours - theirs|, each
    with its place and the two values there; `of_largest` is `absolute` over the blob's largest magnitude.
    `probed` counts the compared values of a probe; None for whole blobs.
    """

    relative: float
    relative_at: Index
    relative_values: tuple[float, float]
    absolute: float
    absolute_at: Index
    absolute_values: tuple[float, float]
    of_largest: float
    ulp: float
    ulp_of_largest: float
    share: float
    elements: int
    probed: int | None = None


@dataclass(frozen=True)
class Flips:
    """Labels (argmax along axis 1) that differ between the sides.

    `gap` is the largest distance, at a flipped label, between the other side's two best scores over the
    largest magnitude of the blob; `clear` counts those further apart than twice the tolerance: no tie.
    """

    labels: int
    flipped: int
    clear: int
    gap: float
    at: Index

    @property
    def equal_share(self) -> float:
        """The fraction of labels that both sides agree on."""
        return 1 - self.flipped / self.labels


def measure(got: np.ndarray, want: Content, tolerance: float, channels: bool = True) -> Difference:
    """Compare contents of one shape, channel by channel too if `channels`; dtypes are float32 or float64."""
    if isinstance(want, Probe):
        return _measure_probe(got, want, tolerance)
    exact = np.float64 if got.dtype != want.dtype else got.dtype
    relative = relative_differences(got.astype(exact), want.astype(exact), channels)
    if not relative.size:
        return Difference(0.0, (), (0.0, 0.0), 0.0, (), (0.0, 0.0), 0.0, 0.0, 0.0, 0.0, 0)
    apart = absolute_differences(got, want)
    at, absolute_at = _worst(relative), _worst(apart)
    largest = np.abs(want[np.isfinite(want)]).max(initial=0.0)
    return Difference(
        float(relative[at]), at, _values(got, want, at),
        float(apart[absolute_at]), absolute_at, _values(got, want, absolute_at),
        float(apart[absolute_at] / max(largest, SMALLEST)),
        float((apart / _spacing(np.maximum(np.abs(got), np.abs(want)))).max()),
        float(apart[absolute_at] / _spacing(largest)),
        float((relative > tolerance).mean()), int(got.size),
    )  # fmt: skip


def absolute_differences(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want| in float64; 0 where both are the same NaN or infinity, infinite where one alone is."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(got.astype(np.float64) - want)
    equal = (got == want) | (np.isnan(got) & np.isnan(want))
    return np.where(equal, 0.0, np.where(np.isfinite(apart), apart, np.inf))


def flips(got: np.ndarray, want: Content, tolerance: float) -> Flips | None:
    """Flipped labels of a blob of scores N x C (x H x W); None where there are no two channels."""
    if isinstance(want, Probe) or want.ndim < 2 or want.shape[1] < 2 or not want.size:
        return None
    scores = want.astype(np.float64)
    turned = got.argmax(1) != want.argmax(1)
    best = np.partition(scores, -2, axis=1)
    gap = (best.take(-1, 1) - best.take(-2, 1)) / max(float(np.abs(scores).max()), SMALLEST)
    there = np.where(turned, gap, -1.0)
    at = _worst(there)
    clear = int((there > 2 * tolerance).sum())
    return Flips(turned.size, int(turned.sum()), clear, max(float(there[at]), 0.0), at)


def words_of(index: Index) -> str:
    """An index for a reader."""
    return "(" + ", ".join(map(str, index)) + ")"


def _measure_probe(got: np.ndarray, probe: Probe, tolerance: float) -> Difference:
    # a probe knows no maximum: ours serves, and the stored norm is held against that of our whole blob
    values = got.reshape(-1)[probe.idx]
    largest = max(float(np.abs(got[np.isfinite(got)]).max(initial=0.0)), SMALLEST)
    apart = absolute_differences(values, probe.val)
    place = int(apart.argmax()) if apart.size else 0
    worst = float(apart[place]) if apart.size else 0.0
    norm = float(np.linalg.norm(got.astype(np.float64)))
    by_norm = abs(norm - probe.norm) / max(probe.norm, SMALLEST)
    relative = max(worst / largest, by_norm if np.isfinite(by_norm) else np.inf)
    at = tuple(int(i) for i in np.unravel_index(int(probe.idx[place]), probe.shape)) if apart.size else ()
    pair = (float(values[place]), float(probe.val[place])) if apart.size else (0.0, 0.0)
    ulp = apart / _spacing(np.maximum(np.abs(values), np.abs(probe.val)))
    return Difference(
        relative, at, pair, worst, at, pair, relative,
        float(ulp.max(initial=0.0)), float(worst / _spacing(largest)),
        float((apart / largest > tolerance).mean()) if apart.size else 0.0,
        prod(probe.shape), int(apart.size),
    )  # fmt: skip


def _worst(values: np.ndarray) -> Index:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(values)), values.shape))


def _values(got: np.ndarray, want: np.ndarray, at: Index) -> tuple[float, float]:
    return float(got[at]), float(want[at])


def _spacing(values: Any) -> Any:
    """The distance from a magnitude to the next float32; that of the largest for what is beyond."""
    top = np.finfo(np.float32).max
    finite = np.nan_to_num(np.asarray(values, np.float64), nan=0.0, posinf=float(top))
    return np.spacing(np.minimum(finite, top).astype(np.float32)).astype(np.float64)
