"""`Python` data layers, the reference's and ours: from a layer of a prototxt to data set, order and blobs.

Module, layer and settings are those of shelhamer/fcn.berkeleyvision.org at 1305c73. No code of a prototxt is
run: `param_str` is read by a literal parser, and module and layer are only looked up in a table. Departures:
a setting of another name is an error; without `seed` the seed is the published one, not the clock's; a folder
is looked for below `folder` first, then in the working directory. Ours have the module `reproduce.data`, the
kind of a data set as their layer, its folder `dir`, and settings for batches and random changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffe_weights.caffe_pb2 import LayerParameter, PythonParameter
from caffe_weights.errors import InputError, NetError
from caffe_weights.files import PathLike
from reproduce.data import DATASETS
from reproduce.data.base import Dataset
from reproduce.data.nyud import NYUD
from reproduce.data.pascal_context import PASCALContext
from reproduce.data.sampling import SEED, ListOrder, Order, RandomOrder
from reproduce.data.sbd import SBD
from reproduce.data.siftflow import SIFTFlow
from reproduce.data.transforms import Augment
from reproduce.data.voc import VOC
from reproduce.nets.data import read_param_str

COMMON = {"split", "seed", "randomize"}
OURS = "reproduce.data"
CHANGES = frozenset({"mirror", "jitter", "sample", "cell", "crop", "shrink", "batch", "mean"})
OPTIONS = {"nyud": "modalities", "siftflow": "targets", "pascal-context": "voc"}


@dataclass(frozen=True)
class PythonLayer:
    """A class of the reference: how to open its data set, and which settings it takes besides the common."""

    open: Callable[[Mapping[str, Any], Callable[[str], Path]], Dataset]
    settings: frozenset[str]


def _nyud(settings: Mapping[str, Any], place: Callable[[str], Path]) -> Dataset:
    tops = settings.get("tops", ["color", "label"])
    if not isinstance(tops, list | tuple) or not tops or tops[-1] != "label":
        raise InputError("param_str", f"tops {tops}", "inputs and then label, as ['color', 'label']")
    return NYUD(place("nyud_dir"), settings["split"], modalities=tops[:-1])


def _with_mean(kind: type[Dataset], folder: str) -> Callable[..., Dataset]:
    def open_it(settings: Mapping[str, Any], place: Callable[[str], Path]) -> Dataset:
        dataset = kind(place(folder), settings["split"])
        return with_mean(dataset, settings.get("mean", dataset.mean))

    return open_it


def with_mean(dataset: Dataset, mean: Any) -> Dataset:
    """The data set, which from now on takes this mean off its first input. InputError unless it is BGR."""
    numbers = isinstance(mean, list | tuple) and all(type(value) in (int, float) for value in mean)
    if not numbers or len(mean) != 3:
        raise InputError("param_str", f"mean {mean}", "three numbers: blue, green, red")
    dataset.means = {**dataset.means, dataset.inputs[0]: tuple(float(value) for value in mean)}
    return dataset


def _own(kind: str) -> PythonLayer:
    option = OPTIONS.get(kind, "")

    def open_it(settings: Mapping[str, Any], place: Callable[[str], Path]) -> Dataset:
        options = {option: settings[option]} if option in settings else {}
        dataset = DATASETS[kind](place("dir"), settings["split"], **options)
        return with_mean(dataset, settings["mean"]) if "mean" in settings else dataset

    return PythonLayer(open_it, frozenset({"dir", *CHANGES, *([option] if option else [])}))


PYTHON_LAYERS: dict[tuple[str, str], PythonLayer] = {
    ("voc_layers", "VOCSegDataLayer"): PythonLayer(
        _with_mean(VOC, "voc_dir"), frozenset({"voc_dir", "mean"})),
    ("voc_layers", "SBDDSegDataLayer"): PythonLayer(
        _with_mean(SBD, "sbdd_dir"), frozenset({"sbdd_dir", "mean"})),
    ("nyud_layers", "NYUDSegDataLayer"): PythonLayer(_nyud, frozenset({"nyud_dir", "tops"})),
    ("siftflow_layers", "SIFTFlowSegDataLayer"): PythonLayer(
        lambda settings, place: SIFTFlow(place("siftflow_dir"), settings["split"]),
        frozenset({"siftflow_dir"})),
    ("pascalcontext_layers", "PASCALContextSegDataLayer"): PythonLayer(
        lambda settings, place: PASCALContext(
            place("context_dir"), settings["split"], voc=place("voc_dir")),
        frozenset({"voc_dir", "context_dir"})),
    **{(OURS, kind): _own(kind) for kind in DATASETS},
}  # fmt: skip


@dataclass(frozen=True)
class LayerData:
    """What a data layer feeds: a data set, the order, the names of the blobs for its parts, and changes."""

    dataset: Dataset
    order: Order
    blobs: tuple[str, ...]
    batch: int = 1
    augment: Augment | None = None


def layer_data(layer: LayerParameter, folder: str | Path = "") -> LayerData:
    """The data of a Python layer; relative folders of its param_str are looked for in `folder` first.

    NetError for another module, layer, setting or number of tops; FileError and FormatError as when the data
    set is opened.
    """
    where, param = f"layer {layer.name}", layer.python_param
    found = PYTHON_LAYERS.get((param.module, param.layer))
    if found is None:
        known = ", ".join(".".join(key) for key in PYTHON_LAYERS)
        raise NetError(where, f"the Python layer {param.module}.{param.layer}", f"one of {known}",
                       "give its blobs from Python")  # fmt: skip
    try:
        settings = read_param_str(param.param_str)
        _check_settings(settings, found)
        dataset = found.open(settings, lambda name: _folder(settings[name], name, Path(folder)))
    except InputError as error:
        if error.where != "param_str":
            raise
        raise NetError(f"{where}: param_str", error.found, error.wanted, error.do) from None
    if len(layer.top) != len(dataset.parts):
        raise NetError(where, f"{len(layer.top)} tops", f"{len(dataset.parts)}: {', '.join(dataset.parts)}")
    changes = Augment(bool(settings.get("mirror")), settings.get("jitter", 0), settings.get("seed") or SEED,
                      settings.get("sample", 1.0), settings.get("cell", 1), settings.get("crop", 0),
                      settings.get("shrink", 1))  # fmt: skip
    random = changes if changes.does_something else None
    blobs = tuple(layer.top)
    return LayerData(dataset, make_order(dataset, settings), blobs, settings.get("batch", 1), random)


def own_layer(
    name: str, tops: Sequence[str], kind: str, folder: PathLike, split: str, **settings: Any
) -> LayerParameter:
    """A layer that feeds one of our data sets. `settings`: seed, randomize, batch, mirror, jitter, sample,
    cell, crop, shrink, mean, and those of the data set (modalities, targets, voc)."""
    values = {"dir": str(folder), "split": split, **settings}
    param = PythonParameter(module=OURS, layer=kind, param_str=str(values))
    return LayerParameter(name=name, type="Python", top=tops, python_param=param)


def make_order(dataset: Dataset, settings: Mapping[str, Any]) -> Order:
    """Random for splits with `train` in their name, unless `randomize` is false; else the list's."""
    count = len(dataset.ids)
    if "train" in dataset.split.name and settings.get("randomize", True):
        seed = settings.get("seed")
        return RandomOrder(count, SEED if seed is None else seed)
    return ListOrder(count)


def _check_settings(settings: Mapping[str, Any], layer: PythonLayer) -> None:
    needed = {"split"} | {name for name in layer.settings if name.endswith("dir")}
    known = COMMON | layer.settings
    missing, unknown = sorted(needed - settings.keys()), sorted(settings.keys() - known)
    if missing or unknown:
        found = f"no {missing[0]}" if missing else f"the setting {unknown[0]!r}"
        raise InputError("param_str", found, ", ".join(sorted(known)))
    seed = settings.get("seed")
    if not isinstance(settings["split"], str) or not (seed is None or type(seed) is int):
        name = "split" if not isinstance(settings["split"], str) else "seed"
        raise InputError("param_str", f"{name} {settings[name]!r}", "split a text, seed a whole number")
    for name in ("jitter", "batch", "cell", "crop", "shrink"):
        value = settings.get(name, 1)
        if type(value) is not int or value < (name not in ("jitter", "crop")):
            raise InputError("param_str", f"{name} {value!r}", "a whole number, not negative")
    sample = settings.get("sample", 1.0)
    if type(sample) not in (int, float) or not 0 < sample <= 1:
        raise InputError("param_str", f"sample {sample!r}", "a probability above 0")


def _folder(given: Any, name: str, folder: Path) -> Path:
    if not isinstance(given, str) or not given:
        raise InputError("param_str", f"{name} {given!r}", "the name of a folder")
    beside = folder / given
    return beside if beside.is_dir() else Path(given)
