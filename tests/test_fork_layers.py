"""Layers of the DeconvNet and SegNet forks against loops in float64 numpy, written from the forks' rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from layer_nets import draw, net_of, run
from torch import Tensor

from caffe_weights.errors import NetError
from caffe_weights.prototxt import parse_net
from reproduce.layers.unpooling import Last, assign
from reproduce.net import Net

POOLED = """
layer { name: "a" type: "Input" top: "a" input_param { shape { dim: 2 dim: 3 dim: 12 dim: 10 } } }
layer { name: "pool" type: "Pooling" bottom: "a" top: "y0" top: "y1"
        pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "up" type: "Unpooling" bottom: "y0" bottom: "y1" top: "y2"
        unpooling_param { kernel_size: 2 stride: 2 unpool_h: 12 unpool_w: 10 } }
"""


def pooled_by_loops(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maxima of 2 x 2 windows and their flat places; the first in raster order of equal ones."""
    n, c, height, width = x.shape
    top, mask = np.empty((n, c, height // 2, width // 2)), np.empty((n, c, height // 2, width // 2))
    for i, j, row, column in np.ndindex(top.shape):
        best, place = -np.inf, -1
        for h in (2 * row, 2 * row + 1):
            for w in (2 * column, 2 * column + 1):
                if x[i, j, h, w] > best:
                    best, place = x[i, j, h, w], h * width + w
        top[i, j, row, column], mask[i, j, row, column] = best, place
    return top, mask


def unpooled_by_loops(
    x: np.ndarray, method: str, kernel: tuple[int, int], stride: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Unpooling without a mask."""
    y = np.zeros((*x.shape[:2], *size))
    for n, c, row, column in np.ndindex(x.shape):
        top, left = row * stride[0], column * stride[1]
        if method == "MAX":
            y[n, c, min(top, size[0] - 1), min(left, size[1] - 1)] = x[n, c, row, column]
            continue
        places = list(itertools.product(range(top, min(top + kernel[0], size[0])),
                                        range(left, min(left + kernel[1], size[1]))))  # fmt: skip
        for h, w in places:
            y[n, c, h, w] += x[n, c, row, column] / (len(places) if method == "AVE" else 1)
    return y


@pytest.mark.parametrize("kind", ["drawn", "after a ReLU", "all equal"])
def test_masks_and_unpooling_are_those_of_the_loops(kind: str) -> None:
    x = draw(2, 3, 12, 10)
    x = {"drawn": x, "after a ReLU": x.clamp(min=0), "all equal": torch.full_like(x, 3.0)}[kind]
    net = Net(parse_net(POOLED)).double()
    top, mask, back = run(net, x)
    wanted, places = pooled_by_loops(x.numpy())
    np.testing.assert_array_equal(top, wanted)
    np.testing.assert_array_equal(mask, places)
    expected = np.zeros((2, 3, 120))
    np.put_along_axis(expected, places.reshape(2, 3, -1).astype(int), wanted.reshape(2, 3, -1), 2)
    np.testing.assert_array_equal(back, expected.reshape(2, 3, 12, 10))


def test_of_equal_values_the_first_in_raster_order_wins_and_takes_the_gradient() -> None:
    x = torch.zeros(1, 1, 4, 6, dtype=torch.float64, requires_grad=True)
    net = net_of("Pooling", [(1, 1, 4, 6)], "pooling_param { kernel_size: 2 stride: 2 }", tops=2)
    y, mask = run(net, x)
    assert mask.flatten().tolist() == [0, 2, 4, 12, 14, 16]
    y.sum().backward()
    assert x.grad is not None and x.grad.flatten().nonzero().flatten().tolist() == [0, 2, 4, 12, 14, 16]


def test_a_window_of_nan_has_mask_minus_one_and_unpooling_says_so() -> None:
    x = draw(2, 3, 12, 10)
    x[1, 2, 4:6, 2:4] = torch.nan
    net = net_of("Pooling", [(2, 3, 12, 10)], "pooling_param { kernel_size: 2 stride: 2 }", tops=2)
    _, mask = run(net, x)
    assert (mask == -1).nonzero().tolist() == [[1, 2, 2, 1]]
    with pytest.raises(NetError, match=r"layer up .*mask value -1 at index .*only NaN"):
        run(Net(parse_net(POOLED)).double(), x)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_masks_stay_exact_in_half_precision(half: torch.dtype, autocast: bool) -> None:
    """A 224 x 224 plane: places up to 50,175, where bfloat16 has 8 bits and float16 ends at 65,504."""
    more = "pooling_param { kernel_size: 2 stride: 2 }"
    x = torch.arange(224 * 224, dtype=torch.float32).reshape(1, 1, 224, 224).flip(3).to(half).float()
    net = net_of("Pooling", [(1, 1, 224, 224)], more, tops=2)
    _, wanted = pooled_by_loops(x.numpy())
    net = net.float() if autocast else net.to(half)
    with torch.autocast("cpu", half, enabled=autocast):
        _, mask = run(net, x)
    np.testing.assert_array_equal(mask.double().numpy(), wanted)


def test_unpooling_keeps_masks_exact_under_autocast() -> None:
    text = POOLED.replace("dim: 12 dim: 10", "dim: 300 dim: 302").replace("h: 12", "h: 300").replace(
        "w: 10", "w: 302")  # fmt: skip
    net = Net(parse_net(text))
    x = draw(1, 2, 300, 302).to(torch.bfloat16).float()
    with torch.autocast("cpu", torch.bfloat16):
        top, mask, back = run(net, x)
    places = mask.long().flatten(2)
    assert torch.equal(x.flatten(2).gather(2, places), top.float().flatten(2))
    assert torch.equal(back.float().flatten(2).gather(2, places), top.float().flatten(2))
    assert int((back != 0).sum()) == int((top != 0).sum())


SHAPES = [(2, 2, 2, 4), (3, 2, 2, 2), (2, 3, 3, 1), (1, 1, 2, 2)]  # kernel h, w, stride h, w
SIZES = [(6, 8), (7, 9), (5, 20), (3, 3)]


@pytest.mark.parametrize("method", ["MAX", "AVE", "TILE"])
@pytest.mark.parametrize("window", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_unpooling_without_a_mask(
    method: str, window: tuple[int, int, int, int], size: tuple[int, int]
) -> None:
    kernel, stride = window[:2], window[2:]
    more = (f"unpooling_param {{ unpool: {method} kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: "
            f"{stride[0]} stride_w: {stride[1]} unpool_h: {size[0]} unpool_w: {size[1]} }}")  # fmt: skip
    x = draw(2, 3, 3, 4).requires_grad_()
    (y,) = run(net_of("Unpooling", [(2, 3, 3, 4)], more), x)
    wanted = unpooled_by_loops(x.detach().numpy(), method, kernel, stride, size)
    np.testing.assert_allclose(y.detach(), wanted, atol=1e-14)
    if method != "MAX":  # linear: <y, 1> is <x, gradient>, also where a window lies beyond the top
        (got,) = torch.autograd.grad(y.sum(), x)
        ones = unpooled_by_loops(np.ones((1, 1, 3, 4)), method, kernel, stride, size)
        assert bool(got.isfinite().all())
        assert float(got[0, 0].sum()) == pytest.approx(ones.sum(), rel=1e-13)


@pytest.mark.parametrize("device", ["cpu", "others"])
def test_of_equal_places_the_last_value_stays_and_each_gets_the_gradient(device: str) -> None:
    """As top[mask[i]] = bottom[i] and bottom_diff[i] = top_diff[mask[i]] have it; both ways of doing it."""

    def put(x: Tensor, mask: Tensor, size: tuple[int, int]) -> Tensor:
        if device == "cpu":
            return assign(x, mask, size, repeats=True)
        return Last.apply(x.flatten(2), mask.flatten(2), size[0] * size[1])

    values, places = draw(3, 4, 50, 20), np.random.default_rng(0).integers(0, 100, (3, 4, 50, 20))
    wanted = np.zeros((3, 4, 100))
    for n, c, row, column in np.ndindex(places.shape):
        wanted[n, c, places[n, c, row, column]] = values[n, c, row, column]
    np.testing.assert_array_equal(put(values, torch.from_numpy(places), (10, 10)).flatten(2), wanted)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], requires_grad=True)
    y = put(x, torch.tensor([[[[5, 1], [5, 1]]]]), (2, 3))
    assert y.flatten().tolist() == [0, 4, 0, 0, 0, 3]
    (y.flatten() * torch.arange(6.0)).sum().backward()
    assert x.grad is not None and x.grad.flatten().tolist() == [5, 1, 5, 1]


@pytest.mark.parametrize("place", [-1, 16, 1e9, float("nan")])
@pytest.mark.parametrize(
    ("kind", "more"),
    [("Unpooling", "unpooling_param { kernel_size: 2 stride: 2 unpool_size: 4 }"), ("Upsample", "")],
)
def test_a_mask_out_of_range_is_refused(kind: str, more: str, place: float) -> None:
    net = net_of(kind, [(1, 2, 2, 2)] * 2, more)
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    mask[0, 1, 0, 1] = place
    with pytest.raises(NetError, match=r"layer l .*at index 5; wanted 0 to 15, a place of the 4x4 top"):
        run(net, draw(1, 2, 2, 2), mask)


def test_faithful_unpooling_has_the_forks_ways() -> None:
    """TILE's gradient divided by the window's size, and AVE and TILE added to what the top held."""
    more = "unpooling_param { unpool: TILE kernel_size: 2 stride: 2 unpool_size: 4 }"
    x = draw(1, 1, 2, 2).requires_grad_()
    weight = draw(1, 1, 4, 4, seed=1)
    net = net_of("Unpooling", [(1, 1, 2, 2)], more)
    (clean,) = run(net, x)
    (adjoint,) = torch.autograd.grad((clean * weight).sum(), x)
    sums = weight.reshape(2, 2, 2, 2).sum((1, 3)).reshape(1, 1, 2, 2)
    torch.testing.assert_close(adjoint, sums)
    net.layer("l").faithful = True  # type: ignore[attr-defined]
    (first,), (second,) = run(net, x), run(net, x)
    torch.testing.assert_close(first, clean)
    torch.testing.assert_close(second, 2 * clean)
    torch.testing.assert_close(torch.autograd.grad((first * weight).sum(), x)[0], sums / 4)


@pytest.mark.parametrize(
    ("more", "size"),
    [("", (6, 10)), ("scale: 3", (9, 15)), ("scale_h: 2 scale_w: 4", (6, 20)),
     ("pad_out_h: true pad_out_w: true", (5, 9)), ("upsample_h: 7 upsample_w: 11", (7, 11))],
)  # fmt: skip
def test_upsample_puts_values_back(more: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    places = np.stack([rng.permutation(size[0] * size[1])[:15] for _ in range(6)]).reshape(2, 3, 3, 5)
    x = draw(2, 3, 3, 5)
    (y,) = run(net_of("Upsample", [(2, 3, 3, 5)] * 2, f"upsample_param {{ {more} }}"), x,
               torch.from_numpy(places).double())  # fmt: skip
    wanted = np.zeros((2, 3, *size))
    for n, c, row, column in np.ndindex(x.shape):
        place = places[n, c, row, column]
        wanted[n, c, place // size[1], place % size[1]] = x[n, c, row, column]
    np.testing.assert_array_equal(y, wanted)


# ---- BN ----

BN = "bn_param {{ scale_filler {{ type: 'gaussian' std: 1 }} shift_filler {{ type: 'gaussian' std: 1 }} {} }}"


def normalized_by_loops(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> list[np.ndarray]:
    """The fork's own formula, E[x^2] - E[x]^2, in float64: the top, the mean, the variance."""
    mean = np.array([x[:, c].mean() for c in range(x.shape[1])]).reshape(1, -1, 1, 1)
    square = np.array([(x[:, c] ** 2).mean() for c in range(x.shape[1])]).reshape(1, -1, 1, 1)
    variance = square - mean**2
    return [scale * (x - mean) / np.sqrt(variance + 1e-9) + shift, mean, variance]


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_bn_takes_the_batchs_statistics_in_either_phase(phase: str) -> None:
    x = draw(4, 3, 5, 6) * 7 + 2
    net = net_of("BN", [(4, 3, 5, 6)], BN.format(""), tops=3, phase=phase)
    scale, shift = (p.detach().numpy() for p in net.params["l"])
    assert scale.shape == shift.shape == (1, 3, 1, 1)
    for found, wanted in zip(run(net, x), normalized_by_loops(x.numpy(), scale, shift), strict=True):
        np.testing.assert_allclose(found.detach(), wanted, rtol=1e-11, atol=1e-12)


def test_bn_follows_another_batch_size_and_gives_the_shift_for_a_single_value() -> None:
    net = net_of("BN", [(4, 3, 1, 1)], BN.format(""))
    assert run(net, draw(2, 3, 4, 4))[0].shape == (2, 3, 4, 4)
    (y,) = run(net, draw(1, 3, 1, 1))
    assert torch.equal(y, net.params["l"][1])


@pytest.mark.parametrize("inplace", [False, True])
def test_bn_inference_is_affine(inplace: bool) -> None:
    x = draw(2, 3, 4, 5)
    text = f"""
    layer {{ name: "a" type: "Input" top: "a" input_param {{ shape {{ dim: 2 dim: 3 dim: 4 dim: 5 }} }} }}
    layer {{ name: "r" type: "AbsVal" bottom: "a" top: "y" }}
    layer {{ name: "l" type: "BN" bottom: "y" top: "{"y" if inplace else "z"}"
             {BN.format("bn_mode: INFERENCE")} }}"""
    net = Net(parse_net(text), seed=2).double()
    scale, shift = net.params["l"]
    with torch.no_grad():
        (y,) = net(a=x).values()
    torch.testing.assert_close(y, x.abs() * scale.detach() + shift.detach(), rtol=1e-14, atol=1e-15)


def test_bn_inference_has_no_statistics() -> None:
    with pytest.raises(NetError, match="2 tops in mode INFERENCE; wanted one: only LEARN has statistics"):
        net_of("BN", [(4, 3, 5, 6)], BN.format("bn_mode: INFERENCE"), tops=2)


def test_bn_statistics_hand_no_gradient_back() -> None:
    net = net_of("BN", [(4, 3, 5, 6)], BN.format(""), tops=3)
    _, mean, variance = run(net, draw(4, 3, 5, 6).requires_grad_())
    assert not mean.requires_grad and not variance.requires_grad


# ---- EltwiseAccuracy ----


def accuracy_by_sorting(x: np.ndarray, label: np.ndarray, top_k: int, ignore: int | None) -> float:
    """Pairs of score and class, sorted from the greatest down."""
    right = counted = 0
    for n, _, h, w in np.ndindex(label.shape):
        wanted = int(label[n, 0, h, w])
        if wanted == ignore:
            continue
        pairs = sorted(((x[n, c, h, w], c) for c in range(x.shape[1])), reverse=True)
        right += wanted in [c for _, c in pairs[:top_k]]
        counted += 1
    return right / counted


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("ignore", [None, 255])
def test_eltwise_accuracy_ranks_equal_scores_by_class(top_k: int, ignore: int | None) -> None:
    rng = np.random.default_rng(top_k)
    x = rng.integers(0, 3, (2, 5, 6, 7)).astype(float)  # many ties
    label = rng.integers(0, 5, (2, 1, 6, 7))
    if ignore is not None:
        label[rng.random(label.shape) < 0.3] = ignore
    more = f"eltwise_accuracy_param {{ top_k: {top_k} {f'ignore_label: {ignore}' if ignore else ''} }}"
    net = net_of("EltwiseAccuracy", [(2, 5, 6, 7), (2, 1, 6, 7)], more)
    (found,) = run(net, torch.from_numpy(x), torch.from_numpy(label))
    assert found.shape == (1, 1, 1, 1)
    assert float(found) == accuracy_by_sorting(x, label, top_k, ignore)


def test_eltwise_accuracy_of_a_tie_is_the_higher_class() -> None:
    x = torch.zeros(1, 3, 1, 2, dtype=torch.float64)
    net = net_of("EltwiseAccuracy", [(1, 3, 1, 2), (1, 1, 1, 2)])
    assert float(run(net, x, torch.tensor([[[[2, 2]]]]))[0]) == 1
    assert float(run(net, x, torch.tensor([[[[0, 1]]]]))[0]) == 0


def test_eltwise_accuracy_refuses_a_label_out_of_range_and_is_0_where_none_counts() -> None:
    more = "eltwise_accuracy_param { ignore_label: 255 }"
    net = net_of("EltwiseAccuracy", [(1, 3, 1, 2), (1, 1, 1, 2)], more)
    with pytest.raises(NetError, match="value 3 at index 1 .*wanted 0 to 2 or ignore_label 255"):
        run(net, draw(1, 3, 1, 2), torch.tensor([[[[0, 3]]]]))
    ignored: Tensor = torch.full((1, 1, 1, 2), 255)
    assert float(run(net, draw(1, 3, 1, 2), ignored)[0]) == 0


@pytest.mark.parametrize("bias", [True, False])
def test_a_deconvolution_of_single_values_is_a_matrix_product(bias: bool) -> None:
    """As DeconvNet's fc6-deconv: forward by hand, backward by finite differences."""
    more = f"""convolution_param {{ num_output: 2 kernel_h: 3 kernel_w: 2 bias_term: {str(bias).lower()}
               weight_filler {{ type: "gaussian" }} bias_filler {{ type: "gaussian" }} }}"""
    net, x = net_of("Deconvolution", [(3, 4, 1, 1)], more), draw(3, 4, 1, 1)
    weight, *shift = (p.detach().numpy() for p in net.params["l"])
    wanted = np.einsum("ni,iohw->nohw", x.numpy()[:, :, 0, 0], weight)
    wanted += shift[0].reshape(1, 2, 1, 1) if bias else 0
    np.testing.assert_allclose(run(net, x)[0].detach(), wanted, rtol=1e-13)
    leaves = (x.requires_grad_(), *net.params["l"])
    assert torch.autograd.gradcheck(lambda leaf, *rest: run(net, leaf)[0], leaves)


@pytest.mark.parametrize(("pad", "dilation", "group"), [(1, 1, 1), (0, 2, 1), (2, 3, 1), (0, 1, 2)])
def test_a_deconvolution_of_single_values_by_loops(pad: int, dilation: int, group: int) -> None:
    """Where a part of the window is cut off, has holes, or belongs to a group."""
    more = f"""convolution_param {{ num_output: 4 kernel_size: 3 pad: {pad} dilation: {dilation}
               group: {group} weight_filler {{ type: "gaussian" }} bias_term: false }}"""
    net, x = net_of("Deconvolution", [(2, 6, 1, 1)], more), draw(2, 6, 1, 1)
    weight = net.params["l"][0].detach().numpy()
    side = 2 * dilation + 1 - 2 * pad
    wanted = np.zeros((2, 4, side, side))
    for n, c, o, h, w in np.ndindex(2, *weight.shape):
        row, column = h * dilation - pad, w * dilation - pad
        if 0 <= row < side and 0 <= column < side:
            out = o + c // (6 // group) * (4 // group)
            wanted[n, out, row, column] += x[n, c, 0, 0] * weight[c, o, h, w]
    np.testing.assert_allclose(run(net, x)[0].detach(), wanted, rtol=1e-12, atol=1e-15)
