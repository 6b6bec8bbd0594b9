"""Coordinate maps, crop offsets, receptive fields and their explanation.

Sources: offsets and sizes of the published FCNs, receptive fields of the paper's Table 1, naive counting of
the pixels that a unit touches, and arithmetic on paper. Caffe's own maps: test_golden_geometry.py.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from surgery.coordinates import (
    CoordMap,
    compose,
    crop_offset,
    crop_offsets,
    fill_crops,
    inverse,
    map_to_input,
    receptive_field,
)
from surgery.explain import explain_crop
from surgery.shapes import infer_shapes

Net = caffe_pb2.NetParameter


class Chain:
    """A net written layer by layer; `at` is the blob the next layer reads."""

    def __init__(self) -> None:
        self.net = Net()
        self.net.layer.add(name="data", type="Input", top=["data"])
        self.at = "data"

    def add(self, name: str, kind: str, text: str = "", bottoms: list[str] | None = None) -> Chain:
        layer = self.net.layer.add(name=name, type=kind, bottom=bottoms or [self.at], top=[name])
        text_format.Merge(text, layer)
        self.at = name
        return self

    def conv(self, name: str, k: int, s: int = 1, p: int = 0, d: int = 1) -> Chain:
        return self.add(
            name,
            "Convolution",
            f"convolution_param {{ num_output: 1 kernel_size: {k} stride: {s} pad: {p} dilation: {d} }}",
        )

    def pool(self, name: str, k: int, s: int, p: int = 0) -> Chain:
        return self.add(name, "Pooling", f"pooling_param {{ kernel_size: {k} stride: {s} pad: {p} }}")

    def up(self, name: str, k: int, s: int) -> Chain:
        return self.add(
            name, "Deconvolution", f"convolution_param {{ num_output: 1 kernel_size: {k} stride: {s} }}"
        )

    def crop(self, name: str, like: str, text: str = "") -> Chain:
        return self.add(name, "Crop", text, [self.at, like])

    def from_(self, blob: str) -> Chain:
        self.at = blob
        return self


def vgg() -> Chain:
    """The VGG16 trunk with pad 100 up to fc6; convolutions that keep the grid are there once a stage."""
    net = Chain()
    for stage, convs in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(1, convs + 1):
            net.conv(f"conv{stage}_{i}", 3, p=100 if (stage, i) == (1, 1) else 1)
        net.pool(f"pool{stage}", 2, 2)
    return net.conv("fc6", 7).conv("fc7", 1).conv("score_fr", 1)


def vgg_8s() -> Chain:
    net = vgg().up("upscore2", 4, 2).from_("pool4").conv("score_pool4", 1).crop("score_pool4c", "upscore2")
    net.add("fuse_pool4", "Eltwise", bottoms=["upscore2", "score_pool4c"]).up("upscore_pool4", 4, 2)
    net.from_("pool3").conv("score_pool3", 1).crop("score_pool3c", "upscore_pool4")
    net.add("fuse_pool3", "Eltwise", bottoms=["upscore_pool4", "score_pool3c"]).up("upscore8", 16, 8)
    return net.crop("score", "data")


def alexnet() -> Chain:
    net = Chain().conv("conv1", 11, 4, 100).pool("pool1", 3, 2).conv("conv2", 5, p=2).pool("pool2", 3, 2)
    net.conv("conv3", 3, p=1).conv("conv4", 3, p=1).conv("conv5", 3, p=1).pool("pool5", 3, 2)
    return net.conv("fc6", 6).conv("fc7", 1)


def inception(net: Chain, name: str) -> Chain:
    start = net.at
    branches = [net.from_(start).conv(f"{name}/1x1", 1).at]
    branches.append(net.from_(start).conv(f"{name}/3x3_reduce", 1).conv(f"{name}/3x3", 3, p=1).at)
    branches.append(net.from_(start).conv(f"{name}/5x5_reduce", 1).conv(f"{name}/5x5", 5, p=2).at)
    branches.append(net.from_(start).pool(f"{name}/pool", 3, 1, 1).conv(f"{name}/pool_proj", 1).at)
    return net.add(f"{name}/output", "Concat", bottoms=branches)


def googlenet(pad: int) -> Chain:
    net = Chain().conv("conv1/7x7_s2", 7, 2, pad).pool("pool1/3x3_s2", 3, 2)
    net.conv("conv2/3x3_reduce", 1).conv("conv2/3x3", 3, p=1).pool("pool2/3x3_s2", 3, 2)
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        if name in ("4a", "5a"):
            net.pool(f"pool_before_{name}", 3, 2)
        inception(net, f"inception_{name}")
    return net


@pytest.mark.parametrize(
    ("net", "offset"),
    [
        (vgg().up("up", 64, 32), 19),
        (alexnet().up("up", 63, 32), 18),
        (googlenet(100).up("up", 63, 32), 98),
        (googlenet(3).up("up", 63, 32), 1),
    ],
)
def test_stride_32_heads_have_the_known_offsets(net: Chain, offset: int) -> None:
    assert crop_offset(net.net, "up", "data") == offset
    assert crop_offsets(net.net, "up", "data") == (offset,)


def test_finer_heads_get_the_published_offsets_when_their_crops_are_filled() -> None:
    net = vgg_8s().net
    before = net.SerializeToString()
    filled = {layer.name: layer.crop_param for layer in fill_crops(net).layer if layer.type == "Crop"}
    assert {name: list(p.offset) for name, p in filled.items()} == {
        "score_pool4c": [5],
        "score_pool3c": [9],
        "score": [31],
    }
    assert {p.axis for p in filled.values()} == {2}
    assert net.SerializeToString() == before


def test_16s_has_5_and_27() -> None:
    net = vgg().up("upscore2", 4, 2).from_("pool4").conv("score_pool4", 1).crop("c", "upscore2")
    net.add("fuse", "Eltwise", bottoms=["upscore2", "c"]).up("upscore16", 32, 16).crop("score", "data")
    crops = [list(layer.crop_param.offset) for layer in fill_crops(net.net).layer if layer.type == "Crop"]
    assert crops == [[5], [27]]


def test_filling_leaves_crops_with_a_crop_param_alone() -> None:
    net = vgg().up("up", 64, 32).crop("score", "data", "crop_param { axis: 2 offset: 7 }").net
    assert fill_crops(net) == net
    assert fill_crops(net, overwrite=True).layer[-1].crop_param.offset[:] == [19]


def test_an_even_kernel_after_an_odd_stem_is_refused_with_the_way_out() -> None:
    with pytest.raises(NetError, match=r"the offset is 98\.5, between two pixels; .*use an odd kernel"):
        crop_offset(googlenet(100).up("up", 64, 32).net, "up", "data")


@pytest.mark.parametrize(
    ("net", "top", "like", "message"),
    [
        (vgg().up("up", 32, 16), "up", "data", r"a pixel of up spans 2 of data; wanted a scale of 1"),
        (Chain().conv("c", 3), "c", "data", r"offset is -1: data begins before c; .*pad more"),
        (Chain().conv("c", 3), "c", "dta", r"blob dta: not in the net"),
        (
            Chain().pool("p", 2, 2).add("ip", "InnerProduct").up("u", 2, 2),
            "u",
            "data",
            r"no common ancestor.*layer ip \(InnerProduct\): no coordinate map: it keeps no grid",
        ),
        (
            Chain().add("g", "Pooling", "pooling_param { global_pooling: true }").up("u", 2, 2),
            "u",
            "data",
            r"layer g \(Pooling\): no coordinate map: global pooling has no fixed window",
        ),
        (
            Chain().add("c", "Concat", "concat_param { axis: 2 }", ["data", "data"]),
            "c",
            "data",
            r"layer c \(Concat\): no coordinate map: it works along axis 2, a spatial one",
        ),
        (Chain().add("s", "Slice", "slice_param { slice_dim: 3 }"), "s", "data", r"axis 3, a spatial one"),
        (Chain().add("a", "ArgMax"), "a", "data", r"layer a \(ArgMax\).*over whole items"),
        (
            Chain().conv("a", 3, p=1).from_("data").conv("b", 3).add("c", "Concat", "", ["a", "b"]),
            "c",
            "data",
            r"two paths disagree: data to c is x -> x - 1, by way of a x -> x;",
        ),
        (
            Chain().conv("a", 3, 2).from_("data").conv("b", 5, 2).add("c", "Eltwise", "", ["a", "b"]),
            "c",
            "data",
            r"two paths disagree: data to c is x -> 0\.5 x - 1, by way of a x -> 0\.5 x - 0\.5;",
        ),
        (
            Chain()
            .add("r", "ReLU")
            .conv("a", 3)
            .from_("r")
            .conv("b", 3, p=1)
            .from_("data")
            .add("d", "ReLU")
            .add("c", "Eltwise", "", ["a", "b", "d"]),
            "c",
            "data",  # d agrees with b; the quarrel is about r, through which a and b come
            r"two paths disagree: r to c is x -> x, by way of a x -> x - 1;",
        ),
        (
            Chain().add("c", "Convolution", "convolution_param { kernel_size: 3 axis: 2 }").conv("d", 3),
            "d",
            "data",
            r"coordinate map: axis 1 after axis 2",
        ),
    ],
)
def test_what_does_not_line_up_is_refused_with_the_reason(
    net: Chain, top: str, like: str, message: str
) -> None:
    with pytest.raises(NetError, match=message):
        crop_offsets(net.net, top, like)


def test_each_axis_has_its_own_numbers_where_the_net_says_so() -> None:
    net = Chain().add("c", "Convolution", "convolution_param { kernel_h: 3 kernel_w: 5 pad_h: 4 pad_w: 9 }")
    assert crop_offsets(net.net, "c", "data") == (3, 7)
    assert fill_crops(net.crop("y", "data").net).layer[-1].crop_param.offset[:] == [3, 7]
    with pytest.raises(NetError, match="offsets 3, 7; wanted one for all axes; use crop_offsets"):
        crop_offset(net.net, "c", "data")


@pytest.mark.parametrize(("kernel", "dilation", "offset"), [(3, 1, 19), (3, 2, 18), (3, 7, 13), (2, 4, 18)])
def test_a_dilated_kernel_counts_with_its_holes(kernel: int, dilation: int, offset: int) -> None:
    """Its middle lies dilation * (kernel - 1) / 2 pixels behind its first: that much less than the pad."""
    net = Chain().conv("c", kernel, p=20, d=dilation)
    assert crop_offset(net.net, "c", "data") == offset


def test_each_top_of_a_shared_convolution_lies_on_its_own_bottom() -> None:
    net = Chain().conv("a", 3, p=1).from_("data").conv("b", 3, p=6)
    net.net.layer.add(name="c", type="Convolution", bottom=["a", "b"], top=["on a", "on b"])
    net.net.layer[-1].convolution_param.kernel_size.append(1)
    assert [crop_offset(net.net, top, "data") for top in ("on a", "on b")] == [0, 5]


def test_a_filled_crop_spares_the_axes_before_the_grid() -> None:
    net = Chain().add("c", "Convolution", "convolution_param { kernel_size: 3 pad: 4 axis: 2 }")
    found = fill_crops(net.crop("y", "data").net).layer[-1].crop_param
    assert (found.axis, found.offset[:]) == (3, [3])


def test_concat_and_slice_pass_the_grid_on_where_all_paths_agree() -> None:
    net = Chain().conv("c", 3, p=8)
    net.net.layer.add(name="s", type="Slice", bottom=["c"], top=["a", "b"])
    net.from_("a").conv("a3", 3, p=1).from_("b").pool("b3", 3, 1, 1).add("j", "Concat", "", ["a3", "b3", "c"])
    assert crop_offset(net.net, "j", "data") == 7


def test_pointwise_nets_are_the_identity() -> None:
    net = Chain().add("r", "ReLU").add("l", "LRN")
    assert map_to_input(net.net)["l"] == CoordMap()
    assert crop_offset(net.net, "l", "data") == 0


def test_maps_can_be_taken_to_a_chosen_blob() -> None:
    maps = map_to_input(vgg().net, "pool4")
    assert maps["fc7"] == CoordMap(1, (Fraction(2),), (Fraction(13, 2),))
    assert "conv1_1" not in maps
    assert str(maps["fc7"]) == "x -> 2 x + 6.5"


@given(
    a=st.fractions(1, 9), b=st.fractions(-9, 9), c=st.fractions(1, 9), d=st.fractions(-9, 9), x=st.fractions()
)
def test_composition_and_inverse_are_those_of_functions(
    a: Fraction, b: Fraction, c: Fraction, d: Fraction, x: Fraction
) -> None:
    m, n = CoordMap(1, (a,), (b,)), CoordMap(1, (c,), (d,))
    both = compose(m, n)
    assert both.scale[0] * x + both.shift[0] == a * (c * x + d) + b
    assert compose(m, inverse(m)) == CoordMap(1)


@pytest.mark.parametrize(
    ("net", "blob", "size"),
    [
        (vgg(), "fc7", 404),
        (alexnet(), "fc7", 355),
        (googlenet(3), "inception_5b/output", 715),
        (googlenet(3).pool("pool5", 7, 1), "pool5", 907),
    ],
)
def test_receptive_fields_of_the_published_nets(net: Chain, blob: str, size: int) -> None:
    field = receptive_field(net.net, blob)
    assert (field.size, field.stride, field.input) == ((size, size), (32, 32), "data")


def test_the_first_unit_of_a_padded_net_sees_padding() -> None:
    # conv1_1 pads by 100 and the four later stages by 2, 2x2, 3x4, 3x8, 3x16 and conv1_2 by 1
    assert receptive_field(vgg().net, "fc7").first == (-189, -189)
    assert 100 + 1 + 2 * 2 + 3 * 4 + 3 * 8 + 3 * 16 == 189


def test_normalising_within_a_channel_looks_around() -> None:
    net = Chain().conv("c", 3, 2).add("l", "LRN", "lrn_param { norm_region: WITHIN_CHANNEL local_size: 5 }")
    field = receptive_field(net.net, "l")  # 5 units, 2 pixels apart, of 3 pixels each
    assert (field.size, field.first) == ((11, 11), (-4, -4))


STEPS = st.tuples(
    st.sampled_from(["conv", "pool", "up"]), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3)
)


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(STEPS, min_size=1, max_size=4))
def test_receptive_fields_by_marking_pixels(steps: list[tuple[str, int, int, int]]) -> None:
    net, touched = Chain(), np.eye(61, dtype=bool)  # which of 61 pixels each unit touches, edges cut off
    inside = np.ones(61, dtype=bool)  # units that no edge reaches
    for i, (kind, k, s, p) in enumerate(steps):
        if kind == "up":
            k = max(k, s)  # no holes
            net.up(f"l{i}", k, s)
        elif kind == "pool":
            p = min(p, k - 1)
            net.pool(f"l{i}", k, s, p)
        else:
            net.conv(f"l{i}", k, s, p)
        touched, inside = step(kind, k, s, p, touched, inside)
    if not inside.any():
        return
    spans = [row.nonzero()[0] for row in touched[inside]]
    largest = max(int(span[-1] - span[0]) + 1 for span in spans)
    found = receptive_field(net.net, f"l{len(steps) - 1}").size[0]
    period = int(np.prod([s for kind, _, s, _ in steps if kind == "up"]))
    assert largest <= found
    if inside.sum() >= period:
        assert largest == found


def step(
    kind: str, k: int, s: int, p: int, touched: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels the units of the next layer touch, found by listing every window."""
    count = len(touched)
    if kind == "up":
        reads = [[x for x in range(count) if 0 <= y - s * x < k] for y in range(s * (count - 1) + k)]
        ok = [all(inside[r]) and 0 not in r and count - 1 not in r for r in reads]
    else:
        size = (count + 2 * p - k) // s + 1
        windows = [range(y * s - p, y * s - p + k) for y in range(max(size, 0))]
        reads = [[x for x in w if 0 <= x < count] for w in windows]
        ok = [len(r) == k and bool(all(inside[r])) for r in reads]
    rows = [touched[r].any(axis=0) for r in reads]
    return np.array(rows).reshape(len(rows), touched.shape[1]), np.array(ok, dtype=bool)


@pytest.mark.parametrize(
    ("net", "blob", "input_blob", "message"),
    [
        (Chain().add("ip", "InnerProduct"), "ip", None, r"layer ip \(InnerProduct\)"),
        (Chain().add("m", "MVN"), "m", None, r"normalises over the whole map"),
        (Chain().conv("a", 1), "data", "a", "not on the grid of a"),
    ],
)
def test_receptive_fields_that_are_the_whole_input_are_refused(
    net: Chain, blob: str, input_blob: str | None, message: str
) -> None:
    with pytest.raises(NetError, match=message):
        receptive_field(net.net, blob, input_blob)


def test_why_19() -> None:
    net = vgg().up("upscore", 64, 32).crop("score", "data", "crop_param { axis: 2 offset: 19 }").net
    (e,) = explain_crop(net, {"data": (1, 3, 500, 500)})
    assert (e.layer, e.bottoms, e.ancestor, e.problem) == ("score", ("upscore", "data"), "data", "")
    assert (e.scale, e.shift) == ((1,), (-19,))
    assert (e.offset_in_file, e.offset_computed) == ((19,), (19,))
    assert (e.slack_before, e.slack_after) == ((19, 19), (25, 25))  # 544 = 19 + 500 + 25
    moved = {step.layer: step.moved[0] for step in e.chains[0]}
    assert moved == {
        "conv1_1": -99,
        "pool1": Fraction(1, 2),
        "pool2": 1,
        "pool3": 2,
        "pool4": 4,
        "pool5": 8,
        "fc6": 96,
        "upscore": Fraction(-63, 2),
    }
    assert sum(moved.values()) == -19
    assert "Pixel 0 of upscore lies at -19 on data" in e.words
    assert "conv1_1 -99, pool1 +0.5" in e.words
    assert "the offset is 19, as in the file" in e.words
    assert "Of 544x544 pixels, 500x500 stay; 19 go before them and 25 after." in e.words


def test_finer_heads_are_explained_from_their_common_pool() -> None:
    found = {e.layer: e for e in explain_crop(vgg_8s().net)}
    assert [(e.ancestor, e.offset_computed) for e in found.values()] == [
        ("pool4", (5,)),
        ("pool3", (9,)),
        ("data", (31,)),
    ]
    assert all(e.slack_before is None for e in found.values())
    assert "0 to BVLC Caffe" in found["score"].problem
    assert "Pixel 0 of upscore2 lies at 5 on pool4" in found["score_pool4c"].words


def test_a_wrong_offset_is_named_and_the_next_crops_are_judged_as_if_it_were_right() -> None:
    net = fill_crops(vgg_8s().net)
    next(layer for layer in net.layer if layer.name == "score_pool4c").crop_param.offset[0] = 4
    found = {e.layer: e for e in explain_crop(net, {"data": (1, 3, 100, 100)})}
    assert {name: e.problem for name, e in found.items()} == {
        "score_pool4c": "the file says 4",
        "score_pool3c": "",
        "score": "",
    }
    assert "the offset is 5. " in found["score_pool4c"].words


@pytest.mark.parametrize(
    ("net", "problem"),
    [
        (googlenet(100).up("up", 64, 32).crop("y", "data", "crop_param { offset: 98 }"), "98.5, between two"),
        (vgg().up("up", 64, 32).crop("y", "data", "crop_param { axis: 2 }"), "no offset, which is 0"),
        (Chain().conv("c", 3).up("u", 3, 1).crop("y", "data"), ""),
        (
            Chain()
            .conv("c", 3, p=1)
            .pool("p", 3, 2)
            .up("u", 2, 2)
            .add("ip", "InnerProduct")
            .crop("y", "data"),
            "no common ancestor",
        ),
        (Chain().conv("c", 5, p=2).crop("y", "data", "crop_param { offset: 0 }"), ""),
        (
            Chain().conv("c", 5, p=2).conv("d", 4, p=2).conv("e", 5, p=3).crop("y", "data"),
            "between two pixels",
        ),
        (Chain().conv("c", 5, p=3).conv("d", 3).crop("y", "data", "crop_param { offset: 0 }"), ""),
        (
            Chain().conv("c", 2, 2).up("u", 2, 2).crop("y", "data", "crop_param { offset: 0 }"),
            "u ends 1 pixels",
        ),
    ],
)
def test_what_is_wrong_with_a_crop_is_said(net: Chain, problem: str) -> None:
    net.net.layer.add(name="out", type="ReLU", bottom=["y"], top=["out"])
    (e,) = explain_crop(net.net, {"data": (1, 1, 41, 41)})
    assert problem in e.problem if problem else e.problem == ""
    assert "\n" not in e.words


@pytest.mark.parametrize(
    (
        "crop",
        "problem",
    ),  # by crop_layer.cpp: offsets belong to the axes from `axis` on, one alone to all of them
    [
        ("axis: 2 offset: 1", ""),
        ("axis: -2 offset: 1 offset: 1", ""),
        ("axis: 1 offset: 0 offset: 1 offset: 1", ""),
        ("axis: 1 offset: 0 offset: 1 offset: 2", "the file says 1 x 2"),
        ("axis: 1 offset: 1", "the file cuts channels or items too: 0 x 1 x 1 x 1"),
        ("axis: 3 offset: 1", "the file cuts from axis 3 on, not the spatial axis before it"),
        ("axis: 4 offset: 1", "the file gives 1 offset from axis 4 on for blobs of 4 axes"),
        ("offset: 1 offset: 1 offset: 1", "the file gives 3 offsets from axis 2 on for blobs of 4 axes"),
    ],
)
@pytest.mark.parametrize("sizes", [{"data": (1, 1, 41, 41)}, None])
def test_the_axes_that_the_file_cuts_count(
    crop: str, problem: str, sizes: dict[str, tuple[int, ...]] | None
) -> None:
    net = Chain().conv("c", 5, p=3).crop("y", "data", f"crop_param {{ {crop} }}").net
    (e,) = explain_crop(net, sizes)
    assert (e.offset_computed, e.problem) == ((1,), problem)
    assert ("as in the file" in e.words) == (not problem)


def test_a_crop_of_a_flat_blob_has_no_sizes() -> None:
    net = Chain().add("ip", "InnerProduct", "inner_product_param { num_output: 2 }").net
    net.layer.add(name="y", type="Crop", bottom=["ip", "data"], top=["y"])
    (e,) = explain_crop(net, {"data": (1, 1, 41, 41)})
    assert (e.sizes, e.slack_after) == (None, None)
    assert "it keeps no grid of pixels" in e.problem


@pytest.mark.parametrize("call", [explain_crop, fill_crops])
def test_a_crop_of_one_blob_is_refused(call: Callable[[Net], object]) -> None:
    with pytest.raises(NetError, match=r"layer y \(Crop\): 1 bottoms"):
        call(Chain().add("y", "Crop").net)


def test_googlenet_needs_no_more_than_its_own_padding() -> None:
    # A known result for the stride-32 head with kernel 63: no side lacks pixels from size 33 to 699.
    net = googlenet(3).up("up", 63, 32).crop("score", "data", "crop_param { axis: 2 offset: 1 }").net
    for size in range(33, 367):
        up = infer_shapes(net, {"data": (1, 1, size, 732 - size)}).layers["score"].bottoms[0]
        assert up[2] - size - 1 >= 0
        assert up[3] - (732 - size) - 1 >= 0


def test_a_train_net_is_explained_without_its_labels() -> None:
    net = vgg().up("up", 64, 32).crop("score", "data", "crop_param { axis: 2 offset: 19 }").net
    net.layer[0].type = "Python"
    net.layer[0].top.append("label")
    net.layer.add(name="loss", type="SoftmaxWithLoss", bottom=["score", "label"], top=["loss"])
    (e,) = explain_crop(net, {"data": (1, 3, 40, 60)})
    assert (e.slack_before, e.problem) == ((19, 19), "")
