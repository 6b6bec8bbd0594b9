"""Gradients of layers against finite differences in float64, bottoms and parameters together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from layer_nets import FILL, draw, net_of, run
from torch import Tensor

IMAGE = (2, 4, 5, 6)
SMOOTH: dict[str, tuple[str, list[tuple[int, ...]], str]] = {  # type, bottoms that get a gradient, settings
    "AbsVal": ("AbsVal", [(3, 4)], ""),
    "BNLL": ("BNLL", [(3, 4)], ""),
    "BatchNorm stored": ("BatchNorm", [IMAGE], ""),
    "Bias": ("Bias", [IMAGE], 'bias_param { filler { type: "gaussian" } }'),
    "Bias of two": ("Bias", [IMAGE, (4, 5)], ""),
    "Clip": ("Clip", [(3, 4)], "clip_param { min: -0.5 max: 0.7 }"),
    "Concat": ("Concat", [(2, 3), (2, 1)], ""),
    "Convolution": (
        "Convolution", [IMAGE], f"convolution_param {{ num_output: 2 kernel_size: 3 pad: 1 {FILL} }}"),
    "Deconvolution": (
        "Deconvolution", [IMAGE], f"convolution_param {{ num_output: 2 kernel_size: 4 stride: 2 {FILL} }}"),
    "ELU": ("ELU", [(3, 4)], "elu_param { alpha: 0.5 }"),
    "Eltwise MAX": ("Eltwise", [(3, 4)] * 3, "eltwise_param { operation: MAX }"),
    "Eltwise PROD": ("Eltwise", [(3, 4)] * 3, "eltwise_param { operation: PROD }"),
    "Eltwise SUM": ("Eltwise", [(3, 4)] * 2, "eltwise_param { coeff: 0.5 coeff: -2 }"),
    "EuclideanLoss": ("EuclideanLoss", [(3, 4)] * 2, ""),
    "Exp": ("Exp", [(3, 4)], "exp_param { base: 2 scale: 0.5 shift: 1 }"),
    "Flatten": ("Flatten", [IMAGE], ""),
    "Im2col": ("Im2col", [IMAGE], "convolution_param { kernel_size: 3 stride: 2 pad: 1 dilation: 2 }"),
    "InnerProduct": ("InnerProduct", [IMAGE], f"inner_product_param {{ num_output: 3 {FILL} }}"),
    "LRN": ("LRN", [IMAGE], "lrn_param { local_size: 3 }"),
    "LRN within": ("LRN", [IMAGE], "lrn_param { local_size: 3 norm_region: WITHIN_CHANNEL }"),
    "Log": ("Log", [(3, 4)], "log_param { scale: 0.1 shift: 2 }"),
    "MVN without variance": ("MVN", [IMAGE], "mvn_param { normalize_variance: false }"),
    "PReLU": ("PReLU", [IMAGE], ""),
    "Pooling AVE": ("Pooling", [IMAGE], "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }"),
    "Pooling MAX": ("Pooling", [IMAGE], "pooling_param { kernel_size: 3 stride: 2 pad: 2 }"),
    "Power": ("Power", [(3, 4)], "power_param { power: 3 scale: 0.5 shift: 2 }"),
    "ReLU": ("ReLU", [(3, 4)], "relu_param { negative_slope: 0.1 }"),
    "Reduction": ("Reduction", [IMAGE], "reduction_param { operation: SUMSQ axis: 1 coeff: 0.5 }"),
    "Reshape": ("Reshape", [IMAGE], "reshape_param { shape { dim: 0 dim: -1 dim: 6 } }"),
    "SPP": ("SPP", [IMAGE], "spp_param { pyramid_height: 2 }"),
    "Scale": ("Scale", [IMAGE], 'scale_param { bias_term: true filler { type: "gaussian" } }'),
    "Scale of two": ("Scale", [IMAGE, (2, 4)], "scale_param { axis: 0 }"),
    "Sigmoid": ("Sigmoid", [(3, 4)], ""),
    "Softmax": ("Softmax", [IMAGE], ""),
    "Swish": ("Swish", [(3, 4)], "swish_param { beta: 1.5 }"),
    "TanH": ("TanH", [(3, 4)], ""),
    "Tile": ("Tile", [(2, 3)], "tile_param { tiles: 3 }"),
}  # fmt: skip


@pytest.mark.parametrize("case", SMOOTH)
def test_gradients_are_derivatives(case: str) -> None:
    """Of bottoms and parameters, by finite differences in float64."""
    kind, shapes, more = SMOOTH[case]
    net = net_of(kind, shapes, more)
    if kind == "BatchNorm":
        with torch.no_grad():
            for blob, value in zip(net.params["l"], (0.3, 1.7, 0.9), strict=True):
                blob.fill_(value)
    bottoms = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    parameters = [p for p in net.params.get("l", []) if p.requires_grad]
    call: Callable[..., Tensor] = lambda *leaves: run(net, *leaves[: len(shapes)])[0]  # noqa: E731
    assert torch.autograd.gradcheck(call, (*bottoms, *parameters))


LABELLED: dict[str, tuple[str, tuple[int, ...], Tensor, str]] = {
    "SoftmaxWithLoss": (
        "SoftmaxWithLoss", (2, 3, 2, 2), torch.tensor([[[[0, 1], [2, 9]]], [[[1, 1], [0, 2]]]]),
        "loss_param { ignore_label: 9 }"),
    "MultinomialLogisticLoss": ("MultinomialLogisticLoss", (3, 4), torch.tensor([0, 3, 1]), ""),
    "SigmoidCrossEntropyLoss": (
        "SigmoidCrossEntropyLoss", (2, 3), torch.tensor([[0.0, 1, 0.5], [1, 0, 1]]), ""),
    "HingeLoss": ("HingeLoss", (3, 4), torch.tensor([0, 3, 1]), "hinge_loss_param { norm: L2 }"),
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
    net = net_of("BatchNorm", [IMAGE], phase="TRAIN")
    assert torch.autograd.gradcheck(lambda x: run(net, x)[0], draw(*IMAGE).requires_grad_())


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_recurrent_gradients_are_derivatives_through_time(kind: str) -> None:
    more = f"recurrent_param {{ num_output: 3 {FILL} }}"
    cont = torch.tensor([[0, 0], [1, 1], [1, 0], [1, 1]], dtype=torch.float64)
    net = net_of(kind, [(4, 2, 5), (4, 2)], more)

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return run(net, x, cont)[0]

    leaves = [p for p in net.params["l"] if p.requires_grad]
    assert torch.autograd.gradcheck(call, (draw(4, 2, 5).requires_grad_(), *leaves))
