"""Shapes made by layers that move, cut, join or reduce values.

Follows the `Reshape` and `LayerSetUp` functions under `src/caffe/layers` of BVLC/caffe at 9b891540. A
Filter's tops depend on data: their shape here is the one Caffe starts with, where every item passes.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

from surgery.geometry import Layer, Shape, dims, fail, find_axis
from surgery.layer_shapes import Shapes


def copies(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Split: every top is the bottom."""
    return bottoms[:1] * len(layer.top), ()


def nothing(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Silence: no tops."""
    return (), ()


def hdf5_output(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """HDF5Output: data and label of one length, no tops."""
    if not bottoms[0] or bottoms[0][:1] != bottoms[1][:1]:
        raise fail(layer, f"bottoms {dims(bottoms[0])} and {dims(bottoms[1])}", "the same first size")
    return (), ()


def concat(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Concat: bottoms equal in all axes but one."""
    axis = joined_axis(layer, "concat_dim", len(bottoms[0]))
    rest = _without(bottoms[0], axis)
    for i, shape in enumerate(bottoms):
        if len(shape) != len(bottoms[0]) or _without(shape, axis) != rest:
            raise fail(
                layer,
                f"bottom {i} ({layer.bottom[i]}) is {dims(shape)}",
                f"the sizes of bottom 0 ({dims(bottoms[0])}) in all axes but {axis}",
            )
    return (_with(bottoms[0], axis, sum(shape[axis] for shape in bottoms)),), ()


def slices(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Slice: one axis cut at `slice_point`, or into equal parts."""
    shape, tops = bottoms[0], len(layer.top)
    axis = joined_axis(layer, "slice_dim", len(shape))
    size, points = shape[axis], list(layer.slice_param.slice_point)
    if not points:
        if size % tops:
            raise fail(
                layer,
                f"axis {axis} of {dims(shape)} does not divide into {tops} tops",
                f"a size that {tops} divides",
                "set slice_point",
            )
        return (_with(shape, axis, size // tops),) * tops, ()
    if len(points) != tops - 1:
        raise fail(layer, f"{len(points)} values of slice_point for {tops} tops", f"{tops - 1}")
    edges = [0, *points, size]
    if any(b <= a for a, b in pairwise(edges)):
        raise fail(layer, f"slice_point {points} on {size} values", f"rising values between 1 and {size - 1}")
    return tuple(_with(shape, axis, b - a) for a, b in pairwise(edges)), ()


def crop(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Crop: the axes from `axis` on are cut to the sizes of bottom 1, from `offset` on."""
    shape, like = bottoms
    axis = find_axis(layer, "axis", layer.crop_param.axis, len(shape))
    if len(like) < len(shape):
        raise fail(layer, f"bottom 1 ({layer.bottom[1]}) is {dims(like)}", f"{len(shape)} axes as bottom 0")
    offsets = file_offsets(layer, len(shape) - axis)
    for i, offset in enumerate(offsets, start=axis):
        if offset + like[i] > shape[i]:
            room = shape[i] - like[i]
            raise fail(
                layer,
                f"offset {offset} in axis {i}: bottom 0 ({layer.bottom[0]}) has {shape[i]}, "
                f"bottom 1 ({layer.bottom[1]}) has {like[i]}",
                f"an offset of at most {room}" if room >= 0 else f"at least {like[i] + offset} in bottom 0",
                "change offset or the padding before",
            )
    return ((*shape[:axis], *like[axis : len(shape)]),), ()


def file_offsets(layer: Layer, axes: int) -> Shape:
    """Offsets of a Crop layer along its `axes` cropped axes; none in the file is 0, one holds for all."""
    values = tuple(layer.crop_param.offset)
    if len(values) > 1 and len(values) != axes:
        raise fail(layer, f"{len(values)} values of offset", f"one, or {axes}, one for each cropped axis")
    return values if len(values) == axes else (values or (0,)) * axes


def reshape(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Reshape: 0 copies a size, one -1 takes what is left; `axis` and `num_axes` choose what is replaced."""
    p, shape = layer.reshape_param, bottoms[0]
    _not_in_place(layer)
    start = p.axis if p.axis >= 0 else len(shape) + p.axis + 1
    if not 0 <= start <= len(shape):
        raise fail(layer, f"axis {p.axis} on {dims(shape)}", f"{-len(shape) - 1} to {len(shape)}", "set axis")
    stop = len(shape) if p.num_axes == -1 else start + p.num_axes
    if p.num_axes < -1 or stop > len(shape):
        raise fail(
            layer,
            f"num_axes {p.num_axes} from axis {start} of {dims(shape)}",
            f"0 to {len(shape) - start}, or -1 for all",
            "set num_axes",
        )
    top = [*shape[:start], *_new_sizes(layer, shape, start), *shape[stop:]]
    if -1 in top:
        others = -prod(top)
        if others < 1 or prod(shape) % others:
            raise fail(
                layer,
                f"shape {_list(p.shape.dim)} leaves no whole size for -1 in {dims(shape)}",
                f"sizes whose product ({others}) divides {prod(shape)}",
                "change shape",
            )
        top[top.index(-1)] = prod(shape) // others
    if prod(top) != prod(shape):
        raise fail(
            layer,
            f"shape {_list(p.shape.dim)} makes {dims(tuple(top))} of {dims(shape)}",
            f"{prod(shape)} values, not {prod(top)}",
            "change shape",
        )
    return (tuple(top),), ()


def flatten(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Flatten: the axes from `axis` to `end_axis`, both included, become one; none become a new axis of 1."""
    p, shape = layer.flatten_param, bottoms[0]
    _not_in_place(layer)
    start = find_axis(layer, "axis", p.axis, len(shape))
    stop = find_axis(layer, "end_axis", p.end_axis, len(shape)) + 1
    if start > stop:
        raise fail(
            layer,
            f"end_axis {p.end_axis} lies before axis {p.axis} of {dims(shape)}",
            f"{start} or more",
            "set end_axis",
        )
    return ((*shape[:start], prod(shape[start:stop]), *shape[stop:]),), ()


def tile(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Tile: one axis repeated."""
    p, shape = layer.tile_param, bottoms[0]
    axis = find_axis(layer, "axis", p.axis, len(shape))
    if p.tiles < 1:
        raise fail(layer, f"tiles {p.tiles}", "at least 1", "set tiles")
    return (_with(shape, axis, shape[axis] * p.tiles),), ()


def reduction(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Reduction: all axes from `axis` on become one value."""
    axis = find_axis(layer, "axis", layer.reduction_param.axis, len(bottoms[0]))
    return (bottoms[0][:axis],), ()


def arg_max(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """ArgMax: along an axis, or over each item as N x 1 x top_k (N x 2 x top_k with the values)."""
    p, shape = layer.argmax_param, bottoms[0]
    if not shape:
        raise fail(layer, f"bottom 0 ({layer.bottom[0]}) is one value", "at least one axis")
    axis = find_axis(layer, "axis", p.axis, len(shape)) if p.HasField("axis") else None
    limit = prod(shape[1:]) if axis is None else shape[axis]
    if not 1 <= p.top_k <= limit:
        raise fail(layer, f"top_k {p.top_k} of {limit} values", f"1 to {limit}", "set top_k")
    if axis is not None:
        return (_with(shape, axis, p.top_k),), ()
    return ((shape[0], 2 if p.out_max_val else 1, p.top_k) + (1,) * (len(shape) - 3),), ()


def batch_reindex(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """BatchReindex: items chosen by a list of indices."""
    shape, index = bottoms
    if len(index) != 1 or not shape:
        raise fail(layer, f"bottoms {dims(shape)} and {dims(index)}", "items, and a list with one axis")
    return ((index[0], *shape[1:]),), ()


def filter_items(layer: Layer, bottoms: Shapes) -> tuple[Shapes, Shapes]:
    """Filter: items where the last bottom is not zero; the shape is the largest possible one."""
    *items, selector = bottoms
    if len(layer.top) != len(items):
        raise fail(layer, f"{len(layer.top)} tops for {len(bottoms)} bottoms", f"{len(items)} tops")
    if not selector or prod(selector[1:]) != 1:
        raise fail(layer, f"the selector ({layer.bottom[-1]}) is {dims(selector)}", "one value an item")
    for i, shape in enumerate(items):
        if shape[:1] != selector[:1]:
            raise fail(
                layer,
                f"bottom {i} ({layer.bottom[i]}) is {dims(shape)}",
                f"{selector[0]} items as the selector ({layer.bottom[-1]})",
            )
    return tuple(items), ()


def joined_axis(layer: Layer, old_field: str, rank: int) -> int:
    """The axis of a Concat or Slice with `rank` axes, from `axis` or the older field."""
    p = layer.concat_param if old_field == "concat_dim" else layer.slice_param
    if not p.HasField(old_field):
        return find_axis(layer, "axis", p.axis, rank)
    if p.HasField("axis"):
        raise fail(layer, f"both axis and {old_field} are set", "one of them", f"remove {old_field}")
    return find_axis(layer, old_field, getattr(p, old_field), rank)


def _new_sizes(layer: Layer, shape: Shape, start: int) -> list[int]:
    sizes = list(layer.reshape_param.shape.dim)
    if sizes.count(-1) > 1 or min(sizes, default=0) < -1:
        raise fail(layer, f"shape {_list(sizes)}", "sizes, 0, and at most one -1", "change shape")
    for i, size in enumerate(sizes):
        if size == 0:
            if start + i >= len(shape):
                raise fail(
                    layer,
                    f"shape {_list(sizes)} copies axis {start + i} of {dims(shape)}",
                    f"axes 0 to {len(shape) - 1}",
                    "give the size instead of 0",
                )
            sizes[i] = shape[start + i]
    return sizes


def _not_in_place(layer: Layer) -> None:
    if list(layer.top) == list(layer.bottom):
        raise fail(layer, f"top {layer.top[0]} is also its bottom", "another name", "rename the top")


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _without(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], *shape[axis + 1 :])


def _list(values: object) -> str:
    return "[" + ", ".join(map(str, values)) + "]"  # type: ignore[call-overload]
