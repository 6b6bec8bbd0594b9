from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError, WeightsError
from caffe_weights.weights import ABSENT, Weights
from surgery.convolutionize import convolutionize
from surgery.netspec import L, NetSpec, P
from surgery.shapes import infer_shapes

Net = caffe_pb2.NetParameter
Blobs = dict[str, np.ndarray]


# A naive float64 runtime, enough for the nets below. It knows nothing of the code under test.


def run(net: Net, weights: Weights, data: np.ndarray) -> Blobs:
    blobs = {"data": data.astype(np.float64)}
    for layer in net.layer:
        if layer.type != "Input":
            bottoms = [blobs[name] for name in layer.bottom]
            params = [p.astype(np.float64) for p in weights.get(layer.name, [])]
            blobs.update(dict.fromkeys(layer.top, RUN[layer.type](layer, params, *bottoms)))
    return blobs


def windows(x: np.ndarray, kernel: tuple[int, int], stride: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x, kernel, (2, 3))[
        :, :, ::stride, ::stride
    ]  # N C H W h w


def conv(layer: Any, params: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    weight = params[0]
    out = np.einsum("nchwij,ocij->nohw", windows(x, weight.shape[2:], 1), weight)
    return out + params[1][:, None, None] if len(params) > 1 else out


def inner(layer: Any, params: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    weight = params[0] if layer.inner_product_param.transpose else params[0].T
    return x.reshape(len(x), -1) @ weight + (params[1] if len(params) > 1 else 0)


def pool(layer: Any, params: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    p = layer.pooling_param
    kernel = x.shape[2:] if p.global_pooling else (p.kernel_h or p.kernel_size, p.kernel_w or p.kernel_size)
    seen = windows(x, kernel, p.stride)
    return seen.mean((4, 5)) if p.pool == p.AVE else seen.max((4, 5))


def softmax(layer: Any, params: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=layer.softmax_param.axis, keepdims=True))
    return e / e.sum(axis=layer.softmax_param.axis, keepdims=True)


def scale(layer: Any, params: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    return x * params[0].reshape(params[0].shape + (1,) * (x.ndim - 1 - params[0].ndim))


RUN: dict[str, Callable[..., np.ndarray]] = {
    "Convolution": conv,
    "InnerProduct": inner,
    "Pooling": pool,
    "Softmax": softmax,
    "Scale": scale,
    "ReLU": lambda layer, params, x: np.maximum(x, 0),
    "PReLU": lambda layer, params, x: np.where(x > 0, x, x * params[0].reshape(-1, *(1,) * (x.ndim - 2))),
    "Dropout": lambda layer, params, x: x,
    "Flatten": lambda layer, params, x: x.reshape(len(x), -1),
    "Reshape": lambda layer, params, x: x.reshape([len(x), *layer.reshape_param.shape.dim[1:]]),
    "Concat": lambda layer, params, *xs: np.concatenate(xs, axis=layer.concat_param.axis),
    "Eltwise": lambda layer, params, *xs: sum(xs),
    "ArgMax": lambda layer, params, x: x.argmax(axis=layer.argmax_param.axis or 1),
}

# The nets: a trunk of stride 2 from 2 x 8 x 10 pixels to 3 x 3 x 4, then a head.


def trunk(pooled: bool = True) -> NetSpec:
    n = NetSpec()
    n.data = L.Input(shape=[1, 2, 8, 10])
    n.conv = L.Convolution(n.data, num_output=3, kernel_size=3)
    n.relu = L.ReLU(n.conv, in_place=True)
    if pooled:
        n.pool = L.Pooling(n.relu, kernel_size=2, stride=2)
    return n


def plain() -> NetSpec:
    n = trunk()
    n.ip1 = L.InnerProduct(n.pool, num_output=5)
    n.relu1 = L.ReLU(n.ip1, in_place=True)
    n.drop1 = L.Dropout(n.relu1, in_place=True)
    n.ip2 = L.InnerProduct(n.drop1, num_output=6, bias_term=False)
    n.prelu = L.PReLU(n.ip2)
    n.score = L.InnerProduct(n.prelu, num_output=4)
    n.prob = L.Softmax(n.score)
    return n


def transposed() -> NetSpec:
    n = trunk()
    n.ip1 = L.InnerProduct(n.pool, num_output=5, transpose=True)
    n.score = L.InnerProduct(n.ip1, num_output=4, transpose=True)
    return n


def flattened() -> NetSpec:
    """Flatten and Reshape in front, between and behind, with in-place layers on the flattened blobs."""
    n = trunk()
    n.flat = L.Flatten(n.pool)
    n.drop0 = L.Dropout(n.flat, in_place=True)
    n.ip1 = L.InnerProduct(n.drop0, num_output=5)
    n.flat1 = L.Reshape(n.ip1, shape=[0, -1])
    n.relu1 = L.ReLU(n.flat1, in_place=True)
    n.score = L.InnerProduct(n.relu1, num_output=4)
    n.flat2 = L.Flatten(n.score)
    n.prob = L.Softmax(n.flat2, axis=-1)
    return n


def reshaped() -> NetSpec:
    """Reshapes to 4 axes: in front of a layer, and behind one, where a convolution goes on."""
    n = trunk()
    n.column = L.Reshape(n.pool, shape=[0, -1, 1, 1])
    n.ip1 = L.InnerProduct(n.column, num_output=5)
    n.map = L.Reshape(n.ip1, shape=[0, 5, 1, 1])
    n.one = L.Convolution(n.map, num_output=6, kernel_size=1)
    n.score = L.InnerProduct(n.one, num_output=4)
    return n


def branches() -> NetSpec:
    """Two flattened maps joined, two inner products of one bottom added, both outputs joined and scaled."""
    n = trunk()
    n.flat = L.Flatten(n.pool)
    n.other = L.Flatten(L.Convolution(n.pool, num_output=2, kernel_size=1))
    n.joined = L.Concat(n.flat, n.other)
    n.a, n.b = (L.InnerProduct(n.joined, num_output=5) for _ in range(2))
    n.sum = L.Eltwise(n.a, n.b)
    n.both = L.Concat(n.sum, n.a, axis=-1)
    n.scaled = L.Scale(n.both, num_axes=-1)
    n.score = L.InnerProduct(n.scaled, num_output=4)
    n.best = L.ArgMax(n.score)
    return n


def averaged() -> NetSpec:
    """As in ResNet: a global average in front of the last layer."""
    n = trunk()
    n.pool5 = L.Pooling(n.pool, pool=P.Pooling.AVE, global_pooling=True)
    n.score = L.InnerProduct(n.pool5, num_output=4)
    return n


NETS = [plain, transposed, flattened, reshaped, branches, averaged]


def filled(net: Net, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    shapes = infer_shapes(net).layers
    return Weights({
        name: [rng.standard_normal(shape, np.float32) for shape in layer.params]
        for name, layer in shapes.items() if layer.params
    })  # fmt: skip


@pytest.mark.parametrize("build", NETS)
def test_the_map_holds_the_classifier_at_every_position(build: Callable[[], NetSpec]) -> None:
    net = build().to_proto()
    weights = filled(net)
    new, cut, _ = convolutionize(net, weights)
    assert cut is not None
    assert not [layer for layer in new.layer if layer.type in ("InnerProduct", "Flatten")]
    image = np.random.default_rng(1).standard_normal((2, 2, 12, 16))
    got = run(new, cut, image)
    for name in ("score", "prob", "best"):
        if name in got:
            corners = [[image[:, :, y : y + 8, x : x + 10] for x in (0, 2, 4, 6)] for y in (0, 2, 4)]
            want = np.array([[run(net, weights, corner)[name] for corner in row] for row in corners])
            np.testing.assert_allclose(np.moveaxis(got[name], (-2, -1), (0, 1)), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("build", NETS)
def test_shapes_fit_and_one_position_is_left_at_the_training_size(build: Callable[[], NetSpec]) -> None:
    net = build().to_proto()
    before = net.SerializeToString()
    new, cut, report = convolutionize(net, filled(net))
    assert net.SerializeToString() == before
    shapes = infer_shapes(new)
    assert cut is not None
    assert shapes.blobs["score"] == (1, 4, 1, 1)
    for name, layer in shapes.layers.items():
        assert [blob.shape for blob in cut.get(name, [])] == list(layer.params)
    assert report.smallest_input == (7, 9)  # pooling rounds up: 5 x 7 pixels give 3 x 4 too
    assert report.stride == (Fraction(2), Fraction(2))
    again, same, _ = convolutionize(new, cut)
    assert again == new
    assert same is not None
    assert list(same) == list(cut)


def test_the_definition_of_a_converted_layer() -> None:
    n = trunk()
    n.ip1 = L.InnerProduct(
        n.pool, num_output=5, bias_term=False, axis=1, loss_weight=2, propagate_down=True,
        weight_filler={"type": "xavier"}, bias_filler={"value": 0.5}, include={"phase": "TEST"},
        param=[{"lr_mult": 10, "decay_mult": 0}],
    )  # fmt: skip
    n.score = L.InnerProduct(n.ip1, num_output=4)
    new, weights, _ = convolutionize(n.to_proto())
    assert weights is None
    assert list(new.layer)[-2:] == list(parsed("""
        layer { name: "ip1" type: "Convolution" bottom: "pool" top: "ip1" loss_weight: 2
                include { phase: TEST } param { lr_mult: 10 decay_mult: 0 } propagate_down: true
                convolution_param { num_output: 5 bias_term: false kernel_h: 3 kernel_w: 4
                                    weight_filler { type: "xavier" } bias_filler { value: 0.5 } } }
        layer { name: "score" type: "Convolution" bottom: "ip1" top: "score"
                convolution_param { num_output: 4 kernel_size: 1 } }""").layer)  # fmt: skip
    assert list(new.layer)[:-2] == list(trunk().to_proto().layer)


def test_weights_are_views_unless_transposed() -> None:
    net = plain().to_proto()
    weights = filled(net)
    _, cut, _ = convolutionize(net, weights)
    assert cut is not None
    assert all(np.shares_memory(weights[name][0], cut[name][0]) for name in weights)
    assert cut["ip1"][0].ravel().tolist() == weights["ip1"][0].ravel().tolist()
    assert cut.net is not None
    assert cut.net.layer[-1].type == "Softmax"


def test_the_input_size_sets_the_kernel() -> None:
    new, _, report = convolutionize(plain().to_proto(), input_shapes={"data": (3, 2, 8, 8)})
    assert [layer.kernel for layer in report.layers] == [(3, 3), (1, 1), (1, 1)]
    assert report.layers[0].new_shape == (5, 3, 3, 3)
    assert report.smallest_input == (7, 7)
    assert [list(layer.convolution_param.kernel_size) for layer in new.layer if layer.name == "ip1"] == [[3]]


def test_old_nets_are_upgraded_first() -> None:
    new, _, report = convolutionize(parsed("""
        input: "data" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 4
        layers { name: "fc" type: INNER_PRODUCT bottom: "data" top: "fc" blobs_lr: 3
                 inner_product_param { num_output: 5 } }"""))  # fmt: skip
    assert [layer.type for layer in new.layer] == ["Input", "Convolution"]
    assert new.layer[1].param[0].lr_mult == 3
    assert report.layers[0].new_shape == (5, 2, 3, 4)


def test_layers_can_be_renamed_with_their_tops() -> None:
    net = plain().to_proto()
    new, cut, report = convolutionize(net, filled(net), rename={"ip1": "ip1-conv", "score": "score-conv"})
    layers = {layer.name: layer for layer in new.layer}
    assert "ip1" not in layers
    assert list(layers["ip1-conv"].top) == ["ip1-conv"]
    assert list(layers["relu1"].bottom) == list(layers["relu1"].top) == ["ip1-conv"]
    assert list(layers["prob"].bottom) == ["score-conv"]
    assert list(layers["prob"].top) == ["prob"]
    assert cut is not None
    assert "ip1-conv" in cut
    assert "ip1" not in cut
    assert [layer.new_name for layer in report.layers] == ["ip1-conv", "ip2", "score-conv"]


def test_a_flatten_with_other_readers_leaves_its_bottom_alone() -> None:
    """The in-place layer behind the absorbed Flatten must not write over the map that others read."""
    n = trunk()
    n.flat = L.Flatten(n.pool)
    n.relu0 = L.ReLU(n.flat, in_place=True)
    n.score = L.InnerProduct(n.relu0, num_output=4)
    n.features = L.Pooling(n.pool, kernel_size=1)
    new, _, _ = convolutionize(n.to_proto())
    layers = {layer.name: layer for layer in new.layer}
    assert (list(layers["relu0"].bottom), list(layers["relu0"].top)) == (["pool"], ["flat"])
    assert list(layers["score"].bottom) == ["flat"]


def test_losses_and_accuracy_stay_as_they_are() -> None:
    n = plain()
    n.label = L.Input(shape=[1])
    n.loss = L.SoftmaxWithLoss(n.score, n.label)
    n.accuracy = L.Accuracy(n.score, n.label)
    net = n.to_proto()
    new, _, _ = convolutionize(net)
    assert list(new.layer)[-2:] == list(net.layer)[-2:]
    assert infer_shapes(new).blobs["loss"] == ()


def test_global_pooling_can_stay() -> None:
    net = averaged().to_proto()
    new, _, report = convolutionize(net)
    assert new.layer[4].pooling_param == caffe_pb2.PoolingParameter(pool="AVE", kernel_h=3, kernel_w=4)
    assert report.notes == ["pool5: global pooling became 3 x 4 with stride 1, which slides"]
    new, _, report = convolutionize(net, slide_pooling=False)
    assert new.layer[4] == net.layer[4]
    assert report.stride is None
    assert report.smallest_input == (3, 3)
    assert report.notes == ["pool5: global pooling stays, one position for any input size"]


def test_other_layers_are_not_touched() -> None:
    """Flattened outputs that lead to no inner product, and global pooling in front of a convolution."""
    n = trunk()
    n.boxes = L.Flatten(L.Convolution(n.pool, num_output=4, kernel_size=1))
    n.squeeze = L.Pooling(n.pool, global_pooling=True)
    n.excite = L.Convolution(n.squeeze, num_output=3, kernel_size=1)
    net = n.to_proto()
    new, _, report = convolutionize(net)
    assert new == net
    assert report.layers == []
    assert report.smallest_input is not None
    assert report.notes == [
        "squeeze: global pooling stays, one position for any input size",
        "no InnerProduct layer: nothing to convert",
    ]


def test_weights_shared_with_an_absent_blob_and_legacy_shapes() -> None:
    n = trunk()
    n.a = L.InnerProduct(n.pool, num_output=5, param=[{"name": "w"}, {"name": "b"}])
    n.b = L.InnerProduct(n.pool, num_output=5, param=[{"name": "w"}, {"name": "b"}])
    net = n.to_proto()
    weights = filled(net)
    weights["a"] = [weights["a"][0].reshape(1, 1, 5, 36), weights["a"][1].reshape(1, 1, 1, 5)]
    weights["b"] = [ABSENT, ABSENT]
    _, cut, _ = convolutionize(net, weights)
    assert cut is not None
    assert [blob.shape for blob in cut["a"]] == [(5, 3, 3, 4), (5,)]
    assert [blob.size for blob in cut["b"]] == [0, 0]


def test_the_report_tells_what_was_done() -> None:
    net = flattened().to_proto()
    weights = filled(net)
    weights["aux"] = [np.zeros(3, np.float32)]
    report = convolutionize(net, weights, drop=True, rename={"ip1": "fc"})[2]
    assert str(report).splitlines() == [
        "ip1 -> fc: 5x36 -> 5x3x3x4, kernel 3x4; absorbed flat",
        "score: 4x5 -> 4x5x1x1, kernel 1x1; absorbed flat1",
        "absorbed flat",
        "absorbed flat1",
        "absorbed flat2",
        "prob: axis -1 became 1",
        "dropped aux.weight",
        "smallest input 7x9",
        "one output every 2 pixels",
    ]
    plain_data = json.loads(json.dumps(report.as_dict()))
    assert plain_data["stride"] == [2, 2]
    assert plain_data["smallest_input"] == [7, 9]
    assert plain_data["layers"][0] == {
        "name": "ip1", "new_name": "fc", "bottom": [1, 36], "old_shape": [5, 36], "new_shape": [5, 3, 3, 4],
        "kernel": [3, 4], "transposed": False, "absorbed": ["flat"], "notes": [],
    }  # fmt: skip


def test_an_absorbed_output_is_reported() -> None:
    n = trunk()
    n.score = L.InnerProduct(n.pool, num_output=4)
    n.out = L.Flatten(n.score)
    new, _, report = convolutionize(n.to_proto())
    assert new.layer[-1].name == "score"
    assert report.notes == ["out: absorbed, so the output is score instead of out"]


def test_transposed_weights_and_their_filler_are_reported() -> None:
    n = trunk()
    n.score = L.InnerProduct(n.pool, num_output=4, transpose=True, weight_filler={"type": "xavier"})
    (layer,) = convolutionize(n.to_proto())[2].layers
    assert layer.old_shape == (36, 4)
    assert layer.new_shape == (4, 3, 3, 4)
    assert layer.notes == ("transpose undone", "the xavier filler now counts the fans of a convolution")


def no_grid(n: Any) -> Any:
    n.vector = L.Input(shape=[1, 7])
    n.score = L.InnerProduct(n.vector, num_output=4)


def other_axis(n: Any) -> Any:
    n.score = L.InnerProduct(n.pool, num_output=4, axis=2)


def mixed_concat(n: Any) -> Any:
    n.vector = L.Input(shape=[1, 7])
    n.both = L.Concat(L.InnerProduct(n.pool, num_output=4), n.vector)


def two_sizes(n: Any) -> Any:
    n.joined = L.Concat(L.Flatten(n.pool), L.Flatten(n.conv))
    n.score = L.InnerProduct(n.joined, num_output=4)


def excitation(n: Any) -> Any:
    n.gate = L.InnerProduct(L.Pooling(n.pool, global_pooling=True), num_output=3)
    n.scaled = L.Scale(n.pool, n.gate, axis=0)


def overwritten(n: Any) -> Any:
    n.flat = L.Flatten(n.pool)
    n.late = L.ReLU(n.pool, in_place=True)
    n.score = L.InnerProduct(n.flat, num_output=4)


def shared_transposed(n: Any) -> Any:
    for name in "ab":
        n[name] = L.InnerProduct(n.pool, num_output=4, transpose=True, param=[{"name": "w"}])


def behind(**layers: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def build(n: Any) -> None:
        n.fc = L.InnerProduct(n.pool, num_output=4)
        for name, layer in layers.items():
            n[name] = layer(n.fc)

    return build


NET_ERRORS: list[tuple[Callable[[Any], Any], str]] = [
    (no_grid, "layer score (InnerProduct): bottom vector is 1x7, without a height and width; wanted a blob"),
    (other_axis, "layer score (InnerProduct): axis 2 of a bottom of 1x3x3x4; wanted axis 1"),
    (mixed_concat, "layer both (Concat): a converted bottom beside one that is not"),
    (two_sizes, "layer joined (Concat): its bottoms were flattened from maps of 3x4 and 6x8; wanted maps"),
    (excitation, "layer scaled (Scale): a converted bottom beside one that is not"),
    (overwritten, "layer score (InnerProduct): bottom flat was flattened from pool, overwritten since"),
    (shared_transposed, "layer a (InnerProduct): transposed weights, shared as w; wanted weights of its own"),
    (behind(r=lambda x: L.Reduction(x, axis=1)), "layer r (Reduction): reads 1x4 values that become a map"),
    (behind(s=lambda x: L.Softmax(x, axis=0)), "layer s (Softmax): axis 0 of 1x4; wanted axis 1"),
    (behind(c=lambda x: L.Concat(x, x, concat_dim=0)), "layer c (Concat): axis 0 of 1x4; wanted axis 1"),
    (behind(m=lambda x: L.ArgMax(x, out_max_val=True)), "layer m (ArgMax): out_max_val without an axis"),
    (behind(g=lambda x: L.Reshape(x, shape=[0, 2, 2])), "layer g (Reshape): reads 1x4 values"),
    (lambda n: behind(p=lambda x: L.InnerProduct(L.PReLU(L.Flatten(n.pool)), num_output=2))(n),
     "layer PReLU1 (PReLU): reads a flattened map of 3x3x4; wanted the output of an"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "message"), NET_ERRORS)
def test_what_cannot_slide_is_refused(build: Callable[[Any], Any], message: str) -> None:
    n = trunk()
    build(n)
    with pytest.raises(NetError, match=re.escape(message)):
        convolutionize(n.to_proto())


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"fc9": "x"}, "rename fc9: no InnerProduct layer of this name; wanted one of ip1, ip2, score"),
        ({"conv": "x"}, "rename conv: no InnerProduct layer of this name"),
        ({"ip1": "pool"}, "rename ip1: pool is already a layer or blob; wanted a new name"),
        ({"ip1": "x", "ip2": "x"}, "rename ip2: x is already a layer or blob"),
    ],
)
def test_bad_names(rename: dict[str, str], message: str) -> None:
    with pytest.raises(NetError, match=re.escape(message)):
        convolutionize(plain().to_proto(), rename=rename)


def test_a_new_name_must_not_be_in_the_weights() -> None:
    net = plain().to_proto()
    weights = filled(net)
    weights["ip1-conv"] = [np.zeros(1, np.float32)]
    with pytest.raises(WeightsError, match="layer ip1-conv: both renamed to and in the weights"):
        convolutionize(net, weights, rename={"ip1": "ip1-conv"}, drop=True)


@pytest.mark.parametrize(
    ("layer", "shapes", "message"),
    [
        (
            "ip1",
            [(5, 35), (5,)],
            "old.h5: layer ip1: weights of 5x35; wanted 5x36; use the net and input size",
        ),
        ("ip1", [(36, 5), (5,)], "old.h5: layer ip1: weights of 36x5; wanted 5x36"),
        ("ip1", [(5, 36)], "blob ip1.bias: no blob of this name in the source"),
        ("conv", [(3, 2, 3, 4), (3,)], "blob conv.weight: shape 3x2x3x4 with 72 values; wanted 3x2x3x3"),
        ("aux", [(1,)], "blob aux.weight: no blob of this name in the target"),
    ],
)
def test_weights_that_do_not_fit(layer: str, shapes: list[tuple[int, ...]], message: str) -> None:
    net = plain().to_proto()
    weights = Weights(filled(net), source="old.h5")
    weights[layer] = [np.zeros(shape, np.float32) for shape in shapes]
    with pytest.raises(WeightsError, match=re.escape(message)):
        convolutionize(net, weights)


def parsed(text: str) -> Net:
    return text_format.Parse(text, Net())
