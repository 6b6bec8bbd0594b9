"""Layers at the ends of a net: DummyData and Parameter, which have no bottoms, and HDF5Output, without tops.

Follows `dummy_data_layer.cpp`, `parameter_layer.cpp` and `hdf5_output_layer.cpp` of BVLC/caffe at 9b891540.
The tops of Input and of the layers that bring data in are inputs of the net: `sources` reads some of them.
Departure: HDF5Output adds the rows of each further pass; Caffe fails on the second.

A layer without bottoms is handed one empty tensor, which says in what dtype and on what device its tops are
wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_weights.errors import FileError, NetError
from caffe_weights.files import as_file_error
from reproduce.fillers import fill
from reproduce.layers.base import Definition, Filler, Layer, constant
from surgery.geometry import Shape, dims


class DummyData(Layer):
    """Tops filled as told: constants, or values drawn anew in each forward pass."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.param = definition.dummy_data_param

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        seed = int(torch.randint(2**31, ()).item()) if self.random() else 0
        return [
            torch.from_numpy(fill(self.shape(i), self.filler(i), seed + i)).to(bottoms[0])
            for i in range(len(self.definition.top))
        ]

    def check(self, bottoms: Sequence[Shape]) -> None:
        """NetError for a filler that cannot fill its top, tried on one slice of it."""
        for i in range(len(self.definition.top)):
            shape, filler = self.shape(i), self.filler(i)
            thin = shape if filler.type == "bilinear" else shape[:1] + (1,) * (len(shape) - 1)
            try:
                fill(thin, filler, 0)
            except NetError as error:
                where = f"{self.where()}: {error.where}"
                raise NetError(where, error.found, error.wanted, error.do) from None

    def random(self) -> bool:
        """Whether any top needs the generator, PyTorch's, so that `torch.manual_seed` fixes it."""
        return any(filler.type != "constant" for filler in self.param.data_filler)

    def shape(self, top: int) -> tuple[int, ...]:
        """The shape of a top, from `shape` or the older four fields; one entry serves every top."""
        p = self.param
        if p.shape:
            return tuple(p.shape[top if len(p.shape) > 1 else 0].dim)
        return tuple(
            values[top if len(values) > 1 else 0] for values in (p.num, p.channels, p.height, p.width)
        )

    def filler(self, top: int) -> Filler:
        """The filler of a top, constant 0 if none is given."""
        given = self.param.data_filler
        return given[top if len(given) > 1 else 0] if given else constant(0)


class Parameter(Layer):
    """The top is the layer's only parameter."""

    fresh = False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [blobs[0]]

    def fillers(self) -> list[Filler]:
        return [constant(0)]


class HDF5Output(Layer):
    """Writes its bottoms to the datasets `data` and `label` of a file, which the first pass makes anew."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.file = definition.hdf5_output_param.file_name
        self.begun = False

    def check(self, bottoms: Sequence[Shape]) -> None:
        """NetError if no file is named, FileError if its folder is missing."""
        if not self.file:
            raise NetError(self.where(), "no file_name", "the file to write", "set file_name")
        if not Path(self.file).parent.is_dir():
            raise FileError(f"{self.where()}: {self.file}", "no such folder", "one that exists", "make it")

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import h5py

        arrays = [b.detach().cpu().numpy().astype(np.float32) for b in bottoms]
        try:
            with h5py.File(self.file, "a" if self.begun else "w") as file:
                for name, array in zip(("data", "label"), arrays, strict=True):
                    self.add(file, name, array)
        except OSError as error:
            raise as_file_error(self.file, error) from None
        self.begun = True
        return []

    def add(self, file: Any, name: str, array: np.ndarray) -> None:
        """Rows at the end of a dataset. NetError for rows of another shape than those before."""
        if name not in file:
            file.create_dataset(name, data=array, maxshape=(None, *array.shape[1:]), chunks=array.shape)
            return
        dataset = file[name]
        if dataset.shape[1:] != array.shape[1:]:
            raise NetError(f"{self.where()}: {self.file}", f"{name} of {dims(array.shape)}",
                           f"rows of {dims(dataset.shape[1:])}, as before")  # fmt: skip
        dataset.resize(len(dataset) + len(array), 0)
        dataset[-len(array) :] = array
