"""Maps kept in blocks, and convolutions as products: the same results as the plain way and as float64."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as nnf

from caffe_weights.prototxt import parse_net
from reproduce import blocks
from reproduce.layers import product
from reproduce.net import Net
from reproduce.nets import Form, make_net
from reproduce.tolerances import CONV, GRADIENT, worst_difference
from surgery.geometry import Window

CHAIN = """
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 2 dim: 3 dim: 40 dim: 33 }} }} }}
layer {{ name: "a" type: "Convolution" bottom: "data" top: "a"
        convolution_param {{ num_output: 24 {conv} weight_filler {{ type: "msra" }}
                            bias_filler {{ type: "gaussian" std: 0.1 }} }} }}
layer {{ name: "r" type: "ReLU" bottom: "a" top: "{relu}" }}
layer {{ name: "p" type: "Pooling" bottom: "{relu}" top: "p" pooling_param {{ pool: MAX {pool} }} }}
layer {{ name: "b" type: "Convolution" bottom: "p" top: "b"
        convolution_param {{ num_output: 6 kernel_size: 3 pad: 1 group: 2
                            weight_filler {{ type: "msra" }} }} }}
layer {{ name: "s" type: "Sigmoid" bottom: "p" top: "s" }}
"""
CONVOLUTIONS = (
    "kernel_size: 3 pad: 1",
    "kernel_size: 5 stride: 2 dilation: 2 pad: 7",
    "kernel_h: 3 kernel_w: 1",
)
POOLS = (
    "kernel_size: 2 stride: 2",
    "kernel_size: 3 stride: 2 pad: 1",
    "kernel_size: 3 stride: 1 round_mode: FLOOR",
    "kernel_size: 2 stride: 3",
    "kernel_size: 3 pad: 2 stride: 2",
    "global_pooling: true",
)
CASES = list(itertools.product(CONVOLUTIONS, POOLS, ("a", "r")))
Results = dict[str, Tensor]


def both(
    net: Net, monkeypatch: pytest.MonkeyPatch, keep: list[str], **inputs: Tensor
) -> list[dict[str, Tensor]]:
    """Results in blocks wherever that can be, and without them."""
    results = []
    for least in (1, 1 << 60):
        monkeypatch.setattr(blocks, "LARGE", least)
        with torch.no_grad():
            results.append(net(keep=keep, **inputs))
    return results


@pytest.mark.parametrize(("conv", "pool", "relu"), CASES)
def test_blocks_change_nothing(conv: str, pool: str, relu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(parse_net(CHAIN.format(conv=conv, pool=pool, relu=relu)), seed=3)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 40, 33), np.float32))
    blocked, plain = both(net, monkeypatch, ["a", "p"], data=x)
    assert blocked.keys() == plain.keys()
    for name in plain:
        assert blocked[name].layout == torch.strided
        assert worst_difference(blocked[name].numpy(), plain[name].numpy())[0] <= CONV, name


@pytest.mark.parametrize("frame", [None, False])
def test_blocks_are_the_kernels_of_the_plain_way(frame: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(make_net("voc-fcn8s", form=Form(4)), seed=0, frame=frame)
    x = torch.from_numpy(np.random.default_rng(0).uniform(-120, 130, (1, 3, 210, 250)).astype(np.float32))
    keep = ["conv1_2", "pool2", "conv4_3", "pool4"]
    monkeypatch.setattr(blocks, "LARGE", 1 << 16)
    with torch.no_grad():
        blocked = net(data=x, keep=keep)
        monkeypatch.setattr(blocks, "run", lambda *arguments: None)
        plain = net(data=x, keep=keep)
    for name in plain:
        assert torch.equal(blocked[name], plain[name]), name


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_goes_caffes_way(odd: float, monkeypatch: pytest.MonkeyPatch) -> None:
    text = CHAIN.format(conv="kernel_size: 1", pool="kernel_size: 2 stride: 2", relu="r")
    net = Net(parse_net(text.replace('"ReLU"', '"AbsVal"')), seed=3)
    x = torch.zeros(2, 3, 40, 33)
    x[0, 0, 3, 3] = x[1, 2, 39, 32] = odd
    blocked, plain = both(net, monkeypatch, ["p"], data=x)
    assert torch.equal(blocked["p"].nan_to_num(nan=7), plain["p"].nan_to_num(nan=7))


@pytest.mark.filterwarnings("ignore:TF32")
def test_what_is_not_kept_in_blocks() -> None:
    assert blocks.possible(torch.zeros(1))
    assert not blocks.possible(torch.zeros(1, dtype=torch.float64))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not blocks.possible(torch.zeros(1))


@pytest.mark.parametrize("relu", ["a", "r"])
def test_gradients_are_those_of_the_plain_way(relu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = CHAIN.format(conv="kernel_size: 3 pad: 1", pool="kernel_size: 3 stride: 2", relu=relu)
    net = Net(parse_net(text), seed=3)
    steps = np.random.default_rng(0).integers(-1, 2, (2, 3, 40, 33))  # with ties
    found = []
    for least in (1, 1 << 60):
        monkeypatch.setattr(blocks, "LARGE", least)
        x = torch.from_numpy(steps.astype(np.float32)).requires_grad_()
        results = net(data=x, keep=[relu, "p"])
        total = sum(
            (blob * torch.linspace(-1, 1, blob.numel()).view_as(blob)).sum() for blob in results.values()
        )
        found.append(torch.autograd.grad(total, [x, *net.parameters()]))
    for blocked, plain in zip(*found, strict=True):
        assert worst_difference(blocked.numpy(), plain.numpy())[0] <= GRADIENT


def test_a_layer_that_stops_gradients_stops_them_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "LARGE", 1)
    text = CHAIN.format(conv="kernel_size: 3", pool="kernel_size: 2 stride: 2", relu="r")
    net = Net(
        parse_net(text.replace('bottom: "p" top: "b"', 'bottom: "p" top: "b" propagate_down: false')), seed=1
    )
    net(data=torch.ones(2, 3, 40, 33))["b"].sum().backward()
    assert net.params["b"][0].grad is not None and net.params["a"][0].grad is None


WINDOWS = (
    Window((7, 7), (1, 1), (0, 0), (1, 1)), Window((3, 2), (2, 1), (1, 2), (1, 1)),
    Window((3, 3), (1, 2), (2, 2), (2, 2)), Window((1, 1), (1, 1), (0, 0), (1, 1)),
)  # fmt: skip


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("rows_bytes", [1, 1 << 14, 1 << 25])
def test_a_product_is_the_convolution(
    window: Window, rows_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "ROWS_BYTES", rows_bytes)
    rng = np.random.default_rng(0)
    shapes = (2, 6, 13, 15), (20, 6, *window.kernel), (20,)
    x, weight, bias = (torch.from_numpy(rng.standard_normal(shape)) for shape in shapes)
    exact = nnf.conv2d(x, weight, bias, window.stride, window.pad, window.dilation)
    with torch.no_grad():
        with_bias = product.multiply(x.float(), weight.float(), bias.float(), window)
        without = product.multiply(x.float(), weight.float(), None, window)
    assert worst_difference(with_bias.double().numpy(), exact.numpy())[0] <= CONV
    assert worst_difference(without.double().numpy(), (exact - bias[:, None, None]).numpy())[0] <= CONV


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("rows_bytes", [1, 1 << 25])
def test_gradients_of_a_product(window: Window, rows_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "ROWS_BYTES", rows_bytes)
    rng = np.random.default_rng(0)
    shapes = (2, 6, 13, 15), (20, 6, *window.kernel), (20,)
    leaves = [torch.from_numpy(rng.standard_normal(shape)).requires_grad_() for shape in shapes]
    x, weight, bias = leaves
    exact = nnf.conv2d(x, weight, bias, window.stride, window.pad, window.dilation)
    seed = torch.from_numpy(rng.standard_normal(exact.shape))
    wanted = torch.autograd.grad(exact, leaves, seed)
    singles = [leaf.detach().float().requires_grad_() for leaf in leaves]
    x, weight, bias = singles
    got = torch.autograd.grad(product.multiply(x, weight, bias, window), singles, seed.float())
    for one, want in zip(got, wanted, strict=True):
        assert worst_difference(one.double().numpy(), want.numpy())[0] <= CONV


def test_large_weights_are_multiplied_and_small_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(make_net("voc-fcn32s", form=Form(16)), seed=0)
    seen: list[tuple[int, ...]] = []

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        seen.append(tuple(weight.shape))
        return product.multiply(x, weight, bias, window)

    monkeypatch.setattr(product, "LARGE_WEIGHTS", 256 * 32 * 49)
    monkeypatch.setattr("reproduce.layers.convolution.multiply", noted)
    with torch.no_grad():
        net(data=torch.zeros(1, 3, 40, 40))
    assert seen == [(256, 32, 7, 7)]
    net.double()(data=torch.zeros(1, 3, 40, 40))
    assert len(seen) == 1


def test_a_convolution_over_other_axes_is_left_to_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }
layer { name: "c" type: "Convolution" bottom: "data" top: "c"
        convolution_param { axis: 2 num_output: 1 kernel_size: 2 } }"""
    net = Net(parse_net(text))
    net.params["c"][0].data.fill_(1.0)
    x = torch.arange(120.0).reshape(2, 3, 4, 5)
    want = x.numpy()[..., :4].sum(2, keepdims=True) + x.numpy()[..., 1:].sum(2, keepdims=True)
    for values in both(net, monkeypatch, [], data=x):
        assert np.array_equal(values["c"].numpy(), want)


def test_gradients_of_large_weights_can_come_last_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "LARGE_WEIGHTS", 256 * 256)
    net = Net(make_net("voc-fcn32s", form=Form(16)), seed=0)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 0.05)
    first, large = net.params["conv1_1"][0], (net.params["fc6"][0], net.params["fc7"][0])
    without: list[bool] = []
    first.register_post_accumulate_grad_hook(lambda _: without.append(all(p.grad is None for p in large)))
    pictures = torch.randn(2, 1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    found = []
    for way in (nullcontext, product.weights_last):
        net.zero_grad()
        for x in pictures:  # the second adds to the first
            with way():
                net(data=x)["score"].square().sum().backward()
        found.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert without == [False, False, True, False]
    assert len(found[0]) >= 2 * 15
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
