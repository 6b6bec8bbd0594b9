"""What `convolutionize` did, and what inputs the resulting net takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

from caffe_weights.errors import NetError
from surgery.coordinates import receptive_field
from surgery.geometry import Shape, dims
from surgery.shapes import Net, NetShapes, infer_shapes


@dataclass(frozen=True)
class ConvertedLayer:
    """An InnerProduct that became a Convolution: shapes of its weights before and after, (height, width) of
    the kernel, and the Flatten and Reshape layers in front that it absorbed."""

    name: str
    new_name: str
    bottom: Shape
    old_shape: Shape
    new_shape: Shape
    kernel: Shape
    transposed: bool = False
    absorbed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = self.name if self.name == self.new_name else f"{self.name} -> {self.new_name}"
        extras = [f"absorbed {', '.join(self.absorbed)}"] if self.absorbed else []
        tail = "".join(f"; {text}" for text in (*extras, *self.notes))
        return f"{name}: {dims(self.old_shape)} -> {dims(self.new_shape)}, kernel {dims(self.kernel)}{tail}"


@dataclass
class ConvolutionReport:
    """The converted layers, all absorbed layers, notes, and the blobs dropped from the weights.

    `smallest_input` is the least (height, width) the net takes, `stride` the step on the input, in pixels,
    from one position of the last converted layer to the next, (height, width); either is None where the
    net has no one image input or no one grid.
    """

    layers: list[ConvertedLayer] = field(default_factory=list)
    absorbed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    smallest_input: tuple[int, int] | None = None
    stride: tuple[Fraction, Fraction] | None = None
    dropped: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain lists and dicts, for JSON."""
        whole = asdict(self)
        whole["stride"] = None if self.stride is None else [float(step) for step in self.stride]
        return whole

    def __str__(self) -> str:
        lines = [str(layer) for layer in self.layers]
        lines += [f"absorbed {name}" for name in self.absorbed]
        lines += self.notes
        lines += [f"dropped {blob}" for blob in self.dropped]
        if self.smallest_input:
            lines.append(f"smallest input {dims(self.smallest_input)}")
        if self.stride:
            lines.append(f"one output every {' x '.join(dict.fromkeys(map(str, self.stride)))} pixels")
        return "\n".join(lines)


def describe_input(
    net: Net, shapes: NetShapes, input_shapes: Mapping[str, Shape], outputs: Sequence[str]
) -> tuple[tuple[int, int] | None, tuple[Fraction, Fraction] | None]:
    """Smallest input and stride of a fully convolutional `net` for `ConvolutionReport`.

    `shapes` are its shapes for `input_shapes`, `outputs` the tops of its converted layers.
    """
    stride, image = None, None
    if outputs:
        try:
            seen = receptive_field(net, outputs[-1])
            stride, image = seen.stride, seen.input
        except NetError:  # no one grid, as behind a global pooling that stays
            pass
    sources = {top: shapes.blobs[top] for layer in net.layer if not layer.bottom for top in layer.top}
    images = [name for name, shape in sources.items() if len(shape) == 4]
    image = image or (images[0] if images else None)
    if image not in images or image is None:
        return None, stride
    height, width = sources[image][2:]
    alike = [name for name in images if sources[name][2:] == (height, width)]

    def takes(h: int, w: int) -> bool:
        sizes = {name: (*sources[name][:2], h, w) for name in alike}
        try:
            infer_shapes(net, {**input_shapes, **sizes})
        except NetError:
            return False
        return True

    return (_least(height, lambda h: takes(h, width)), _least(width, lambda w: takes(height, w))), stride


def _least(most: int, works: Callable[[int], bool]) -> int:
    """The least size in 1..most that works, where `most` does and larger sizes than a working one do too."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle + 1, high)
    return high
