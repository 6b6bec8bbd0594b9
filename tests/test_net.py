"""The runtime's contract: names, sizes, phases, weights, labels, memory, and being an ordinary module."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from small_net import BODY, INPUTS, KEYS, SMALL, image, small
from torch import Tensor

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from caffe_weights.prototxt import parse_net
from reproduce.layers import LAYERS
from reproduce.layers.base import Layer
from reproduce.net import Net


def one_layer(kind: str, more: str = "", shape: str = "dim: 2 dim: 3 dim: 4 dim: 4") -> str:
    return f"""
    layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {shape} }} }} }}
    layer {{ name: "l" type: "{kind}" bottom: "x" top: "y" {more} }}
    """


def test_names_of_inputs_outputs_blobs_and_parameters() -> None:
    net = small()
    assert net.inputs == ["data", "label"]
    assert net.outputs == ["loss", "prob"]
    assert net.blobs == ["data", "label", "c", "pool", "ip", "loss", "prob"]
    assert list(net.state_dict()) == KEYS
    assert [tuple(p.shape) for p in net.params["conv.1"]] == [(4, 3, 3, 3), (4,)]
    assert [tuple(p.shape) for p in net.params["ip"]] == [(5, 36), (5,)]
    assert [p.requires_grad for p in net.params["conv.1"]] == [True, False]  # lr_mult 0
    assert net.params["ip"][0] is dict(net.named_parameters())["ip.weight"]


def test_equals_the_same_layers_of_pytorch() -> None:
    net, x = small(), image()
    nnf = torch.nn.functional
    (weight, bias), (matrix, offset) = net.params["conv.1"], net.params["ip"]
    pool = nnf.max_pool2d(torch.relu(nnf.conv2d(x, weight, bias)), 2)
    score = nnf.linear(pool.flatten(1), matrix, offset)
    out = net(data=x, label=[3, 0], keep=["pool"])
    assert list(out) == ["loss", "prob", "pool"]
    torch.testing.assert_close(out["prob"], score.softmax(1))
    torch.testing.assert_close(out["loss"], nnf.cross_entropy(score, torch.tensor([3, 0])))
    torch.testing.assert_close(out["pool"], pool)


def test_kept_blob_is_its_final_version_and_memory_modes_agree() -> None:
    net, x = small(), image()
    with_gradients = net(data=x, keep=net.blobs[:1] + net.blobs[2:5])
    assert bool((with_gradients["c"] >= 0).all())  # rectified in place
    with torch.no_grad():
        without = net(data=x, keep=["c"])
    assert torch.equal(without["c"], with_gradients["c"])
    assert torch.equal(without["prob"], with_gradients["prob"])


def test_caller_s_tensor_and_its_other_readers_are_never_overwritten() -> None:
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "r" type: "ReLU" bottom: "x" top: "x" }
    layer { name: "p" type: "Power" bottom: "x" top: "p" power_param { shift: -0.5 } }
    layer { name: "f" type: "Flatten" bottom: "p" top: "f" }
    layer { name: "q" type: "ReLU" bottom: "f" top: "q" }
    layer { name: "s" type: "Sigmoid" bottom: "p" top: "s" }
    layer { name: "t" type: "ReLU" bottom: "s" top: "t" }
    """
    x = torch.tensor([[-1.0, 2.0, 0.25], [0.5, -3.0, 1.0]])
    before = x.clone()
    with torch.no_grad():
        out = Net(parse_net(text))(x=x, keep=["p"])
    rectified = before.clamp(min=0)
    assert torch.equal(x, before)
    assert torch.equal(out["p"], rectified - 0.5)
    assert torch.equal(out["q"], (rectified - 0.5).clamp(min=0))
    torch.testing.assert_close(out["t"], torch.sigmoid(rectified - 0.5))


def test_blobs_are_freed_when_nothing_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Tensor]] = []
    counts = []

    class Probe(Layer):
        def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
            gc.collect()
            counts.append(sum(ref() is not None for ref in alive))
            top = bottoms[0] + 1
            alive.append(weakref.ref(top))
            return [top]

    monkeypatch.setitem(LAYERS, "Power", Probe)
    lines = [f'layer {{ name: "p{i}" type: "Power" bottom: "b{i}" top: "b{i + 1}" }}' for i in range(6)]
    start = 'layer { name: "b0" type: "Input" top: "b0" input_param { shape { dim: 4 } } }'
    net = Net(parse_net(start + "\n".join(lines)))
    with torch.no_grad():
        net(b0=torch.zeros(4))
    assert max(counts) == 1  # the bottom itself
    counts.clear()
    with torch.no_grad():
        kept = net(b0=torch.zeros(4), keep=["b2"])
    assert max(counts) == 2 and float(kept["b2"][0]) == 2


def test_any_input_size_runs_and_a_misfit_says_why() -> None:
    body = BODY.replace('"InnerProduct"', '"Convolution"').replace(
        "inner_product_param {", "convolution_param { kernel_size: 3"
    )
    net = Net(parse_net(INPUTS + body), seed=1)
    assert net(data=image(1, 8))["prob"].shape == (1, 5, 1, 1)
    assert net(data=image(3, 14))["prob"].shape == (3, 5, 4, 4)
    assert net.shapes({"data": (2, 3, 20, 9)}).blobs["pool"] == (2, 4, 9, 4)
    with pytest.raises(NetError, match=r"input data: 1x2x8x8 needs conv.1.weight of 4x2x3x3; .*4x3x3x3"):
        net(data=torch.zeros(1, 2, 8, 8))
    with pytest.raises(NetError, match=r"input data: shape 3x8x8 of 3 axes; wanted 4 axes, as in 1x3x8x8"):
        net(data=torch.zeros(3, 8, 8))
    with pytest.raises(NetError, match=r"layer conv.1 \(Convolution\): top c would be 1x4x0x0"):
        net(data=torch.zeros(1, 3, 2, 2))
    with pytest.raises(NetError, match=r"layer ip: bottom pool: 1x4x4x4 needs ip.weight of 5x64"):
        small()(data=torch.zeros(1, 3, 9, 9))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"dat": 1}, "input dat: the net has no input of this name; wanted data or label"),
        ({}, "input data: not given; wanted data"),
        ({"data": "picture"}, "input data: values of type <U7; wanted numbers"),
        ({"data": [[1.0], [1.0, 2.0]]}, "input data: lists of unequal lengths; wanted numbers"),
        (
            {"data": torch.zeros(1, 3, 8, 8, dtype=torch.complex64)},
            "input data: values of type torch.complex64",
        ),
        ({"data": image(), "keep": ["pol"]}, "blob pol: the net has no blob of this name; wanted pool"),
        ({"data": image(), "keep": ["loss"]}, "blob loss: it depends on label, not given; wanted label"),
        ({"data": image(), "label": [0, 5]}, r"layer loss .*: value 5 at index 1 .*; wanted 0 to 4"),
        ({"data": image(), "label": [0, -1]}, "value -1 at index 1"),
        ({"data": image(), "label": [0, float("nan")]}, "value nan at index 1"),
        ({"data": image(), "label": [0, 1, 2]}, r"layer loss .*ip 2x5, label 3"),
    ],
)
def test_a_bad_call_says_what_was_wanted(call: dict[str, object], message: str) -> None:
    with pytest.raises(NetError, match=message):
        small()(**call)


def test_inputs_of_every_kind() -> None:
    net, x = small(), image()
    want = net(data=x, label=[1, 2])["loss"]
    fixed = x.numpy().copy()
    fixed.setflags(write=False)
    big_endian = x.numpy().astype(">f8")
    backwards = np.ascontiguousarray(x.numpy()[:, :, ::-1])[:, :, ::-1]
    for data in (fixed, big_endian, backwards, x.double(), x.tolist()):
        for label in (
            np.array([1, 2], np.uint8),
            torch.tensor([1, 2]),
            np.array([1, 2], np.float32),
            [1.9, 2.0],
        ):  # cut, as in C
            assert torch.equal(net(data=data, label=label)["loss"], want)


def test_missing_label_leaves_out_what_depends_on_it() -> None:
    text = (
        SMALL
        + """
    layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" }
    layer { name: "twice" type: "Power" bottom: "loss" top: "twice" power_param { scale: 2 } }
    """
    )
    net = Net(parse_net(text), seed=1)
    assert list(net(data=image())) == ["prob"]
    out = net(data=image(), label=[0, 0])
    assert list(out) == ["prob", "acc", "twice"]
    with pytest.raises(NetError, match="no loss among the blobs; wanted loss; give the labels"):
        net.total_loss(net(data=image()))


def test_label_cut_in_two_may_be_missing_but_data_may_not() -> None:
    text = (
        INPUTS.replace("dim: 1 }", "dim: 1 dim: 2 }")
        + BODY.replace('bottom: "label"', 'bottom: "a"')
        + """
    layer { name: "other" type: "Accuracy" bottom: "ip" bottom: "b" top: "acc" }
    """
    )
    slices = 'layer { name: "cut" type: "Slice" bottom: "label" top: "a" top: "b" }'
    definition = parse_net(text + slices)
    definition.layer.insert(2, definition.layer.pop())
    net = Net(definition, seed=1)
    assert list(net(data=image())) == ["prob"]
    with pytest.raises(NetError, match="input data: not given"):
        net(label=[[0, 1], [0, 1]])


def test_total_loss_weighs_losses_and_gradients_accumulate() -> None:
    text = SMALL.replace('bottom: "label" top: "loss" }', 'bottom: "label" top: "loss" loss_weight: 3 }')
    text = text.replace('bottom: "ip" top: "prob" }', 'bottom: "ip" top: "prob" loss_weight: 0.5 }')
    net = Net(parse_net(text), seed=1)
    assert net.loss_weights == {"loss": 3.0, "prob": 0.5}
    out = net(data=image(), label=[1, 2])
    total = net.total_loss(out)
    torch.testing.assert_close(total, 3 * out["loss"] + 0.5 * out["prob"].sum())
    total.backward()
    once = net.params["ip"][0].grad
    assert once is not None
    once = once.clone()
    net.total_loss(net(data=image(), label=[1, 2])).backward()
    torch.testing.assert_close(net.params["ip"][0].grad, 2 * once)
    assert net.params["conv.1"][1].grad is None


def test_a_weighted_top_that_another_layer_reads_counts() -> None:
    text = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 } } }
layer { name: "b" type: "Bias" bottom: "x" top: "b" bias_param { axis: 0 num_axes: 1 } }
layer { name: "sum" type: "Reduction" bottom: "b" top: "sum" loss_weight: 0.5 }
layer { name: "twice" type: "Power" bottom: "sum" top: "twice" power_param { scale: 2 } loss_weight: 3 }"""
    net = Net(parse_net(text))
    out = net(x=[1, 2, 4])
    assert out["twice"].item() == 14
    total = net.total_loss(out)  # 0.5 * 7 + 3 * 14
    assert total.item() == 45.5
    total.backward()
    grad = net.params["b"][0].grad
    assert grad is not None and grad.tolist() == [6.5, 6.5, 6.5]  # as Caffe has it


def test_a_loss_without_a_top_counts() -> None:
    net = Net(parse_net(SMALL.replace('bottom: "label" top: "loss" }', 'bottom: "label" }')), seed=1)
    out = net(data=image(), label=[1, 2])
    torch.testing.assert_close(net.total_loss(out), small()(data=image(), label=[1, 2])["loss"])


def test_propagate_down_false_stops_the_gradient() -> None:
    definition = parse_net(SMALL)
    definition.layer[6].propagate_down.append(False)  # ip
    net = Net(definition, seed=1)
    net.total_loss(net(data=image(), label=[1, 2])).backward()
    assert net.params["ip"][0].grad is not None
    assert net.params["conv.1"][0].grad is None


@pytest.mark.parametrize(("passes", "want"), [("", [4.0, 4.0]), ("propagate_down: false", None)])
def test_propagate_down_false_of_a_split_stops_the_gradient(passes: str, want: list[float] | None) -> None:
    text = f"""
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 }} }} }}
layer {{ name: "a" type: "Bias" bottom: "x" top: "a" bias_param {{ axis: 0 num_axes: 1 }} }}
layer {{ name: "s" type: "Split" bottom: "a" top: "s1" top: "s2" {passes} }}
layer {{ name: "b" type: "Bias" bottom: "s1" top: "b" bias_param {{ axis: 0 num_axes: 1 }} }}
layer {{ name: "r1" type: "Reduction" bottom: "b" top: "r1" loss_weight: 1 }}
layer {{ name: "r2" type: "Reduction" bottom: "s2" top: "r2" loss_weight: 3 }}"""
    net = Net(parse_net(text))
    net.total_loss(net(x=[1, 2])).backward()
    above, below = net.params["b"][0].grad, net.params["a"][0].grad
    assert above is not None and above.tolist() == [1, 1]
    assert (below is None) if want is None else (below is not None and below.tolist() == want)


def test_phase_is_caffe_s_and_fixed() -> None:
    x = image()
    train = small(phase="TRAIN")
    assert train.training
    torch.manual_seed(0)
    dropped = train.eval()(data=x, keep=["pool"])["pool"]
    whole = small().train()(data=x, keep=["pool"])["pool"]
    zeros = (dropped == 0) & (whole != 0)
    assert 0.3 < float(zeros.float().mean() / (whole != 0).float().mean()) < 0.7
    assert torch.equal(dropped[~zeros & (whole != 0)], 2 * whole[~zeros & (whole != 0)])
    torch.manual_seed(0)
    assert torch.equal(train(data=x, keep=["pool"])["pool"], dropped)


def test_layers_are_chosen_by_phase_level_and_stage() -> None:
    text = (
        SMALL
        + """
    layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc"
            include { phase: TEST stage: "score" min_level: 2 } }
    """
    )
    net = parse_net(text)
    assert "acc" not in Net(net).outputs
    assert "acc" not in Net(net, phase="TRAIN", level=2, stages=["score"]).outputs
    assert "acc" in Net(net, phase="TEST", level=2, stages=["score"]).outputs
    net.state.phase, net.state.level = caffe_pb2.TEST, 2
    net.state.stage.append("score")
    assert "acc" in Net(net, phase=None).outputs


def test_unknown_type_names_the_nearest() -> None:
    with pytest.raises(NetError, match=r"layer l .*unknown layer type 'Convolutoin'; wanted Convolution"):
        Net(parse_net(one_layer("Convolutoin")))


def test_unknown_filler_names_the_layer() -> None:
    with pytest.raises(NetError, match="layer conv.1: filler xavie: unknown type"):
        Net(parse_net(SMALL.replace("xavier", "xavie")))


def test_crop_without_param_means_offset_0_or_alignment() -> None:
    text = """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 8 dim: 8 } } }
    layer { name: "c" type: "Convolution" bottom: "data" top: "c"
            convolution_param { num_output: 1 kernel_size: 3 pad: 5 weight_filler { value: 1 } } }
    layer { name: "crop" type: "Crop" bottom: "c" bottom: "data" top: "y" }
    """
    x = torch.rand(1, 1, 8, 8)
    whole = torch.nn.functional.conv2d(x, torch.ones(1, 1, 3, 3), padding=5)
    assert torch.equal(Net(parse_net(text))(data=x)["y"], whole[:, :, :8, :8])
    assert torch.equal(Net(parse_net(text), crop="auto")(data=x)["y"], whole[:, :, 4:12, 4:12])
    with pytest.raises(NetError, match="crop: 'fork'; wanted bvlc or auto"):
        Net(parse_net(text), crop="fork")


def test_double_copy_pickle_and_an_optimizer() -> None:
    net, x = small(), image()
    want = net(data=x)["prob"]
    twin, other = copy.deepcopy(net), pickle.loads(pickle.dumps(net))
    with torch.no_grad():
        twin.params["ip"][0].zero_()
    assert torch.equal(net(data=x)["prob"], want) and torch.equal(other(data=x)["prob"], want)
    assert torch.equal(twin(data=x)["prob"], torch.full((2, 5), 0.2))
    exact = other.double()(data=x)["prob"]
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), want)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = net.total_loss(net(data=x, label=[1, 2]))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_functional_call_finds_every_parameter() -> None:
    net, x = small(), image()
    zero = {key: torch.zeros_like(value) for key, value in net.state_dict().items()}
    out = torch.func.functional_call(net, zero, (), {"data": x})
    assert torch.equal(out["prob"], torch.full((2, 5), 0.2))
    assert not torch.equal(net(data=x)["prob"], out["prob"])


def test_graph_export_follows_the_net() -> None:
    net, x = small(), image(1)
    exported = torch.export.export(net, (), {"data": x})
    targets = {str(node.target) for node in exported.graph.nodes}
    assert {
        "aten.conv2d.default",
        "aten.relu.default",
        "aten.max_pool2d.default",
        "aten.linear.default",
    } <= targets
    for seed in (1, 2):
        y = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(exported.module()(data=y)["prob"], net(data=y)["prob"])


def test_describes_itself() -> None:
    assert repr(small()) == "Net(unnamed, TEST, 9 layers, 297 parameters, data, label -> loss, prob)"
