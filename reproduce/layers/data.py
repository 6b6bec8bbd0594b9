"""Layers without bottoms that the runtime computes itself: DummyData and Parameter.

Follows `dummy_data_layer.cpp` and `parameter_layer.cpp` of BVLC/caffe at 9b891540. The tops of Input and of
the layers that read data (Data, ImageData, HDF5Data, MemoryData, Python, ...) are inputs of the net: the
caller gives them by name. A layer without bottoms is handed one empty tensor, which says in what dtype and
on what device its tops are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from caffe_weights.errors import NetError
from reproduce.fillers import fill
from reproduce.layers.base import Definition, Filler, Layer, constant
from surgery.geometry import Shape


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
