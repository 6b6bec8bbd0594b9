"""What a layer of the runtime is.

A layer is a plain object made once from its definition: it reads the fields it needs, holds no
parameters and knows no blob names. `reproduce.net.Net` owns the parameters, hands a layer its bottoms and
its parameter blobs, and gets its tops. Shapes have been checked by `surgery.shapes` before a layer runs, so
a layer trusts them and takes sizes from its bottoms: the same object serves every input size.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from reproduce.nets.data import read_param_str
from surgery.geometry import Shape

FLT_MAX = torch.finfo(torch.float32).max
FLT_MIN = torch.finfo(torch.float32).tiny

Definition = caffe_pb2.LayerParameter
Filler = caffe_pb2.FillerParameter


class Layer:
    """One layer: `forward` computes its tops from its bottoms and parameter blobs.

    To add a type, subclass this and call `reproduce.layers.register`: docs/own-layers.md shows how.
    """

    fresh: ClassVar[bool] = True  # tops never share memory with bottoms or parameters
    label_bottoms: ClassVar[tuple[int, ...]] = ()  # bottoms without which the layer may be left out
    in_place: ClassVar[bool] = False  # `overwrite` exists
    statistics: ClassVar[bool] = False  # its parameters are statistics, which no solver moves

    def __init__(self, definition: Definition, phase: str) -> None:
        self.definition = definition
        self.name: str = definition.name
        self.phase = phase

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        """The tops. Differentiable where Caffe's layer is; must not change a bottom.

        A layer without bottoms gets one empty tensor, of the dtype and on the device that are wanted.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def overwrite(self, bottom: Tensor, blobs: list[Tensor]) -> Tensor:
        """The top, computed into the memory of the only bottom; called without gradients only."""
        raise NotImplementedError(f"{type(self).__name__} cannot work in place")

    def check(self, bottoms: Sequence[Shape]) -> None:
        """Called before a net runs with bottoms of these shapes, which the shape rule has accepted.

        NetError for what the rule cannot know.
        """

    def fillers(self) -> list[Filler]:
        """One filler a parameter blob, in Caffe's order; its length is the count of parameters."""
        return []

    @property
    def settings(self) -> dict[str, Any]:
        """The dict in `python_param { param_str }`, {} if there is none. It is a literal, never evaluated."""
        return settings(self.definition)

    def where(self) -> str:
        """The layer, for an error message."""
        return f"layer {self.name} ({self.definition.type})"


def settings(definition: Definition) -> dict[str, Any]:
    """The literal of a dict in a layer's `python_param { param_str }`, {} if there is none. NetError."""
    text = definition.python_param.param_str
    try:
        return read_param_str(text) if text.strip() else {}
    except NetError as error:
        where = f"layer {definition.name}: {error.where}"
        raise NetError(where, error.found, error.wanted, error.do) from None


def positive_axis(axis: int, rank: int) -> int:
    """`axis` counted from the front."""
    return axis + rank if axis < 0 else axis


def per_axis(values: Tensor, rank: int, axis: int) -> Tensor:
    """A parameter viewed so that its axes meet those of a `rank`-d blob from `axis` on."""
    after = rank - axis - values.dim()
    return values.reshape((1,) * axis + tuple(values.shape) + (1,) * after)


def split_shape(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Caffe's outer count, size of `axis`, inner count."""
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def constant(value: float) -> Filler:
    """A constant filler."""
    return Filler(type="constant", value=value)


def checked_indices(where: str, blob: Tensor, limit: int, ignore: int | None = None) -> Tensor:
    """Class indices or the like as int64, cut towards zero as Caffe casts them.

    NetError for one outside [0, limit) that is not `ignore`; Caffe reads beyond its memory there. While a
    graph is being exported nothing is checked.
    """
    indices = blob.detach().long()
    if torch.compiler.is_compiling():
        return indices
    wrong = (indices < 0) | (indices >= limit) | ~torch.isfinite(blob.detach())
    if ignore is not None:
        wrong &= indices != ignore
    if bool(wrong.any()):
        at = int(wrong.reshape(-1).nonzero()[0, 0])
        value = blob.detach().reshape(-1)[at].item()
        also = "" if ignore is None else f" or ignore_label {ignore}"
        raise NetError(
            where,
            f"value {value:g} at index {at} of a bottom of indices",
            f"0 to {limit - 1}{also}",
            "correct the labels, or set ignore_label",
        )
    return indices
