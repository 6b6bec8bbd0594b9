"""`Weights`: layer name -> blobs in Caffe's order, the currency between all parts.

In files that hold a flat set of named tensors a blob's name is `<layer>.weight`, `<layer>.bias`, then
`<layer>.blob2`, ...: by index, whatever the layer's type (a BatchNorm's mean is its `weight`), with the
layer's name kept verbatim, dots and slashes included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence

import numpy as np

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.caffemodel import CaffeModel
from caffe_weights.errors import WeightsError

_SUFFIXES = ("weight", "bias")
_BLOB = re.compile(r"blob([2-9]|[1-9][0-9]{1,3})")


class Weights(MutableMapping[str, list[np.ndarray]]):
    """Blobs by layer name, in the order of the file they came from.

    Arrays read from a file are read-only views of it: replace them, do not write into them. An absent blob
    (`is_absent`) is one that another layer shares and keeps, as HDF5 models have them. `model` is the
    caffemodel the blobs came from, if any; `notes` holds what a reader wants to be told about them.
    """

    def __init__(
        self,
        blobs: Mapping[str, Sequence[np.ndarray]] | None = None,
        net: NetParameter | Callable[[], NetParameter] | None = None,
        source: str = "",
        model: CaffeModel | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self._blobs = {name: [np.asarray(a) for a in arrays] for name, arrays in (blobs or {}).items()}
        self._net = net
        self.source = source
        self.model = model
        self.notes = list(notes)

    @property
    def net(self) -> NetParameter | None:
        """The definition the file holds, in today's form and without values; None where it holds none.

        UpgradeError when it has no form of today.
        """
        if callable(self._net):
            self._net = self._net()
        return self._net

    def count(self) -> int:
        """How many values all blobs hold together."""
        return sum(array.size for arrays in self.values() for array in arrays)

    @property
    def nbytes(self) -> int:
        """The size of all values."""
        return sum(array.nbytes for arrays in self.values() for array in arrays)

    def copy(self) -> Weights:
        """The same arrays in new lists."""
        return Weights(self._blobs, self._net, self.source, self.model, self.notes)

    def __getitem__(self, layer: str) -> list[np.ndarray]:
        return self._blobs[layer]

    def __setitem__(self, layer: str, blobs: Sequence[np.ndarray]) -> None:
        self._blobs[layer] = [np.asarray(array) for array in blobs]

    def __delitem__(self, layer: str) -> None:
        del self._blobs[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._blobs)

    def __len__(self) -> int:
        return len(self._blobs)

    def __repr__(self) -> str:
        return (
            f"Weights({len(self)} layers, {self.count()} values, {self.nbytes} bytes, from {self.source!r})"
        )


ABSENT = np.empty(0, np.float32)


def is_absent(array: np.ndarray) -> bool:
    """Whether this stands for a shared blob that only its owner keeps."""
    return array.size == 0


def blob_key(layer: str, index: int) -> str:
    """The name of blob `index` of a layer in a flat set of tensors."""
    return f"{layer}.{_SUFFIXES[index] if index < len(_SUFFIXES) else f'blob{index}'}"


def split_key(key: str, source: str = "") -> tuple[str, int]:
    """The layer and the index of the blob that `key` names. WeightsError when it is no such name.

    `source` is the file it stands in, for the error.
    """
    layer, dot, suffix = key.rpartition(".")
    if dot and suffix in _SUFFIXES:
        return layer, _SUFFIXES.index(suffix)
    match = _BLOB.fullmatch(suffix)
    if not dot or not match:
        raise WeightsError(
            f"{source}: tensor {key!r}" if source else f"tensor {key!r}",
            "a name that says no blob",
            "<layer>.weight, <layer>.bias, <layer>.blob2, ...",
            "rename it",
        )
    return layer, int(match[1])


def to_tensors(weights: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """All blobs as one flat set of named tensors, in order."""
    return {blob_key(name, i): array for name, arrays in weights.items() for i, array in enumerate(arrays)}


def from_tensors(tensors: Mapping[str, np.ndarray], source: str) -> Weights:
    """Gather named tensors into layers, in order of first mention. WeightsError where an index is missing."""
    layers: dict[str, dict[int, np.ndarray]] = {}
    for key, array in tensors.items():
        layer, index = split_key(key, source)
        layers.setdefault(layer, {})[index] = array
    for layer, blobs in layers.items():
        missing = set(range(max(blobs) + 1)) - set(blobs)
        if missing:
            raise WeightsError(f"{source}: layer {layer!r}", f"no {blob_key(layer, min(missing))}",
                               f"every blob up to {blob_key(layer, max(blobs))}", "add it")  # fmt: skip
    return Weights({name: [blobs[i] for i in sorted(blobs)] for name, blobs in layers.items()}, source=source)
