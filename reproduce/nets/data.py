"""The data layers of the published nets, as data: what stands in each train, val, trainval and test prototxt.

From shelhamer/fcn.berkeleyvision.org at 1305c73: Python layers whose `param_str` is the text of a Python
dict. Its order of keys was a hash order and means nothing: compare `read_param_str`, which is a literal
parser and evaluates no code.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caffe_weights.errors import NetError
from surgery.netspec import L, NetSpec

SEED = 1337
CHANNELS = {"data": 3, "color": 3, "hha": 3, "depth": 1}  # of the blobs that are inputs, not labels
VOC_MEAN = (104.00699, 116.66877, 122.67892)  # BGR, as all below


@dataclass(frozen=True)
class Source:
    """Where one split comes from: the class of the Python layer and its settings, seed apart."""

    layer: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Data:
    """A dataset as a net sees it: the layer's tops and where each split comes from, training first.

    `mean` is what the layer takes off each input channel; for inputs other than `data` by their name.
    """

    name: str
    module: str
    tops: tuple[str, ...]
    splits: Mapping[str, Source]
    classes: int
    mean: Mapping[str, tuple[float, ...]]
    extra_classes: int = 0  # of the second head

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tops that are pictures."""
        return tuple(top for top in self.tops if top in CHANNELS)

    def add(self, n: NetSpec, split: str) -> None:
        """Enter the data layer of a split into the net. NetError for a split that the dataset has not."""
        if split not in self.splits:
            raise NetError(f"split {split}", f"{self.name} has none", " or ".join([*self.splits, "deploy"]))
        source = self.splits[split]
        tops = L.Python(module=self.module, layer=source.layer, ntop=len(self.tops),
                        param_str=str({**source.settings, "seed": SEED}))  # fmt: skip
        for name, top in zip(self.tops, tops, strict=True):
            n[name] = top


def read_param_str(text: str) -> dict[str, Any]:
    """The settings in a `param_str`; NetError unless it is the literal of a dict. Nothing is evaluated."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise NetError("param_str", repr(text[:60]), "the literal of a Python dict, as {'split': 'train'}")
    return value


def _voc(root: str) -> Data:
    train = {"sbdd_dir": f"{root}/sbdd/dataset", "split": "train", "mean": VOC_MEAN}
    val = {"voc_dir": f"{root}/pascal/VOC2011", "split": "seg11valid", "mean": VOC_MEAN}
    splits = {"train": Source("SBDDSegDataLayer", train), "val": Source("VOCSegDataLayer", val)}
    return Data("VOC", "voc_layers", ("data", "label"), splits, 21, {"data": VOC_MEAN})


def _nyud(tops: tuple[str, ...], mean: Mapping[str, tuple[float, ...]], single: bool = False) -> Data:
    splits = {
        split: Source("NYUDSegDataLayer", {"nyud_dir": "../data/nyud", "split": split, "tops": list(tops)})
        for split in ("trainval", "test")
    }
    return Data("NYUD", "nyud_layers", ("data", "label") if single else tops, splits, 40,
                {"data": mean[tops[0]]} if single else mean)  # fmt: skip


NYUD_MEANS = {
    "color": (116.190, 97.203, 92.318),
    "hha": (132.431, 94.076, 118.477),
    "depth": (7.844,),  # of the logarithm
}

VOC = _voc("../data")
VOC_DEEPER = _voc("../../data")  # voc-fcn16s lies one folder deeper
NYUD_COLOR = _nyud(("color", "label"), NYUD_MEANS, single=True)
NYUD_HHA = _nyud(("hha", "label"), NYUD_MEANS, single=True)
NYUD_COLOR_DEPTH = _nyud(("color", "depth", "label"), NYUD_MEANS)
NYUD_COLOR_HHA = _nyud(("color", "hha", "label"), NYUD_MEANS)
SIFTFLOW = Data(
    "SIFT Flow", "siftflow_layers", ("data", "sem", "geo"),
    {split: Source("SIFTFlowSegDataLayer", {"siftflow_dir": "../data/sift-flow", "split": split})
     for split in ("trainval", "test")},
    33, {"data": (114.578, 115.294, 108.353)}, 3,
)  # fmt: skip
PASCAL_CONTEXT = Data(
    "PASCAL-Context", "pascalcontext_layers", ("data", "label"),
    {split: Source("PASCALContextSegDataLayer",
                   {"voc_dir": "../../data/pascal", "context_dir": "../../data/pascal-context",
                    "split": split})
     for split in ("train", "val")},
    60, {"data": (104.007, 116.669, 122.679)},
)  # fmt: skip
CITYSCAPES = Data(  # not of the FCN papers: a data layer of ours, 127.5 off for nets that take -1 to 1
    "Cityscapes", "reproduce.data", ("data", "label"),
    {split: Source("cityscapes", {"dir": "../data/cityscapes", "split": split})
     for split in ("train", "val")},
    19, {"data": (127.5, 127.5, 127.5)},
)  # fmt: skip
