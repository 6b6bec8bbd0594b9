"""Copy weights from one net into another, by layer name, with a report.

Follows `Net::CopyTrainedLayersFrom` and `Blob::ShapeEquals` of Caffe (src/caffe/net.cpp and blob.cpp, commit
9b891540) and the FCN reference's `transplant`. Departs from both in being strict: Caffe passes over layers
that one side lacks, the reference assigns arrays of any count, which repeats or cuts their values. Here
a layer without a partner, and a blob of another shape, is an error unless asked for; values are never
repeated or cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from caffe_weights.errors import WeightsError
from caffe_weights.weights import Weights, blob_key, is_absent
from surgery.geometry import Shape, dims


@dataclass(frozen=True)
class Coercion:
    """A blob that took another shape, its values in the same order."""

    blob: str
    old: Shape
    new: Shape


@dataclass
class TransplantReport:
    """What became of each blob, by its key (`conv1.weight`) in the target; `dropped`: in the source.

    `legacy` blobs were copied from four axes with ones in front, as files before 2014 hold them; `absent`
    ones are kept by the layer that shares them, in source and result; `renamed` maps source to target layers.
    """

    copied: list[str] = field(default_factory=list)
    legacy: list[str] = field(default_factory=list)
    coerced: list[Coercion] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain lists and dicts, for JSON."""
        coerced = [{"blob": c.blob, "from": list(c.old), "to": list(c.new)} for c in self.coerced]
        return {**vars(self), "coerced": coerced}

    def __str__(self) -> str:
        lines = [f"copied {len(self.copied)} blobs"]
        lines += [f"renamed {old} to {new}" for old, new in self.renamed.items()]
        lines += [f"coerced {c.blob}: {dims(c.old)} to {dims(c.new)}" for c in self.coerced]
        for what in ("legacy", "dropped", "missing", "absent"):
            lines += [f"{what} {blob}" for blob in getattr(self, what)]
        return "\n".join(lines)


def transplant(
    source: Mapping[str, Sequence[np.ndarray]],
    target_shapes: Mapping[str, Sequence[Shape]],
    *,
    coerce: bool = False,
    drop: bool = False,
    allow_missing: bool = False,
    rename: Mapping[str, str] | None = None,
    suffix: str = "",
) -> tuple[Weights, TransplantReport]:
    """The blobs of `source` in the shapes and order of the target's layers.

    `target_shapes` maps each layer to the shapes of its blobs (layers without any may be left out), as
    `infer_shapes` gives them. `rename` maps source layers to target layers; to the names of all others
    `suffix` is appended. On request only: `coerce` reshapes a blob of equal count, `drop` leaves out source
    blobs that the target lacks, `allow_missing` accepts target blobs that the source lacks (they are not in
    the result, so a layer may end early). Else WeightsError, as for another count always. Arrays of the
    result are views of the source's.
    """
    wanted = {name: [tuple(shape) for shape in shapes] for name, shapes in target_shapes.items() if shapes}
    pairs = _pairs(source, rename or {}, suffix)
    report = TransplantReport(renamed={old: new for new, old in pairs.items() if new != old})
    report.dropped = _dropped(source, pairs, wanted)
    report.missing = _missing(source, pairs, wanted)
    where = getattr(source, "source", "")
    if report.dropped and not drop:
        raise _unmatched(where, report.dropped, "in the target", "drop=True to leave out what it lacks")
    if report.missing and not allow_missing:
        raise _unmatched(where, report.missing, "in the source", "allow_missing=True to go without")
    result = Weights(source=where)
    for name, shapes in wanted.items():
        blobs = source[pairs[name]] if name in pairs else ()
        fitted = [
            _fit(where, blob_key(name, i), np.asarray(blob), shape, coerce, report)
            for i, (blob, shape) in enumerate(zip(blobs, shapes, strict=False))
        ]
        if fitted:
            result[name] = fitted
    return result, report


def _pairs(
    source: Mapping[str, Sequence[np.ndarray]], rename: Mapping[str, str], suffix: str
) -> dict[str, str]:
    """Target layer -> source layer, for all source layers with blobs."""
    for old in rename:
        if old not in source:
            raise WeightsError(f"rename {old}", "no such layer in the source", f"one of {_some(source)}")
    pairs: dict[str, str] = {}
    for old, blobs in source.items():
        new = rename.get(old, old + suffix)
        if len(blobs) and new in pairs:
            raise WeightsError(
                f"layer {new}", f"both {pairs[new]} and {old} would go there", "one source layer"
            )
        if len(blobs):
            pairs[new] = old
    return pairs


def _dropped(
    source: Mapping[str, Sequence[np.ndarray]], pairs: Mapping[str, str], wanted: Mapping[str, list[Shape]]
) -> list[str]:
    return [
        blob_key(old, i)
        for new, old in pairs.items()
        for i in range(len(wanted.get(new, ())), len(source[old]))
    ]


def _missing(
    source: Mapping[str, Sequence[np.ndarray]], pairs: Mapping[str, str], wanted: Mapping[str, list[Shape]]
) -> list[str]:
    return [
        blob_key(name, i)
        for name, shapes in wanted.items()
        for i in range(len(source[pairs[name]]) if name in pairs else 0, len(shapes))
    ]


def _fit(
    where: str, key: str, blob: np.ndarray, shape: Shape, coerce: bool, report: TransplantReport
) -> np.ndarray:
    """The blob in `shape`, noted in the report."""
    if is_absent(blob):
        report.absent.append(key)
        return blob
    if blob.shape == shape:
        report.copied.append(key)
    elif blob.ndim == 4 and len(shape) < 4 and blob.shape == (1,) * (4 - len(shape)) + shape:
        report.copied.append(key)
        report.legacy.append(key)
    elif blob.size == prod(shape) and coerce:
        report.coerced.append(Coercion(key, blob.shape, shape))
    elif blob.size == prod(shape):
        raise WeightsError(_place(where, key), f"shape {dims(blob.shape)}", dims(shape),
                           "coerce=True reshapes blobs of equal count")  # fmt: skip
    else:
        raise WeightsError(_place(where, key), f"shape {dims(blob.shape)} with {blob.size} values",
                           f"{dims(shape)} with {prod(shape)}", "rename the layer, or use the net "
                           "that these weights belong to")  # fmt: skip
    return blob.reshape(shape)


def _unmatched(where: str, keys: list[str], side: str, do: str) -> WeightsError:
    first = keys[0]
    rest = f" (and {len(keys) - 1} more: {_some(keys[1:])})" if len(keys) > 1 else ""
    return WeightsError(_place(where, first), f"no blob of this name {side}{rest}",
                        "the same blobs on both sides", f"rename, or pass {do}")  # fmt: skip


def _place(where: str, key: str) -> str:
    return f"{where}: blob {key}" if where else f"blob {key}"


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
