"""Gradients of layers against finite differences in float64, bottoms and parameters together.

Away from kinks. Where Caffe's gradient is no derivative (at a kink, beyond a bound, with an eps), its own
rule is stated and compared, worked out by hand or in numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from layer_nets import FILL, draw, net_of, run
from torch import Tensor

from reproduce.layers import LAYERS
from reproduce.net import Net

IMAGE = (2, 2, 4, 5)
FEW = (1, 2, 3, 3)  # for what is slow to differentiate
Reset = Callable[[], None]
SMOOTH: dict[str, tuple[str, list[tuple[int, ...]], str]] = {  # type, bottoms that get a gradient, settings
    "AbsVal": ("AbsVal", [(3, 4)], ""),
    "BNLL": ("BNLL", [(3, 4)], ""),
    "BN": ("BN", [FEW], 'bn_param { scale_filler { type: "gaussian" std: 1 } }'),
    "BN INFERENCE": ("BN", [FEW], 'bn_param { bn_mode: INFERENCE scale_filler { type: "gaussian" std: 1 } }'),
    "BatchNorm stored": ("BatchNorm", [FEW], ""),
    "Bias": ("Bias", [IMAGE], 'bias_param { filler { type: "gaussian" } }'),
    "Bias of two": ("Bias", [IMAGE, (2, 4)], ""),
    "Clip": ("Clip", [(3, 4)], "clip_param { min: -0.5 max: 0.7 }"),
    "Concat": ("Concat", [(2, 3), (2, 1)], ""),
    "ContrastiveLoss legacy": (
        "ContrastiveLoss", [(3, 4)] * 2, "contrastive_loss_param { legacy_version: true margin: 30 }"),
    "Convolution": (
        "Convolution", [FEW], f"convolution_param {{ num_output: 2 kernel_size: 3 pad: 1 {FILL} }}"),
    "Crop": ("Crop", [IMAGE, (2, 2, 3, 3)], "crop_param { offset: 1 offset: 2 }"),
    "Deconvolution": (
        "Deconvolution", [FEW], f"convolution_param {{ num_output: 2 kernel_size: 4 stride: 2 {FILL} }}"),
    "ELU": ("ELU", [(3, 4)], "elu_param { alpha: 0.5 }"),
    "Eltwise MAX": ("Eltwise", [(3, 4)] * 3, "eltwise_param { operation: MAX }"),
    "Eltwise PROD": ("Eltwise", [(3, 4)] * 3, "eltwise_param { operation: PROD }"),
    "Eltwise SUM": ("Eltwise", [(3, 4)] * 2, "eltwise_param { coeff: 0.5 coeff: -2 }"),
    "EuclideanLoss": ("EuclideanLoss", [(3, 4)] * 2, ""),
    "Exp": ("Exp", [(3, 4)], "exp_param { base: 2 scale: 0.5 shift: 1 }"),
    "Flatten": ("Flatten", [IMAGE], ""),
    "Im2col": ("Im2col", [IMAGE], "convolution_param { kernel_size: 3 stride: 2 pad: 1 dilation: 2 }"),
    "InnerProduct": ("InnerProduct", [IMAGE], f"inner_product_param {{ num_output: 3 {FILL} }}"),
    "Interp": ("Interp", [IMAGE], "interp_param { zoom_factor: 2 }"),
    "Interp shrinking": (
        "Interp", [IMAGE], "interp_param { height: 3 width: 2 pad_beg: -1 }"),
    "LRN": ("LRN", [IMAGE], "lrn_param { local_size: 3 }"),
    "LRN within": ("LRN", [IMAGE], "lrn_param { local_size: 3 norm_region: WITHIN_CHANNEL }"),
    "Log": ("Log", [(3, 4)], "log_param { scale: 0.1 shift: 2 }"),
    "LSTMUnit": ("LSTMUnit", [(1, 2, 3), (1, 2, 12)], ""),
    "MVN": ("MVN", [IMAGE], "mvn_param { across_channels: true }"),
    "MVN without variance": ("MVN", [IMAGE], "mvn_param { normalize_variance: false }"),
    "PReLU": ("PReLU", [IMAGE], ""),
    "Pooling AVE": ("Pooling", [IMAGE], "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }"),
    "Pooling MAX": ("Pooling", [IMAGE], "pooling_param { kernel_size: 3 stride: 2 pad: 2 }"),
    "Power": ("Power", [(3, 4)], "power_param { power: 3 scale: 0.5 shift: 2 }"),
    "ReLU": ("ReLU", [(3, 4)], "relu_param { negative_slope: 0.1 }"),
    "Reduction": ("Reduction", [IMAGE], "reduction_param { operation: SUMSQ axis: 1 coeff: 0.5 }"),
    "Reshape": ("Reshape", [IMAGE], "reshape_param { shape { dim: 0 dim: -1 dim: 5 } }"),
    "SPP": ("SPP", [IMAGE], "spp_param { pyramid_height: 2 }"),
    "Scale": ("Scale", [IMAGE], 'scale_param { bias_term: true filler { type: "gaussian" } }'),
    "Scale of two": ("Scale", [IMAGE, (2, 2)], "scale_param { axis: 0 }"),
    "Sigmoid": ("Sigmoid", [(3, 4)], ""),
    "Slice": ("Slice", [IMAGE], ""),
    "Softmax": ("Softmax", [IMAGE], ""),
    "Split": ("Split", [(3, 4)], ""),
    "Swish": ("Swish", [(3, 4)], "swish_param { beta: 1.5 }"),
    "TanH": ("TanH", [(3, 4)], ""),
    "Tile": ("Tile", [(2, 3)], "tile_param { tiles: 3 }"),
    "Unpooling MAX": (
        "Unpooling", [(1, 2, 2, 2)], "unpooling_param { kernel_size: 2 stride: 2 unpool_size: 4 }"),
    "Unpooling AVE": (
        "Unpooling", [(1, 2, 3, 3)],
        "unpooling_param { unpool: AVE kernel_size: 3 stride: 2 unpool_h: 6 unpool_w: 9 }"),
    "Unpooling TILE": (
        "Unpooling", [(1, 2, 3, 3)],
        "unpooling_param { unpool: TILE kernel_size: 3 stride: 2 unpool_h: 6 unpool_w: 9 }"),
    "Upsample": ("Upsample", [(1, 2, 2, 2)], "upsample_param { pad_out_w: true }"),
}  # fmt: skip


LAST = {  # bottoms behind those of SMOOTH, without a gradient: labels, flags
    "ContrastiveLoss": torch.tensor([1.0, 0.0, 0.0]),
    "LSTMUnit": torch.tensor([[1.0, 0.0]]),
    "Unpooling MAX": torch.tensor([[[[0.0, 3], [9, 14]], [[5.0, 7], [8, 15]]]]),
    "Upsample": torch.tensor([[[[0.0, 2], [6, 11]], [[4.0, 5], [9, 8]]]]),
}
TOPS = {"LSTMUnit": 2, "Slice": 2, "Split": 2}


@pytest.mark.parametrize("case", SMOOTH)
def test_gradients_are_derivatives(case: str) -> None:
    """Of bottoms and parameters, by finite differences in float64."""
    kind, shapes, more = SMOOTH[case]
    last = [LAST[key] for key in dict.fromkeys((kind, case)) if key in LAST]
    net = net_of(kind, [*shapes, *(tuple(x.shape) for x in last)], more, tops=TOPS.get(kind, 1))
    if kind == "BatchNorm":
        with torch.no_grad():
            for blob, value in zip(net.params["l"], (0.3, 1.7, 0.9), strict=True):
                blob.fill_(value)
    bottoms = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    parameters = [p for p in net.params.get("l", []) if p.requires_grad]
    call: Callable[..., Sequence[Tensor]] = lambda *leaves: run(net, *leaves[: len(shapes)], *last)  # noqa: E731
    assert torch.autograd.gradcheck(call, (*bottoms, *parameters))


LABELLED: dict[str, tuple[str, tuple[int, ...], Tensor, str]] = {
    "SoftmaxWithLoss": (
        "SoftmaxWithLoss", (2, 3, 2, 2), torch.tensor([[[[0, 1], [2, 9]]], [[[1, 1], [0, 2]]]]),
        "loss_param { ignore_label: 9 }"),
    "MultinomialLogisticLoss": ("MultinomialLogisticLoss", (3, 4), torch.tensor([0, 3, 1]), ""),
    "SigmoidCrossEntropyLoss": (
        "SigmoidCrossEntropyLoss", (2, 3), torch.tensor([[0.0, 1, 0.5], [1, 0, 1]]), ""),
    "BatchReindex": ("BatchReindex", (3, 4), torch.tensor([2, 0, 2, 1, 2]), ""),
    "Filter": ("Filter", (3, 4), torch.tensor([1, 0, 1]), ""),
    "HingeLoss": ("HingeLoss", (3, 4), torch.tensor([0, 3, 1]), "hinge_loss_param { norm: L2 }"),
    "HingeLoss L1": ("HingeLoss", (3, 4), torch.tensor([0, 3, 1]), ""),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELLED)
def test_gradients_of_losses_are_derivatives(case: str) -> None:
    kind, shape, label, more = LABELLED[case]
    net = net_of(kind, [shape, tuple(label.shape)], more)
    x = draw(*shape)
    if kind == "MultinomialLogisticLoss":
        x = x.softmax(1)
    assert torch.autograd.gradcheck(lambda leaf: run(net, leaf, label)[0], x.requires_grad_())


def test_batch_statistics_have_the_right_derivative() -> None:
    net = net_of("BatchNorm", [FEW], phase="TRAIN")
    assert torch.autograd.gradcheck(lambda x: run(net, x)[0], draw(*FEW).requires_grad_())


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_recurrent_gradients_are_derivatives_through_time(kind: str) -> None:
    more = f"recurrent_param {{ num_output: 3 {FILL} }}"
    cont = torch.tensor([[0, 0], [1, 1], [1, 0], [1, 1]], dtype=torch.float64)
    net = net_of(kind, [(4, 2, 5), (4, 2)], more)

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return run(net, x, cont)[0]

    leaves = [p for p in net.params["l"] if p.requires_grad]
    assert torch.autograd.gradcheck(call, (draw(4, 2, 5).requires_grad_(), *leaves))


def test_gradients_with_a_static_input_are_derivatives() -> None:
    cont = torch.tensor([[0, 0], [1, 0], [1, 1]], dtype=torch.float64)
    for kind in ("LSTM", "RNN"):
        net = net_of(kind, [(3, 2, 4), (3, 2), (2, 5)], f"recurrent_param {{ num_output: 2 {FILL} }}")
        reset = net.layer("l").reset  # type: ignore[attr-defined]

        def call(
            x: Tensor, static: Tensor, *parameters: Tensor, net: Net = net, reset: Reset = reset
        ) -> Tensor:
            reset()
            return run(net, x, cont, static)[0]

        leaves = [draw(3, 2, 4).requires_grad_(), draw(2, 5, seed=1).requires_grad_(), *net.params["l"]]
        assert torch.autograd.gradcheck(call, leaves)


def test_gradient_of_infogain_loss_is_a_derivative() -> None:
    label, matrix = torch.tensor([0, 2]), draw(3, 3, seed=2).abs()
    net = net_of("InfogainLoss", [(2, 3), (2,), (1, 1, 3, 3)])
    call = lambda x: run(net, x, label, matrix.reshape(1, 1, 3, 3))[0]  # noqa: E731
    assert torch.autograd.gradcheck(call, draw(2, 3).requires_grad_())


def test_gradients_of_tables_are_derivatives() -> None:
    embed = net_of("Embed", [(4,)], f"embed_param {{ num_output: 2 input_dim: 3 {FILL} }}")
    rows = torch.tensor([2, 0, 2, 1])
    assert torch.autograd.gradcheck(lambda *p: run(embed, rows)[0], tuple(embed.params["l"]))
    blob = net_of("Parameter", [], "parameter_param { shape { dim: 2 dim: 3 } }")
    assert torch.autograd.gradcheck(lambda *p: run(blob)[0] ** 2, tuple(blob.params["l"]))


def test_dropout_hands_back_the_mask_of_the_forward_pass() -> None:
    net = net_of("Dropout", [(40, 40)], "dropout_param { dropout_ratio: 0.2 }", phase="TRAIN")
    x = torch.ones(40, 40, dtype=torch.float64, requires_grad=True)
    (y,) = run(net, x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(slope, y.detach()) and set(slope.unique().tolist()) == {
        0.0,
        1 / (1 - float(np.float32(0.2))),
    }


# ---- Caffe's own rules, where they are no derivative ----

KINKS = {  # type and settings: input, and the gradient that Caffe's Backward_cpu gives there
    ("AbsVal", ""): (0.0, 0.0),  # sign(0)
    ("ReLU", "relu_param { negative_slope: 0.1 }"): (0.0, 0.1),  # the slope serves x <= 0
    ("ReLU", ""): (0.0, 0.0),
    ("PReLU", "prelu_param { filler { value: 0.3 } }"): (0.0, 0.3),
    ("ELU", "elu_param { alpha: 0.5 }"): (0.0, 0.5),
    ("Clip", "clip_param { min: -1 max: 2 }"): (2.0, 1.0),  # passes on the bounds
    ("BNLL", ""): (60.0, 1.0),  # its sigmoid is taken at 50 at most
}


@pytest.mark.parametrize("case", KINKS, ids=lambda case: " ".join(case))
def test_gradient_at_a_kink_is_caffe_s(case: tuple[str, str]) -> None:
    place, slope = KINKS[case]
    x = torch.full((2, 2), place, dtype=torch.float64, requires_grad=True)
    net = net_of(case[0], [(2, 2)], case[1])
    (got,) = torch.autograd.grad(run(net, x)[0].sum(), x)
    torch.testing.assert_close(got, torch.full_like(got, float(np.float32(slope))))


def test_gradient_of_a_tie_goes_to_one_bottom() -> None:
    x, y = (torch.ones(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    net = net_of("Eltwise", [(2, 3)] * 2, "eltwise_param { operation: MAX }")
    first, second = torch.autograd.grad(run(net, x, y)[0].sum(), (x, y))
    assert first.sum() == 0 and second.sum() == 6


def test_mvn_takes_deviation_plus_eps_for_the_deviation() -> None:
    """(dy - mean(dy) - y mean(dy y)) / (deviation + eps), which is the derivative for eps 0 only."""
    eps = 0.5
    net = net_of("MVN", [IMAGE], f"mvn_param {{ eps: {eps} }}")
    x, dy = draw(*IMAGE).requires_grad_(), draw(*IMAGE, seed=1)
    (y,) = run(net, x)
    (got,) = torch.autograd.grad(y, x, dy)
    rows, drows = x.detach().numpy().reshape(4, 20), dy.numpy().reshape(4, 20)
    deviation = rows.std(1, keepdims=True) + eps
    out = (rows - rows.mean(1, keepdims=True)) / deviation
    want = drows - drows.mean(1, keepdims=True) - out * (drows * out).mean(1, keepdims=True)
    np.testing.assert_allclose(y.detach().numpy().reshape(4, 20), out, rtol=1e-10)
    np.testing.assert_allclose(got.numpy().reshape(4, 20), want / deviation, rtol=1e-9, atol=1e-12)


def test_contrastive_loss_divides_by_distance_plus_a_little() -> None:
    """Pairs apart: -(margin - d) / (d + 1e-4) (a - b) / N, so that equal pairs have a gradient."""
    a, b = draw(3, 4).requires_grad_(), draw(3, 4, seed=1)
    net = net_of("ContrastiveLoss", [(3, 4)] * 2 + [(3,)], "contrastive_loss_param { margin: 5 }")
    (got,) = torch.autograd.grad(run(net, a, b, torch.zeros(3))[0], a)
    step = (a.detach() - b).numpy()
    distance = np.sqrt((step**2).sum(1, keepdims=True))
    assert (distance < 5).all()
    np.testing.assert_allclose(got.numpy(), -(5 - distance) / (distance + 1e-4) * step / 3, rtol=1e-12)


def test_bounded_logarithms_have_unbounded_gradients() -> None:
    label = torch.tensor([0])
    x = torch.tensor([[0.0, 1000.0]], dtype=torch.float64, requires_grad=True)
    infogain = net_of("InfogainLoss", [(1, 2), (1,), (1, 1, 2, 2)])
    (loss,) = run(infogain, x, label, torch.eye(2).reshape(1, 1, 2, 2))
    (got,) = torch.autograd.grad(loss, x)
    assert abs(loss.item() + np.log(1e-20)) < 1e-9 and got.tolist() == [[-1.0, 1.0]]
    p = torch.tensor([[1e-30, 1.0]], dtype=torch.float64, requires_grad=True)
    (loss,) = run(net_of("MultinomialLogisticLoss", [(1, 2), (1,)]), p, label)
    (got,) = torch.autograd.grad(loss, p)
    assert abs(loss.item() + np.log(1e-20)) < 1e-9
    np.testing.assert_allclose(got.numpy(), [[-1e20, 0]], rtol=1e-12)


def test_power_has_the_true_derivative_where_caffe_s_is_nan() -> None:
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(run(net_of("Power", [(2,)], "power_param { power: 3 }"), x)[0].sum(), x)
    assert got.tolist() == [0.0, 0.0]


def test_exposed_states_hand_no_gradient_back_and_first_states_get_none() -> None:
    net = net_of(
        "RNN", [(2, 1, 3), (2, 1), (1, 1, 2)],
        f"recurrent_param {{ num_output: 2 expose_hidden: true {FILL} }}", tops=2,
    )  # fmt: skip
    x, first = draw(2, 1, 3).requires_grad_(), draw(1, 1, 2, seed=1).requires_grad_()
    outputs, last = run(net, x, torch.ones(2, 1), first)
    assert not last.requires_grad
    assert torch.autograd.grad(outputs.sum(), [x, first], allow_unused=True)[1] is None


def test_layers_without_a_gradient_have_none() -> None:
    label: dict[str, list[tuple[int, ...]]] = {"Accuracy": [(2,)]}
    for kind in ("Threshold", "ArgMax", "Accuracy"):
        shapes = [(2, 3), *label.get(kind, [])]
        inputs = [draw(2, 3).requires_grad_(), torch.tensor([0, 2])][: len(shapes)]
        assert not run(net_of(kind, shapes), *inputs)[0].requires_grad


ELSEWHERE = {"InfogainLoss", "Embed", "Parameter", "Dropout", "LSTM", "RNN"}  # the tests above
NOT_DIFFERENTIABLE = {
    "Accuracy",
    "ArgMax",
    "DummyData",
    "EltwiseAccuracy",
    "HDF5Output",
    "Silence",
    "Threshold",
}


def checked_types() -> set[str]:
    """Types whose gradient a test here compares."""
    return {kind for kind, _, _ in SMOOTH.values()} | {case[0] for case in LABELLED.values()} | ELSEWHERE


def test_every_differentiable_type_is_checked() -> None:
    assert checked_types() == set(LAYERS) - NOT_DIFFERENTIABLE
