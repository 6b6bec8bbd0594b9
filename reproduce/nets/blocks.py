"""What the published nets share: convolutions with their learning rates, pooling, data layers, crops, sizes.

Follows the `net.py` files of shelhamer/fcn.berkeleyvision.org at 1305c73 in which fields are spelled out:
the nets must be equal message for message. Crops are written without an offset and get it from the
coordinate map at the end (`finish`); no offset is typed anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import NetError
from reproduce.nets.architecture import Architecture
from surgery.coordinates import fill_crops
from surgery.netspec import L, NetSpec, P, Top

Params = Sequence[Mapping[str, int]] | None

LEARNED = ({"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0})
FIXED = ({"lr_mult": 0, "decay_mult": 0},) * 2
UNSAID = None  # no `param`: 1 for weights and biases


@dataclass(frozen=True)
class Form:
    """What may be asked of any net; its geometry stays.

    Hidden widths are divided by `narrow`, those of fc6 and fc7 are `fc` where it is given. `classes` takes
    the place of the published number (of the first head where there are two). `architecture` is that of an
    Auto-DeepLab, in the place of its own.
    """

    narrow: int = 1
    fc: int | None = None
    classes: int | None = None
    architecture: Architecture | None = None

    def __post_init__(self) -> None:
        for name, value in (("narrow", self.narrow), ("fc", self.fc), ("classes", self.classes)):
            if value is not None and value < 1:
                raise NetError(name, str(value), "at least 1")

    def width(self, published: int, group: int = 1) -> int:
        """A hidden width, at least 1 and a multiple of `group`."""
        return max(group, published // self.narrow // group * group)

    def fully(self, published: int) -> int:
        """The width of fc6 or fc7."""
        return self.fc if self.fc is not None else self.width(published)

    def head(self, published: int) -> int:
        """The number of classes."""
        return published if self.classes is None else self.classes


PUBLISHED = Form()


def conv(
    bottom: Top, kernel: int, out: int, stride: int = 1, pad: int = 0, param: Params = LEARNED, **extra: Any
) -> Top:
    """A Convolution that spells out kernel_size, stride and pad."""
    if param is not None:
        extra["param"] = list(param)
    top: Top = L.Convolution(bottom, kernel_size=kernel, stride=stride, num_output=out, pad=pad, **extra)
    return top


def max_pool(bottom: Top, kernel: int, stride: int, **extra: Any) -> Top:
    """Pooling MAX."""
    top: Top = L.Pooling(bottom, pool=P.Pooling.MAX, kernel_size=kernel, stride=stride, **extra)
    return top


def dropout(n: NetSpec, name: str, bottom: Top, ratio: float = 0.5) -> Top:
    """Dropout in place, entered as `name`."""
    n[name] = L.Dropout(bottom, dropout_ratio=ratio, in_place=True)
    top: Top = n[name]
    return top


def relu(n: NetSpec, name: str, bottom: Top) -> Top:
    """ReLU in place, entered as `name`."""
    n[name] = L.ReLU(bottom, in_place=True)
    top: Top = n[name]
    return top


def inputs(n: NetSpec, size: tuple[int, int], channels: int = 3) -> Top:
    """An Input layer `data` of one picture."""
    top: Top = L.Input(shape=[1, channels, *size])
    n.data = top
    return top


def finish(n: NetSpec) -> NetParameter:
    """The net, each Crop with the offset that aligns it. NetError, with the reason, where none does."""
    return fill_crops(n.to_proto())
