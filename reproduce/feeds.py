"""What a net reads by itself: layers that name a source are asked when a call gives none of their tops."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from caffe_weights.caffe_pb2 import LayerParameter, NetParameter
from caffe_weights.errors import NetError
from reproduce.layers import READERS
from reproduce.layers.sources import Source

Shape = tuple[int, ...]


class Feeds:
    """The readers of a filtered net, by layer. One that names no source is none: its tops are just inputs."""

    def __init__(self, net: NetParameter, phase: str) -> None:
        self.readers: dict[str, Source] = {
            layer.name: READERS[layer.type](layer, phase) for layer in net.layer if _names_a_source(layer)
        }

    def shapes(self, declared: Collection[str]) -> dict[str, Shape]:
        """Shapes of the tops that can be read and are not declared."""
        return {
            top: shape
            for reader in self.readers.values()
            if not set(declared) & set(reader.definition.top) and not reader.missing()
            for top, shape in zip(reader.definition.top, reader.shapes(), strict=True)
        }

    def tops(self) -> set[str]:
        """The tops that can be read."""
        return {top for r in self.readers.values() if not r.missing() for top in r.definition.top}

    def read(self, given: Mapping[str, object], required: Iterable[str]) -> dict[str, np.ndarray]:
        """The next batch of every reader none of whose tops is given. NetError for what cannot be read."""
        wanted, batch = set(required), {}  # type: set[str], dict[str, np.ndarray]
        for reader in self.readers.values():
            tops = list(reader.definition.top)
            if given.keys() & set(tops):
                continue
            reason = reader.missing()
            if not reason:
                batch.update(zip(tops, reader.read(), strict=True))
            elif wanted & set(tops):
                found = f"not given, and {reader.where} has nothing to read: {reason}"
                raise NetError(f"input {tops[0]}", found, "one of them", f"pass {tops[0]}=")
        return batch


def _names_a_source(layer: LayerParameter) -> bool:
    named = {
        "Data": layer.data_param.source,
        "HDF5Data": layer.hdf5_data_param.source,
        "ImageData": layer.image_data_param.source,
        "MemoryData": layer.memory_data_param.batch_size,
    }
    return layer.type in READERS and bool(named.get(layer.type, True))
