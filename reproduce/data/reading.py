"""Caffe's own data layers as sources of batches by number: HDF5Data, ImageData and Data of a solver's net.

The layers read in order (`reproduce.layers.sources`); here each has a random generator of its own and a
position, so that a batch is a function of its number and the seed, whatever the net draws: a run goes on
where it stopped, and of several processes each takes its part. Departures from BVLC/caffe at 9b891540: a
source is looked for beside the net first, then in the working directory; shuffling and cropping follow
`random_seed`, and 1337 where the solver has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caffe_weights.caffe_pb2 import LayerParameter
from caffe_weights.errors import NetError
from reproduce.layers import READERS
from reproduce.layers.sources import Source

# layer type -> its settings, whose `source` is a file
FILES = {"Data": "data_param", "HDF5Data": "hdf5_data_param", "ImageData": "image_data_param"}


class ReaderFeed:
    """Batches of one data layer: `feed(number)` is a dict of float32 tensors by top."""

    def __init__(self, layer: LayerParameter, folder: str | Path, phase: str, seed: int) -> None:
        """NetError for a layer that has nothing to read, with the reason."""
        self.layer, self.phase, self.seed = _beside(layer, Path(folder)), phase, seed
        self._last: dict[str, Tensor] = {}
        self._begin()
        reason = self._reader.missing()
        if reason:
            raise NetError(self._reader.where, f"nothing to read: {reason}", "what it names",
                           "correct its source, or train from Python with Solver.solve")  # fmt: skip

    def __call__(self, number: int) -> dict[str, Tensor]:
        """The batch of this number. Going back reads from the beginning, but for the last one."""
        if number == self._next - 1 and self._last:
            return self._last
        if number < self._next:
            self._begin()
        while self._next <= number:
            with self._own_chance():
                arrays = self._reader.read()
            self._next += 1
        self._last = {top: torch.from_numpy(a) for top, a in zip(self.layer.top, arrays, strict=True)}
        return self._last

    def close(self) -> None:
        """Nothing is read ahead."""

    def state_dict(self) -> dict[str, Any]:
        """Position, order and random state."""
        return {"next": self._next, "random": self._random, "reader": self._reader.position()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`. FileError or FormatError where the files are not as they were."""
        self._begin()
        self._next, self._random = state["next"], state["random"]
        self._reader.go_to(state["reader"])

    def _begin(self) -> None:
        self._reader: Source = READERS[self.layer.type](self.layer, self.phase)
        self._random = torch.Generator().manual_seed(self.seed).get_state()
        self._next, self._last = 0, {}

    @contextmanager
    def _own_chance(self) -> Iterator[None]:
        before = torch.get_rng_state()
        torch.set_rng_state(self._random)
        try:
            yield
            self._random = torch.get_rng_state()
        finally:
            torch.set_rng_state(before)


def _beside(layer: LayerParameter, folder: Path) -> LayerParameter:
    """The layer with the files that lie in `folder` named from there."""
    result = LayerParameter()
    result.CopyFrom(layer)
    settings = [(result.transform_param, "mean_file")]
    settings += [(getattr(result, FILES[layer.type]), "source")] if layer.type in FILES else []
    for param, name in settings:
        given = getattr(param, name)
        if given and (folder / given).exists():
            setattr(param, name, str(folder / given))
    return result
