"""What a data set holds: which files are there, which are missing or broken, how its classes are spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from caffe_weights.errors import InputError
from reproduce.data.base import Dataset, Split


@dataclass
class SplitReport:
    """One split. `missing` are files by part, `broken` errors; `counts` are pixels by target, void last."""

    split: Split
    expected_count: int | None = None
    expected_sha256: str = ""
    repeated: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    counts: dict[str, list[int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # HxW -> pictures

    @property
    def remarks(self) -> list[str]:
        """How the list differs from the published one."""
        count = len(self.split.ids)
        words = []
        if self.expected_count not in (None, count):
            words.append(f"{count} ids, the published list has {self.expected_count}")
        elif self.expected_sha256 not in ("", self.split.sha256):
            words.append("other ids, or in another order, than in the published list")
        if self.repeated:
            words.append(f"{len(self.repeated)} ids more than once, as {self.repeated[0]}")
        return words

    @property
    def good(self) -> bool:
        """Whether nothing is missing, broken, or other than published."""
        return not (self.remarks or self.missing or self.broken)

    def as_dict(self, dataset: Dataset) -> dict[str, Any]:
        """Plain values for JSON."""
        published = self.expected_sha256 == self.split.sha256 if self.expected_sha256 else None
        classes = {part: _frequencies(dataset, part, counts) for part, counts in self.counts.items()}
        return {
            "split": self.split.name, "source": self.split.source, "packaged": self.split.packaged,
            "count": len(self.split.ids), "expected_count": self.expected_count,
            "sha256": self.split.sha256, "is_published": published, "remarks": self.remarks,
            "missing": self.missing, "broken": self.broken, "sizes": self.sizes, "classes": classes,
            "good": self.good,
        }  # fmt: skip


@dataclass(frozen=True)
class _Item:
    """What was found of one id: errors by part, pixel counts by target, the size."""

    missing: tuple[tuple[str, str], ...] = ()
    broken: str = ""
    counts: tuple[tuple[str, np.ndarray], ...] = ()
    size: str = ""


def check(
    dataset: Dataset, splits: Sequence[str], quick: bool = False, step: Callable[[], None] | None = None
) -> list[SplitReport]:
    """Look at every file of some splits; `quick`: only whether it is there. `step` is called for each id.

    FileError and FormatError for a list that is missing or broken.
    """
    seen: dict[str, _Item] = {}
    reports = []
    for name in splits:
        dataset.split = dataset.read_split(name)
        report = _empty(dataset)
        for identity in dataset.ids:
            if identity not in seen:
                seen[identity] = _look(dataset, identity, quick)
            _add(report, seen[identity])
            if step is not None:
                step()
        reports.append(report)
    return reports


def _empty(dataset: Dataset) -> SplitReport:
    split, expected = dataset.split, dataset.expected(dataset.split.name)
    ids, counts = np.unique(np.array(split.ids), return_counts=True)
    repeated = [str(identity) for identity in ids[counts > 1]]
    if expected is None:
        return SplitReport(split, repeated=repeated)
    return SplitReport(split, expected.count, expected.sha256, repeated)


def _look(dataset: Dataset, identity: str, quick: bool) -> _Item:
    paths = [(part, dataset.path(part, identity)) for part in dataset.parts]
    missing = tuple((part, str(path)) for part, path in paths if not path.is_file())
    if missing or quick:
        return _Item(missing)
    try:
        item = dataset.item(identity)
    except InputError as error:
        return _Item(broken=str(error))
    counts = tuple((part, np.bincount(item[part].reshape(-1), minlength=256)) for part in dataset.targets)
    height, width = item[dataset.parts[0]].shape[1:]
    return _Item(counts=counts, size=f"{height}x{width}")


def _add(report: SplitReport, item: _Item) -> None:
    for part, path in item.missing:
        report.missing.setdefault(part, []).append(path)
    if item.broken:
        report.broken.append(item.broken)
    for part, counts in item.counts:
        before = report.counts.get(part, [0] * 256)
        report.counts[part] = [a + int(b) for a, b in zip(before, counts, strict=True)]
    if item.size:
        report.sizes[item.size] = report.sizes.get(item.size, 0) + 1


def _frequencies(dataset: Dataset, part: str, counts: Sequence[int]) -> dict[str, Any]:
    names = dataset.class_names[part]
    labelled = sum(counts[: len(names)])
    rows = [
        {"label": label, "name": name, "pixels": counts[label],
         "frequency": counts[label] / labelled if labelled else float("nan")}
        for label, name in enumerate(names)
    ]  # fmt: skip
    return {"pixels": labelled, "void_pixels": counts[dataset.void], "per_class": rows}
