"""Why a Crop has the offset it has, in words: 'why 19?'.

For each Crop layer the layers between its two bottoms and their common ancestor, where each puts its pixel 0,
the offset that follows, the one in the file, and what is left over on each side. The rule is that of
`surgery/coordinates.py`; every crop is judged as if the crops before it were right. Nothing is printed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from surgery.coordinates import crop_alignment, offsets_of
from surgery.deploy import subnet
from surgery.geometry import Layer, Shape, conv_window, dims, fail, pool_window
from surgery.grid import CoordMap, Graph, Node, compose, inverse, layer_map, same_length, show, show_all
from surgery.shapes import infer_shapes

Net = caffe_pb2.NetParameter


Values = tuple[Fraction, ...]


@dataclass(frozen=True)
class ChainStep:
    """A layer that moves the grid, on the way from the common ancestor to a bottom of the crop.

    In pixels of the ancestor, one value or one an axis: pixels of its top are `spacing` apart, the first lies
    at `start`, and this layer has moved it by `moved`.
    """

    layer: str
    type: str
    detail: str
    spacing: Values
    start: Values
    moved: Values


@dataclass(frozen=True)
class CropExplanation:
    """What there is to say about one Crop layer; offsets and slacks are one value or one an axis.

    `scale` and `shift` take coordinates of bottom 0 to bottom 1; empty if nothing joins the bottoms.
    `offset_in_file` is None without an offset in the file, `offset_computed` None where no offset aligns the
    bottoms. The slacks are the pixels of bottom 0 that the computed offset (else the file's) cuts off before
    and after, None if sizes are not known; a negative one is missing. `problem` is empty if all is well.
    """

    layer: str
    bottoms: tuple[str, str]
    ancestor: str
    scale: Values
    shift: Values
    offset_in_file: tuple[int, ...] | None
    offset_computed: tuple[int, ...] | None
    sizes: tuple[Shape, Shape] | None
    slack_before: tuple[int, ...] | None
    slack_after: tuple[int, ...] | None
    chains: tuple[tuple[ChainStep, ...], ...]
    problem: str
    words: str


def explain_crop(net: Net, input_shapes: Mapping[str, Shape] | None = None) -> list[CropExplanation]:
    """One explanation for each Crop layer of a filtered V2 net, in net order.

    `input_shapes` is needed only for the slacks, and only where the net has no shapes of its own. NetError
    for a net that is broken in other ways than its crops.
    """
    work = caffe_pb2.NetParameter()
    work.CopyFrom(net)
    result = []
    for index, layer in enumerate(work.layer):
        if layer.type == "Crop":
            result.append(_explain(work, index, input_shapes or {}))
            computed = result[-1].offset_computed
            if computed is not None and layer.crop_param.axis == 2:
                layer.crop_param.offset[:] = computed
    return result


def _explain(net: Net, index: int, given: Mapping[str, Shape]) -> CropExplanation:
    graph, layer = Graph(net), net.layer[index]
    if len(layer.bottom) != 2 or len(layer.top) != 1:
        raise fail(layer, f"{len(layer.bottom)} bottoms and {len(layer.top)} tops", "2 and 1", "correct them")
    written = tuple(layer.crop_param.offset) or None
    computed, problem, alignment = None, "", None
    try:
        alignment = crop_alignment(graph, index)
        computed = offsets_of(alignment)
    except NetError as error:
        problem = str(error)
    sizes, trouble = _sizes(net, graph, index, given)
    in_file, misfit = _in_file(layer, len(sizes[0]) if sizes else 2)
    before, after = _slack(sizes, in_file if computed is None else computed) if sizes else (None, None)
    m = alignment.a_to_b if alignment else CoordMap(None, (), ())
    problem = (
        problem
        or misfit
        or _written_problem(layer, in_file, computed)
        or trouble
        or _size_problem(layer, before, after)
    )
    chains = tuple(_chain(graph, alignment.node, node) if alignment else () for node in graph.bottoms[index])
    result = CropExplanation(
        layer=layer.name,
        bottoms=(layer.bottom[0], layer.bottom[1]),
        ancestor=alignment.ancestor if alignment else "",
        scale=m.scale,
        shift=m.shift,
        offset_in_file=written,
        offset_computed=computed,
        sizes=sizes,
        slack_before=before,
        slack_after=after,
        chains=chains,
        problem=problem,
        words="",
    )
    return replace(result, words=_words(result))


def _sizes(
    net: Net, graph: Graph, index: int, given: Mapping[str, Shape]
) -> tuple[tuple[Shape, Shape] | None, str]:
    """Spatial sizes of the crop's bottoms, or None with the reason; no reason if no shape was given."""
    try:
        part = subnet(net, graph.bottoms[index], given)
    except NetError:
        if given:
            raise
        return None, ""
    try:
        blobs = infer_shapes(part).blobs
    except NetError as error:
        return None, str(error)
    a, b = (blobs[graph.name(node)] for node in graph.bottoms[index])
    if len(a) != len(b):
        return None, f"its bottoms are {dims(a)} and {dims(b)}; wanted as many axes in both"
    return (a[2:], b[2:]), ""


def _slack(sizes: tuple[Shape, Shape], offset: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    before = offset if len(offset) == len(sizes[0]) else offset[:1] * len(sizes[0])
    after = tuple(a - o - b for a, b, o in zip(*sizes, before, strict=True))
    return before, after


def _in_file(layer: Layer, axes: int) -> tuple[tuple[int, ...], str]:
    """The offsets that the file gives the spatial axes, and what is wrong with how it gives them."""
    crop, rank = layer.crop_param, axes + 2
    axis = crop.axis + rank if crop.axis < 0 else crop.axis
    offsets, cut = tuple(crop.offset) or (0,), rank - axis
    if not 0 <= axis < rank or len(offsets) not in (1, cut):
        found = f"{len(offsets)} offset{'s' * (len(offsets) > 1)} from axis {crop.axis} on"
        return (0,) * axes, f"the file gives {found} for blobs of {rank} axes"
    every = (0,) * axis + (offsets if len(offsets) == cut else offsets * cut)
    if axis > 2:
        return every[2:], f"the file cuts from axis {crop.axis} on, not the spatial axis before it"
    return every[2:], f"the file cuts channels or items too: {_numbers(every)}" if any(every[:2]) else ""


def _written_problem(layer: Layer, in_file: tuple[int, ...], computed: tuple[int, ...] | None) -> str:
    if computed is None or _numbers(in_file) == _numbers(computed):
        return ""
    if layer.crop_param.offset:
        return f"the file says {_numbers(in_file)}"
    if layer.HasField("crop_param"):
        return "the file gives no offset, which is 0"
    return "the file gives no offset: 0 to BVLC Caffe, this one to the fork that such nets were written for"


def _size_problem(layer: Layer, before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> str:
    if after is None or min(after) >= 0:
        return ""
    return (
        f"{layer.bottom[0]} ends {-min(after)} pixels before {layer.bottom[1]} does; pad more before the "
        f"first convolution"
    )


def _chain(graph: Graph, ancestor: Node, node: Node) -> tuple[ChainStep, ...]:
    steps, m, start = [], CoordMap(), (Fraction(0),)  # type: list[ChainStep], CoordMap, Values
    for index in _path(graph, ancestor, node):
        layer = graph.layers[index]
        step = layer_map(layer)
        m = compose(step, m)
        if (step.scale, step.shift) != (CoordMap().scale, CoordMap().shift):
            back = inverse(m)
            moved = tuple(new - old for new, old in zip(*same_length(back.shift, start), strict=True))
            start = back.shift
            steps.append(ChainStep(layer.name, layer.type, _detail(layer), back.scale, back.shift, moved))
    return tuple(steps)


def _path(graph: Graph, ancestor: Node, node: Node) -> list[int]:
    """Layers behind `ancestor` up to the one that makes `node`, along the first of the paths."""
    reached = {ancestor}
    for index in range(ancestor[0] + 1, node[0] + 1):
        for top in range(len(graph.layers[index].top)):
            here = (index, top)
            if graph.step(here) is not None and reached.intersection(graph.followed(here)):
                reached.add(here)
    path = []
    while node != ancestor:
        path.append(node[0])
        node = next(bottom for bottom in graph.followed(node) if bottom in reached)
    return path[::-1]


def _detail(layer: Layer) -> str:
    if layer.type == "Crop":
        return f"offset {_numbers(tuple(layer.crop_param.offset) or (0,))}"
    window = pool_window(layer, None) if layer.type == "Pooling" else conv_window(layer)
    parts = [
        ("kernel", window.kernel, None),
        ("stride", window.stride, 1),
        ("pad", window.pad, 0),
        ("dilation", window.dilation, 1),
    ]
    return ", ".join(f"{name} {_numbers(values)}" for name, values, usual in parts if set(values) != {usual})


def _words(e: CropExplanation) -> str:
    a, b = e.bottoms
    if not e.scale:
        return f"{e.layer} cuts {a} to the size of {b}, but no offset can be found: {e.problem}."
    sentences = [f"{e.layer} cuts {a} to the size of {b}."]
    sentences += [
        _position(e, blob, chain)
        for blob, chain in zip(e.bottoms, e.chains, strict=True)
        if blob != e.ancestor
    ]
    if e.offset_computed is not None:
        many = _numbers(e.offset_computed)
        agrees = ", as in the file" if e.offset_in_file and not e.problem else ""
        sentences.append(
            f"So {many} pixels of {a} lie before the first of {b}: the offset is {many}{agrees}."
        )
    if e.sizes and e.slack_before and e.slack_after:
        before, after = _numbers(e.slack_before), _numbers(e.slack_after)
        sentences.append(
            f"Of {dims(e.sizes[0])} pixels, {dims(e.sizes[1])} stay; {before} go before them "
            f"and {after} after."
        )
    return " ".join([*sentences, *([f"But {e.problem}."] if e.problem else [])])


def _position(e: CropExplanation, blob: str, chain: Sequence[ChainStep]) -> str:
    start = chain[-1].start if chain else (Fraction(0),)
    spacing = chain[-1].spacing if chain else (Fraction(1),)
    grid = "" if set(spacing) == {1} else f" and pixel 1 {show_all(spacing)} further"
    moves = [f"{step.layer} {_signed(step.moved)}" for step in chain if any(step.moved)]
    why = f" ({', '.join(moves)})" if len(moves) > 1 else ""
    return f"Pixel 0 of {blob} lies at {show_all(start)} on {e.ancestor}{grid}{why}."


def _signed(values: Values) -> str:
    return " x ".join(f"{'+' if v > 0 else ''}{show(v)}" for v in values)


def _numbers(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else " x ".join(map(str, values))
