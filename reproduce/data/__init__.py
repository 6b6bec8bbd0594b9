"""The data sets of the FCN papers, CamVid, and composites of digits; see `reproduce.data.base.Dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caffe_weights.errors import InputError
from caffe_weights.files import PathLike
from reproduce.data.base import Dataset
from reproduce.data.camvid import CamVid
from reproduce.data.cityscapes import Cityscapes
from reproduce.data.digits import Digits
from reproduce.data.nyud import NYUD
from reproduce.data.pascal_context import PASCALContext
from reproduce.data.sbd import SBD
from reproduce.data.siftflow import SIFTFlow
from reproduce.data.voc import VOC

__all__ = ["DATASETS", "Dataset", "open_data", "parse_data"]

DATASETS: dict[str, type[Dataset]] = {
    kind.kind: kind for kind in (VOC, SBD, NYUD, SIFTFlow, PASCALContext, CamVid, Cityscapes, Digits)
}


def open_data(kind: str, root: PathLike, split: str | None = None, **options: Any) -> Dataset:
    """The data set `kind` in a folder, its training split by default; `options` are those of its class."""
    return find_kind(kind)(root, split, **options)


def find_kind(kind: str) -> type[Dataset]:
    """The class of a data set. InputError for an unknown one."""
    if kind not in DATASETS:
        raise InputError("data set", repr(kind), " or ".join(DATASETS))
    return DATASETS[kind]


def parse_data(text: str) -> tuple[str, Path]:
    """Kind and folder of `KIND:DIR`. InputError."""
    kind, colon, folder = text.partition(":")
    if not colon or not folder or kind not in DATASETS:
        raise InputError("--data", repr(text), f"KIND:DIR, KIND one of {', '.join(DATASETS)}")
    return kind, Path(folder)
