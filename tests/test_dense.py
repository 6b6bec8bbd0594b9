"""Shift-and-stitch and filter rarefaction: equal to each other, and to the net run on single windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_weights import made_weights

from caffe_weights.errors import NetError
from caffe_weights.prototxt import parse_net
from reproduce.dense import dense_scores, score_terms, sight
from reproduce.net import Net
from reproduce.nets import Form, make_net
from reproduce.tolerances import NET, worst_difference
from surgery.interpolation import bilinear_weights

INPUT = (
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 40 dim: 40 } } }'
)


def conv(name: str, bottom: str, out: int, kernel: int, more: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param'
        f' {{ num_output: {out} kernel_size: {kernel} weight_filler {{ type: "msra" }}'
        f' bias_filler {{ type: "gaussian" std: 0.5 }} {more} }} }}'
    )


def pool(name: str, bottom: str, kernel: int, stride: int, more: str = "pool: MAX") -> str:
    return (
        f'layer {{ name: "{name}" type: "Pooling" bottom: "{bottom}" top: "{name}"'
        f" pooling_param {{ kernel_size: {kernel} stride: {stride} {more} }} }}"
    )


def relu(blob: str) -> str:
    return f'layer {{ name: "relu_{blob}" type: "ReLU" bottom: "{blob}" top: "{blob}" }}'


# as VGG: even pools, padding everywhere
VGG_LIKE = [
    conv("c1", "data", 4, 3, "pad: 9"), relu("c1"), pool("p1", "c1", 2, 2), conv("c2", "p1", 6, 3, "pad: 1"),
    relu("c2"), pool("p2", "c2", 2, 2), conv("fc", "p2", 8, 3), relu("fc"), conv("score", "fc", 3, 1),
]  # fmt: skip
# as AlexNet: a stride in the convolution, odd pools, groups, LRN, a rectangular and a dilated kernel
ALEXNET_LIKE = [
    conv("c1", "data", 4, 5, "stride: 2 pad: 3"), relu("c1"), pool("p1", "c1", 3, 2),
    'layer { name: "n1" type: "LRN" bottom: "p1" top: "n1" }',
    conv("c2", "n1", 4, 3, "group: 2 dilation: 2 pad: 1"),
    'layer { name: "score" type: "Convolution" bottom: "c2" top: "score" convolution_param { num_output: 3'
    ' kernel_h: 1 kernel_w: 3 pad_h: 0 pad_w: 1 weight_filler { type: "msra" } } }',
]  # fmt: skip
# as GoogLeNet and ResNet: branches of different reach, average pool, a shortcut, statistics
BRANCHED = [
    conv("c1", "data", 4, 3, "stride: 2 pad: 1"), pool("a", "c1", 3, 1, "pool: MAX pad: 1"),
    conv("b", "c1", 4, 5, "pad: 2"),
    'layer { name: "cat" type: "Concat" bottom: "a" bottom: "b" top: "cat" }',
    conv("d", "cat", 4, 3, "stride: 2 pad: 1"), conv("e", "cat", 4, 1, "stride: 2"),
    'layer { name: "sum" type: "Eltwise" bottom: "d" bottom: "e" top: "sum" }', relu("sum"),
    'layer { name: "bn" type: "BatchNorm" bottom: "sum" top: "bn" }',
    'layer { name: "scale" type: "Scale" bottom: "bn" top: "bn" scale_param { bias_term: true } }',
    pool("ave", "bn", 3, 2, "pool: AVE"), conv("score", "ave", 3, 1),
]  # fmt: skip
NETS = {"vgg": VGG_LIKE, "alexnet": ALEXNET_LIKE, "branched": BRANCHED}


def small_net(kind: str, seed: int = 1) -> Net:
    net = Net(parse_net("\n".join([INPUT, *NETS[kind]])), seed=seed)
    if "bn" in net.params:
        for blob in net.params["bn"]:
            blob.data.fill_(1.5)
    return net


def picture(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (2, 2, *size)).astype(np.float32)


def dense(net: Net, method: str, **inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return dense_scores(net, inputs, method=method).numpy()


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("size", [(21, 16), (8, 30)])
def test_the_two_ways_are_equal(kind: str, size: tuple[int, int]) -> None:
    net = small_net(kind)
    data = picture(*size)
    stitched, atrous = (dense(net, method, data=data) for method in ("shift-and-stitch", "atrous"))
    assert stitched.shape == (2, 3, *size)
    assert worst_difference(atrous, stitched)[0] <= NET
    assert stitched.std() > 0.1


@pytest.mark.parametrize("kind", ["vgg", "alexnet"])  # branches have one size with their padding only
def test_each_score_is_that_of_one_window(kind: str) -> None:
    """The net without any padding on the pixels that a receptive field covers gives one score."""
    net = small_net(kind)
    data = picture(20, 17)
    see = sight(net.definition, "score")
    bare = parse_net("\n".join([INPUT, *NETS[kind]]))
    for layer in bare.layer:
        for field in ("pad", "pad_h", "pad_w") if layer.type == "Convolution" else ():
            layer.convolution_param.ClearField(field)
    alone = Net(bare, net.weights(), input_shapes={"data": (1, 2, *see.size)})
    plane = np.zeros((2, 2, 20 + 200, 17 + 200), np.float32)
    plane[:, :, 100:120, 100:117] = data
    got = dense(net, "atrous", data=data)
    for y, x in [(0, 0), (3, 11), (19, 16), (10, 7)]:
        top, left = 100 + y + see.before[0], 100 + x + see.before[1]
        window = plane[:, :, top : top + see.size[0], left : left + see.size[1]]
        with torch.no_grad():
            one = alone(data=window)["score"].numpy()
        assert one.shape == (2, 3, 1, 1)
        assert np.abs(one[..., 0, 0] - got[:, :, y, x]).max() <= NET * np.abs(got).max()


@pytest.mark.parametrize("kind", NETS)
def test_the_net_itself_is_one_of_the_shifts(kind: str) -> None:
    """Far from the border the net's coarse scores stand in the dense ones at its stride."""
    net = small_net(kind)
    data = picture(80, 72)
    with torch.no_grad():
        coarse = net(data=data)["score"].numpy()
    got = dense(net, "atrous", data=data)
    see = sight(net.definition, "score")
    for unit in range(3, 6):
        y, x = (f + unit * s - b for f, s, b in zip(see.first, see.stride, see.before, strict=True))
        assert np.abs(got[:, :, y, x] - coarse[:, :, unit, unit]).max() <= NET * np.abs(coarse).max()


def test_interpolation_is_left_out_and_skips_are_summed() -> None:
    form = Form(64, fc=2, classes=3)
    net = Net(make_net("voc-fcn8s", size=(9, 8), form=form), made_weights("voc-fcn8s", form))
    assert [term.blob for term in score_terms(net, "score")] == ["score_pool3", "score_pool4", "score_fr"]
    data = picture(9, 8)[:1, [0, 1, 0]]
    whole = dense(net, "atrous", data=data)
    parts = []
    for name in ("score_pool3", "score_pool4", "score_fr"):
        with torch.no_grad():
            parts.append(dense_scores(net, {"data": data}, name).numpy())
    assert whole.shape == (1, 3, 9, 8) and np.allclose(whole, sum(parts), rtol=1e-5, atol=1e-6)


def test_two_streams_are_averaged() -> None:
    form = Form(64, fc=2)
    name = "nyud-fcn32s-color-hha"
    net = Net(make_net(name, size=(6, 5), form=form), made_weights(name, form))
    assert {(term.blob, term.factor) for term in score_terms(net, "score")} == {
        ("score_frcolor", 0.5), ("score_frhha", 0.5)}  # fmt: skip
    color, hha = picture(6, 5)[:1, [0, 1, 0]], picture(6, 5, seed=4)[:1, [0, 1, 0]]
    assert dense(net, "atrous", color=color, hha=hha).shape == (1, 40, 6, 5)


@pytest.mark.slow
def test_the_two_ways_are_equal_on_a_published_net() -> None:
    form = Form(64, fc=2, classes=3)
    net = Net(make_net("voc-fcn-alexnet", size=(9, 8), form=form), made_weights("voc-fcn-alexnet", form))
    data = picture(9, 8)[:1, [0, 1, 0]]
    stitched, atrous = (dense(net, method, data=data) for method in ("shift-and-stitch", "atrous"))
    assert worst_difference(atrous, stitched)[0] <= NET


def test_learned_interpolation_is_refused() -> None:
    form = Form(64, fc=2, classes=3)
    weights = made_weights("voc-fcn32s", form)
    weights["upscore"] = [bilinear_weights((3, 3, 64, 64)) * 2]
    net = Net(make_net("voc-fcn32s", size=(9, 8), form=form), weights)
    with pytest.raises(NetError, match=r"layer upscore \(Deconvolution\): its weights are not bilinear"):
        dense(net, "atrous", data=picture(9, 8)[:1, [0, 1, 0]])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([pool("score", "data", 1, 1, "pool: STOCHASTIC")], "no dense form for stochastic pooling"),
        (['layer { name: "score" type: "LRN" bottom: "data" top: "score" lrn_param {'
          ' norm_region: WITHIN_CHANNEL } }'], r"layer score \(LRN\): no dense form"),
        ([conv("up", "data", 2, 2, "stride: 2").replace("Convolution", "Deconvolution"),
          conv("score", "up", 2, 3)], "blob score: a stride of 1/2; wanted a whole one"),
        ([conv("a", "data", 2, 1), conv("b", "data", 2, 1),
          'layer { name: "s" type: "Silence" bottom: "b" }'], "not in the net|outputs"),
    ],
)  # fmt: skip
def test_what_has_no_dense_form_is_refused(layers: list[str], message: str) -> None:
    net = Net(parse_net("\n".join([INPUT, *layers])), seed=0)
    with pytest.raises(NetError, match=message):
        dense_scores(net, {"data": picture(8, 8)}, "score")


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(NetError, match="dense: 'fast'; wanted shift-and-stitch or atrous"):
        dense_scores(small_net("vgg"), {"data": picture(8, 8)}, method="fast")


def test_the_output_must_be_clear() -> None:
    net: Any = Net(parse_net("\n".join([INPUT, conv("a", "data", 2, 1), conv("b", "data", 2, 1)])), seed=0)
    with pytest.raises(NetError, match=r"net: 2 outputs \(a, b\); wanted one"):
        dense_scores(net, {"data": picture(8, 8)})
