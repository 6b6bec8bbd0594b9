"""What a published number says of a net, computed from the net: layers, parameters, geometry, settings.

Each function takes `Nets` first and the name of a net, and returns a number, a text or a tuple of them. The
nets come from `reproduce.nets`, so a test can hand in changed ones and see the verdicts turn. Counting and
geometry are those of `surgery`: sizes by Caffe's rules, receptive fields and strides in exact fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import reduce
from itertools import pairwise
from typing import Any, TypeVar

from caffe_weights.caffe_pb2 import LayerParameter, NetParameter, SolverParameter
from caffe_weights.errors import NetError
from reproduce.nets import make_net, named_solver
from reproduce.nets.data import read_param_str
from reproduce.paper_options import equivalent_momentum
from surgery.convolutionize import convolutionize
from surgery.coordinates import crop_offset, map_to_input
from surgery.coordinates import receptive_field as field_of
from surgery.grid import Graph
from surgery.shapes import NetShapes, infer_shapes

LEARNED = ("Convolution", "InnerProduct")
T = TypeVar("T")


@dataclass
class Nets:
    """The nets and solvers by name, each made once. `make` and `solver` may be others' than the package's."""

    make: Callable[[str, str], NetParameter] = make_net
    solver: Callable[..., SolverParameter] = named_solver
    _nets: dict[tuple[str, str], NetParameter] = field(default_factory=dict)
    _solvers: dict[str, SolverParameter] = field(default_factory=dict)
    _found: dict[tuple[Callable[..., Any], str], Any] = field(default_factory=dict)

    def net(self, name: str, split: str = "deploy") -> NetParameter:
        """The net of a split; not to be changed."""
        key = name, split
        if key not in self._nets:
            self._nets[key] = self.make(name, split)
        return self._nets[key]

    def shapes(self, name: str) -> NetShapes:
        """All shapes of the deploy form."""
        return self.once(infer_shapes, name)

    def once(self, function: Callable[[NetParameter], T], name: str) -> T:
        """`function` of the deploy form, called once."""
        key = function, name
        if key not in self._found:
            self._found[key] = function(self.net(name))
        found: T = self._found[key]
        return found

    def settings(self, name: str) -> SolverParameter:
        """The solver of a net, or of one of its splits as `deconvnet/stage1`."""
        if name not in self._solvers:
            self._solvers[name] = self.solver(*name.split("/"))
        return self._solvers[name]

    def layer(self, name: str, layer: str, split: str = "deploy") -> LayerParameter:
        """A layer of a net by its name. NetError."""
        found = next((one for one in self.net(name, split).layer if one.name == layer), None)
        if found is None:
            raise NetError(f"net {name}", f"no layer {layer}", "one of this name")
        return found


def parameters(nets: Nets, name: str, *kinds: str) -> int:
    """Values in all parameters, or in those of layers of some types."""
    layers = nets.shapes(name).layers.values()
    return sum(layer.param_count for layer in layers if not kinds or layer.type in kinds)


def layer_parameters(nets: Nets, name: str, layer: str) -> int:
    """Values in the parameters of one layer."""
    return nets.shapes(name).layers[layer].param_count


def layer_count(nets: Nets, name: str, kind: str, prefix: str = "") -> int:
    """How many layers are of one type, or those of them whose name begins so."""
    return sum(layer.type == kind and layer.name.startswith(prefix) for layer in nets.net(name).layer)


def depth(nets: Nets, name: str) -> int:
    """The most learned layers on one path through the net; up-sampling is not learned."""
    graph, deep = Graph(nets.net(name)), {}  # type: tuple[Graph, dict[int, int]]
    for index, layer in enumerate(graph.layers):
        below = (deep[bottom] for bottom, _ in graph.bottoms[index])
        deep[index] = max(below, default=0) + (layer.type in LEARNED)
    return max(deep.values())


def receptive_fields(nets: Nets, name: str, *blobs: str) -> tuple[int, ...]:
    """The pixels that a unit of each blob sees along a side."""
    return tuple(_same(field_of(nets.net(name), blob).size) for blob in blobs)


def largest_stride(nets: Nets, name: str) -> int:
    """The coarsest step of any blob, in input pixels."""
    steps = (max(found.scale) for found in map_to_input(nets.net(name)).values())
    return _whole(max(steps))


def sizes(nets: Nets, name: str, *blobs: str) -> tuple[int, ...]:
    """The side of each blob in the deploy form, which takes 500 x 500."""
    found = nets.shapes(name).blobs
    return tuple(_same(found[blob][2:]) for blob in blobs)


def grids(nets: Nets, name: str, *inputs: tuple[int, int | None]) -> tuple[int, ...]:
    """The side of the map that a classifier gives, cut fully convolutional, for (size, pad) of its input.

    The pad is that of the first convolution, None for its own.
    """
    cut, _, _ = convolutionize(nets.net(name))
    first = next(layer for layer in cut.layer if layer.type == "Convolution")
    last = [layer for layer in cut.layer if layer.type == "Convolution"][-1]
    sides, own = [], list(first.convolution_param.pad)
    for size, pad in inputs:
        first.convolution_param.pad[:] = own if pad is None else [pad]
        shapes = infer_shapes(cut, {cut.layer[0].top[0]: (1, 3, size, size)})
        sides.append(_same(shapes.blobs[last.top[0]][2:]))
    return tuple(sides)


def crop(nets: Nets, layer: str, *names: str) -> int | str:
    """The offset that aligns a Crop in each net, one number where all agree; either head of two counts.

    Computed anew from the coordinate maps, whatever offset the net spells out.
    """
    found = [
        crop_offset(nets.net(name), *crop.bottom)
        for name in names
        for crop in nets.net(name).layer
        if crop.type == "Crop" and layer == crop.name.replace("_sem", "").replace("_geo", "")
    ]
    return _one(found)


def outputs(nets: Nets, name: str, layer: str, without: int = 0) -> int:
    """The channels of a score layer, less those of the background where it is not counted."""
    return int(nets.layer(name, layer).convolution_param.num_output) - without


def layer_setting(nets: Nets, name: str, layer: str, path: str, split: str = "deploy") -> Any:
    """A setting of a layer by its path, as `convolution_param.pad.0`; defaults count as in Caffe."""
    return _follow(nets.layer(name, layer, split), path)


def solver_setting(nets: Nets, path: str, *names: str) -> Any:
    """A setting of the solver of a net, or of several whose solvers agree."""
    return _one([_follow(nets.settings(name), path) for name in names])


def rate_drop(nets: Nets, *names: str) -> float | str:
    """By what the rate of one net is divided for the next, where each step is the same."""
    rates = [solver_setting(nets, "base_lr", name) for name in names]
    return _one([float(f"{a / b:.6g}") for a, b in pairwise(rates)])


def momentum_of_one(nets: Nets, name: str) -> float:
    """The momentum that with batches of one keeps as much of an image as the net's does with its batches."""
    return equivalent_momentum(
        solver_setting(nets, "momentum", name), solver_setting(nets, "iter_size", name), 1
    )


def filler(nets: Nets, name: str, layer: str, field: str = "weight_filler") -> str:
    """What fills a layer's weights: `zero`, or the filler's type with its value."""
    found = getattr(nets.layer(name, layer, "train").convolution_param, field)
    return "zero" if (found.type, found.value) == ("constant", 0) else f"{found.type} {found.value:g}"


def image_mean(nets: Nets, name: str, split: str) -> tuple[float, ...]:
    """The mean that the data layer of a split takes off, BGR."""
    settings = read_param_str(nets.net(name, split).layer[0].python_param.param_str)
    return tuple(settings["mean"])


def wider_kernel(nets: Nets, name: str, pool: str, layer: str) -> tuple[int, int]:
    """The kernel with which `layer` sees as much as before once `pool` has stride 1."""
    net = nets.net(name)
    wanted = field_of(net, layer).size
    changed = NetParameter()
    changed.CopyFrom(net)
    by_name = {found.name: found for found in changed.layer}
    by_name[pool].pooling_param.stride = 1
    kernel = by_name[layer].convolution_param.kernel_size
    while field_of(changed, layer).size < wanted:
        kernel[0] += 1
    return kernel[0], kernel[0]


def _follow(message: Any, path: str) -> Any:
    """The value at the end of a path of fields and indices; of a float32 field the number as written."""
    value = reduce(lambda found, part: found[int(part)] if part.isdigit() else getattr(found, part),
                   path.split("."), message)  # fmt: skip
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _one(found: Sequence[Any]) -> Any:
    """What all agree on, or all of it as a text."""
    return found[0] if len(set(found)) == 1 else " / ".join(map(str, found))


def _same(sides: Sequence[int]) -> int:
    height, width = sides
    if height != width:
        raise NetError("side", f"{height} x {width}", "a square")
    return height


def _whole(value: Fraction) -> int:
    if value.denominator != 1:
        raise NetError("stride", str(value), "a whole number")
    return int(value)
