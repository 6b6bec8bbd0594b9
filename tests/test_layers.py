"""Layers beyond the goldens: state, odd values, settings worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from layer_nets import FILL, draw, net_of, run
from torch import Tensor

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from caffe_weights.prototxt import parse_net
from reproduce.layers import LAYERS, READERS
from reproduce.layers.base import FLT_MAX, Layer
from reproduce.layers.pooling import mask_dtype
from reproduce.net import Net
from surgery.shapes import LAYER_RULES, LayerRule, data_types, known_types


def test_max_pooling_never_lets_nan_or_minus_infinity_win() -> None:
    x = draw(1, 1, 4, 6)
    x[0, 0, 0, 0] = float("nan")
    x[0, 0, 0:2, 2:4] = float("nan")
    x[0, 0, 2:4, 0:2] = -float("inf")
    x[0, 0, 3, 1] = 1.5
    net = net_of("Pooling", [(1, 1, 4, 6)], "pooling_param { kernel_size: 2 stride: 2 }")
    leaf = x.requires_grad_()
    (got,) = run(net, leaf)
    assert got[0, 0, 0, 0] == max(x[0, 0, 0, 1], x[0, 0, 1, 0], x[0, 0, 1, 1])
    assert got[0, 0, 0, 1] == -FLT_MAX
    assert got[0, 0, 1, 0] == 1.5
    got.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad[0, 0, 0:2, 2:4].sum() == 0 and leaf.grad[0, 0, 3, 1] == 1
    assert leaf.grad.sum() == 5


def test_mask_of_an_empty_window_is_minus_one() -> None:
    net = net_of("Pooling", [(1, 1, 2, 2)], "pooling_param { kernel_size: 1 stride: 2 }", tops=2)
    x = torch.full((1, 1, 2, 2), float("nan"), dtype=torch.float64)
    y, mask = run(net, x)
    assert bool((y == -FLT_MAX).all()) and bool((mask == -1).all())


def pooled_by_loops(x: np.ndarray, kernel: int, stride: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """MAX and mask as the loops of Caffe's pooling_layer.cpp have them, of one axis for both."""
    n, c, *size = x.shape
    out = [-(-(length + 2 * pad - kernel) // stride) + 1 for length in size]
    out = [o - ((o - 1) * stride >= length + pad) for o, length in zip(out, size, strict=True)]
    top, mask = np.full((n, c, *out), -FLT_MAX), np.full((n, c, *out), -1.0)
    for place in np.ndindex(top.shape):
        first = [i * stride - pad for i in place[2:]]
        for h in range(max(first[0], 0), min(first[0] + kernel, size[0])):
            for w in range(max(first[1], 0), min(first[1] + kernel, size[1])):
                if x[place[:2]][h, w] > top[place]:
                    top[place], mask[place] = x[place[:2]][h, w], h * size[1] + w
    return top, mask


@pytest.mark.parametrize("nans", [0, 12])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 2, 1), (3, 2, 2), (4, 3, 3), (2, 3, 1), (5, 1, 4)])
def test_masks_of_padded_windows(kernel: int, stride: int, pad: int, nans: int) -> None:
    x = draw(2, 2, 7, 9)
    x.reshape(-1)[torch.arange(nans) * 19] = float("nan")
    more = f"pooling_param {{ kernel_size: {kernel} stride: {stride} pad: {pad} }}"
    top, mask = run(net_of("Pooling", [(2, 2, 7, 9)], more, tops=2), x)
    want, places = pooled_by_loops(x.numpy(), kernel, stride, pad)
    np.testing.assert_array_equal(top, want)
    np.testing.assert_array_equal(mask, places)


def test_stochastic_pooling_draws_values_by_their_size() -> None:
    x = torch.tensor([[[[1.0, 3.0], [0.0, 4.0]]]], dtype=torch.float64)
    more = "pooling_param { pool: STOCHASTIC kernel_size: 2 }"
    (mean,) = run(net_of("Pooling", [(1, 1, 2, 2)], more), x)
    assert mean.item() == (1 + 9 + 16) / 8
    net = net_of("Pooling", [(1, 1, 2, 2)], more, phase="TRAIN")
    torch.manual_seed(0)
    drawn = torch.stack([run(net, x)[0].reshape(()) for _ in range(1600)])
    for value in (1.0, 3.0, 4.0):
        share = float((drawn == value).double().mean())
        assert abs(share - value / 8) < 0.05
    assert bool((drawn != 0).all())


@pytest.mark.parametrize(("width", "window"), [
    (3, "kernel_size: 4 stride: 2"),  # over both edges
    (4, "kernel_size: 4 stride: 2"),  # over one
    (3, "kernel_size: 5 pad: 1"),  # over the input and one side of its padding, not over both
])  # fmt: skip
def test_convolution_of_a_kernel_over_the_edge_has_one_output(width: int, window: str) -> None:
    """Caffe's integer division cuts towards zero: 3 - 4 over stride 2 is 0, and so one output."""
    more = f"convolution_param {{ {window} num_output: 1 weight_filler {{ value: 1 }} }}"
    x = draw(1, 2, 3, width)
    (got,) = run(net_of("Convolution", [(1, 2, 3, width)], more), x)
    assert got.shape == (1, 1, 1, 1)
    torch.testing.assert_close(got.sum(), x.sum())


def test_a_sum_takes_a_first_coefficient_above_one() -> None:
    net = net_of("Eltwise", [(2, 3), (2, 3)], "eltwise_param { coeff: 2.5 coeff: -0.5 }")
    a, b = draw(2, 3), draw(2, 3)
    torch.testing.assert_close(run(net, a, b)[0], 2.5 * a - 0.5 * b)


@pytest.mark.parametrize("learns", [False, True])
def test_the_second_bottom_wins_a_maximum_where_neither_is_larger(learns: bool) -> None:
    """`x > y` of eltwise_layer.cpp, which no NaN fulfils."""
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[nan, 1, nan, 3, inf, -inf]], dtype=torch.float64, requires_grad=learns)
    y = torch.tensor([[2, nan, nan, 1, -inf, inf]], dtype=torch.float64)
    net = net_of("Eltwise", [(1, 6), (1, 6)], "eltwise_param { operation: MAX }")
    with torch.set_grad_enabled(learns):
        top = run(net, x, y)[0].detach()
    wanted = torch.tensor([[2, nan, nan, 3, inf, inf]], dtype=torch.float64)
    torch.testing.assert_close(top, wanted, equal_nan=True, rtol=0, atol=0)


def test_sigmoid_cross_entropy_ignores_what_a_cast_makes_the_ignored_label() -> None:
    """Caffe's static_cast<int>(0.6) is 0; what is left is log(1 + exp(2)) - 2."""
    net = net_of("SigmoidCrossEntropyLoss", [(1, 2), (1, 2)], "loss_param { ignore_label: 0 }")
    x, target = (torch.tensor([row], dtype=torch.float64) for row in ([1.0, 2.0], [0.6, 1.0]))
    assert run(net, x, target)[0].item() == pytest.approx(np.log1p(np.exp(2)) - 2, rel=1e-12)


def test_masks_of_planes_beyond_24_bits_are_float64() -> None:
    sizes = {(4096, 4096): torch.float32, (4096, 4097): torch.float64}
    for size, wanted in sizes.items():
        assert mask_dtype(torch.empty(1, 1, *size, device="meta")) == wanted


def test_convolution_axis_leaves_leading_axes_alone() -> None:
    more = 'convolution_param { axis: 2 kernel_size: 3 num_output: 5 weight_filler { type: "gaussian" } }'
    x = draw(2, 3, 4, 6, 7)
    net = net_of("Convolution", [(2, 3, 4, 6, 7)], more)
    (got,) = run(net, x)
    plain = net_of("Convolution", [(6, 4, 6, 7)], more.replace("axis: 2", "axis: 1"))
    plain.load_state_dict(net.state_dict())
    (flat,) = run(plain, x.reshape(6, 4, 6, 7))
    assert torch.equal(got, flat.reshape(2, 3, 5, 4, 5))


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_recurrent_state_is_carried_and_can_be_reset(kind: str) -> None:
    more = f"recurrent_param {{ num_output: 3 {FILL} }}"
    whole, halves = (net_of(kind, [(4, 2, 5), (4, 2)], more) for _ in range(2))
    x, cont = draw(4, 2, 5), torch.ones(4, 2, dtype=torch.float64)
    (want,) = run(whole, x, cont)
    got = torch.cat([run(halves, x[:2], cont[:2])[0], run(halves, x[2:], cont[2:])[0]])
    torch.testing.assert_close(got, want)
    layer = halves.layer("l")
    assert hasattr(layer, "reset")
    layer.reset()
    torch.testing.assert_close(run(halves, x[:2], cont[:2])[0], want[:2])


def test_batch_norm_sums_grow_with_every_pass_in_either_phase() -> None:
    net = net_of(
        "BatchNorm",
        [(4, 2, 3, 3)],
        "batch_norm_param { use_global_stats: false moving_average_fraction: 0.5 }",
    )
    x = draw(4, 2, 3, 3)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=1)
    with torch.no_grad():
        run(net, x)
        run(net, x)
    for blob, want in zip(net.params["l"], (1.5 * mean, 1.5 * variance, torch.tensor([1.5])), strict=True):
        torch.testing.assert_close(blob.detach(), want.double())


def test_random_dummy_data_is_drawn_anew_from_pytorch_s_generator() -> None:
    text = """layer { name: "d" type: "DummyData" top: "y"
              dummy_data_param { shape { dim: 50 } data_filler { type: "uniform" min: 2 max: 3 } } }"""
    net = Net(parse_net(text))
    torch.manual_seed(1)
    first, second = net()["y"], net()["y"]
    torch.manual_seed(1)
    assert torch.equal(net()["y"], first) and not torch.equal(first, second)
    assert bool(((first >= 2) & (first < 3)).all())


def test_loss_of_an_impossible_class_is_bounded_but_its_gradient_is_not() -> None:
    """-log(FLT_MIN) = 87.3365 at most, while the gradient stays p - 1; both by hand."""
    net = net_of("SoftmaxWithLoss", [(1, 2), (1,)])
    x = torch.tensor([[0.0, 1000.0]], dtype=torch.float64, requires_grad=True)
    (loss,) = run(net, x, torch.tensor([0]))
    assert abs(loss.item() - 87.33654475) < 1e-6
    loss.backward()
    assert x.grad is not None and x.grad.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize(
    ("field", "divisor"),
    [
        ("", 5),
        ("normalize: true", 5),
        ("normalize: false", 2),
        ("normalization: FULL", 8),
        ("normalization: VALID", 5),
        ("normalization: BATCH_SIZE", 2),
        ("normalization: NONE", 1),
        ("normalize: false normalization: FULL", 8),
    ],
)
def test_softmax_loss_is_divided_as_asked(field: str, divisor: int) -> None:
    label = torch.tensor([[[[0, 7], [2, 7]]], [[[1, 1], [7, 2]]]])
    net = net_of("SoftmaxWithLoss", [(2, 3, 2, 2), (2, 1, 2, 2)], f"loss_param {{ ignore_label: 7 {field} }}")
    x = draw(2, 3, 2, 2)
    log = x.log_softmax(1).movedim(1, -1)[label[:, 0] != 7]
    want = -log[torch.arange(5), label[label != 7]].sum() / divisor
    torch.testing.assert_close(run(net, x, label)[0], want)


def test_second_top_of_a_softmax_loss_is_the_probability() -> None:
    net = net_of("SoftmaxWithLoss", [(3, 4), (3,)], "loss_weight: 1 loss_weight: 0", tops=2)
    x = draw(3, 4)
    torch.testing.assert_close(run(net, x, torch.tensor([0, 1, 2]))[1], x.softmax(1))


@pytest.mark.parametrize("kind", ["SoftmaxWithLoss", "Accuracy", "HingeLoss", "MultinomialLogisticLoss"])
@pytest.mark.parametrize("wrong", [-1, 4, 1e9])
def test_label_out_of_range_is_an_error(kind: str, wrong: float) -> None:
    with pytest.raises(NetError, match=r"layer l .*: value .* at index 1 .*; wanted 0 to 3"):
        run(net_of(kind, [(2, 4), (2,)]), draw(2, 4), torch.tensor([0, wrong]))


def test_index_out_of_range_is_an_error() -> None:
    with pytest.raises(NetError, match="value 5 at index 0"):
        run(net_of("Embed", [(2,)], "embed_param { num_output: 3 input_dim: 5 }"), torch.tensor([5, 0]))
    with pytest.raises(NetError, match="value 3 at index 1"):
        run(net_of("BatchReindex", [(3, 2), (2,)]), draw(3, 2), torch.tensor([0, 3]))


def test_infogain_matrix_of_another_size_is_an_error(tmp_path: Path) -> None:
    blob = caffe_pb2.BlobProto(data=[1.0] * 9)
    blob.shape.dim.extend([1, 1, 3, 3])
    (tmp_path / "h.binaryproto").write_bytes(blob.SerializeToString())
    more = f'infogain_loss_param {{ source: "{tmp_path / "h.binaryproto"}" }}'
    x, label = draw(2, 3), torch.tensor([0, 2])
    (loss,) = run(net_of("InfogainLoss", [(2, 3), (2,)], more), x, label)
    torch.testing.assert_close(loss, -x.log_softmax(1).sum() / 2)
    with pytest.raises(NetError, match=r"h.binaryproto: 9 values; wanted 16, one for each pair of 4 classes"):
        run(net_of("InfogainLoss", [(2, 4), (2,)], more), draw(2, 4), label)


def test_every_layer_of_caffe_runs_or_is_an_input() -> None:
    assert not known_types() - set(LAYERS) - data_types() - {"Input"}
    forks = {"DenseImageData", "ImageSegData", "WindowSegData"}
    assert data_types() - set(READERS) - forks == {"Python", "WindowData"}


def test_a_layer_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Negate(Layer):
        def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
            return [-bottoms[0]]

    monkeypatch.setitem(LAYERS, "Negate", Negate)
    monkeypatch.setitem(LAYER_RULES, "Negate", LayerRule(lambda layer, bottoms: (bottoms, ())))
    x = draw(2, 3)
    assert torch.equal(run(net_of("Negate", [(2, 3)]), x)[0], -x)
