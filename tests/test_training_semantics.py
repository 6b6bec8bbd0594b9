"""What Caffe's backward pass means for a net in PyTorch: who gets a gradient, from where, and how much.

Wanted values are worked out by hand or in numpy; those marked [Caffe] were read from a running Caffe.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_weights.prototxt import parse_net
from reproduce.net import Net

X = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }'


def dense(name: str, bottom: str, more: str = "", outputs: int = 2) -> str:
    filler = "weight_filler { value: 0.5 }"
    param = f"inner_product_param {{ num_output: {outputs} {filler} }}"
    return f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" {more} {param} }}'


def total(name: str, bottom: str, weight: float) -> str:
    return (
        f'layer {{ name: "{name}" type: "Reduction" bottom: "{bottom}" top: "{name}" loss_weight: {weight} }}'
    )


def grad(leaf: Tensor) -> np.ndarray:
    return np.zeros(tuple(leaf.shape), np.float32) if leaf.grad is None else leaf.grad.numpy()


def ones() -> Tensor:
    return torch.ones(2, 3, requires_grad=True)


def test_the_contract_set_parameters_call_and_differentiate() -> None:
    """Gradients of the sum of out * top_diff, by the chain rule in numpy."""
    rng = np.random.default_rng(0)
    x, first, shift, second, top_diff = (
        rng.standard_normal(s).astype(np.float32) for s in ((2, 3), (4, 3), (4,), (2, 4), (2, 2))
    )
    relu = 'layer { name: "r" type: "ReLU" bottom: "a" top: "a" }'
    net = Net(parse_net(X + dense("a", "x", outputs=4) + relu + dense("b", "a")))
    with torch.no_grad():
        for parameter, value in zip(
            net.params["a"] + net.params["b"][:1], (first, shift, second), strict=True
        ):
            parameter.copy_(torch.from_numpy(value))
    leaf = torch.from_numpy(x).requires_grad_()
    (net(x=leaf)["b"] * torch.from_numpy(top_diff)).sum().backward()
    hidden = x @ first.T + shift
    back = (top_diff @ second) * (hidden > 0)
    wanted = [
        (leaf, back @ first),
        (net.params["a"][0], back.T @ x),
        (net.params["a"][1], back.sum(0)),
        (net.params["b"][0], top_diff.T @ np.maximum(hidden, 0)),
        (net.params["b"][1], top_diff.sum(0)),
    ]
    for tensor, want in wanted:
        np.testing.assert_allclose(grad(tensor), want, rtol=1e-6, atol=2e-7)


def test_gradients_of_several_passes_add_up() -> None:
    net = Net(parse_net(X + dense("a", "x") + total("l", "a", 1)))
    inputs = [torch.full((2, 3), value) for value in (1.0, 10.0, 100.0)]
    for x in inputs:
        net.total_loss(net(x=x)).backward()
    np.testing.assert_allclose(grad(net.params["a"][0]), np.full((2, 3), 222.0))
    np.testing.assert_allclose(grad(net.params["a"][1]), [6.0, 6.0])
    net.zero_grad()
    net.total_loss(net(x=inputs[0])).backward()
    np.testing.assert_allclose(grad(net.params["a"][0]), np.full((2, 3), 2.0))


def test_gradients_of_several_readers_add_up_through_in_place_layers() -> None:
    scale = 'layer { name: "p" type: "Power" bottom: "a" top: "a" power_param { scale: 3 } }'
    text = X + dense("a", "x") + scale + dense("b", "a") + total("l", "a", 1) + total("m", "b", 1)
    net = Net(parse_net(text))
    net.total_loss(net(x=ones())).backward()
    # 3 * (1 directly + 2 * 0.5 through b), over two items
    np.testing.assert_allclose(grad(net.params["a"][1]), [12.0, 12.0])


FROZEN = (
    dense("a", "x", "param { lr_mult: 0 } param { lr_mult: 0 }") + dense("b", "a", "%s") + total("l", "b", 1)
)


@pytest.mark.parametrize(
    ("force", "propagate", "want_a", "want_x"),
    [(True, False, 1.0, 1.0), (False, False, 0.0, 0.0), (False, True, 1.0, 1.0), (True, True, 1.0, 1.0)],
)
def test_force_backward_wins_over_propagate_down(
    force: bool, propagate: bool, want_a: float, want_x: float
) -> None:
    """[Caffe] for propagate_down: false, with and without force_backward."""
    more = f"propagate_down: {str(propagate).lower()}"
    net = Net(parse_net(f"force_backward: {str(force).lower()} " + X + FROZEN % more))
    x = ones()
    out = net(x=x, keep=["a"])
    if out["a"].requires_grad:
        out["a"].retain_grad()
    net.total_loss(out).backward()
    np.testing.assert_array_equal(grad(out["a"]), np.full((2, 2), want_a))
    np.testing.assert_array_equal(grad(x), np.full((2, 3), want_x))
    np.testing.assert_array_equal(grad(net.params["b"][0]), np.full((2, 2), 3.0))
    assert net.params["a"][0].grad is None  # lr_mult 0: no solver would use it


def test_lr_mult_0_stops_no_gradient_on_its_way_down() -> None:
    frozen = dense("b", "a", "param { lr_mult: 0 } param { lr_mult: 0 }")
    net = Net(parse_net(X + dense("a", "x") + frozen + total("l", "b", 1)))
    net.total_loss(net(x=ones())).backward()
    assert net.params["b"][0].grad is None and net.params["b"][1].grad is None
    np.testing.assert_array_equal(grad(net.params["a"][0]), np.full((2, 3), 2.0))


def test_propagate_down_is_one_flag_a_bottom() -> None:
    join = 'layer { name: "s" type: "Eltwise" bottom: "a" bottom: "b" top: "s" %s }'
    flags = "propagate_down: true propagate_down: false"
    net = Net(parse_net(X + dense("a", "x") + dense("b", "x") + join % flags + total("l", "s", 1)))
    net.total_loss(net(x=ones())).backward()
    np.testing.assert_array_equal(grad(net.params["a"][1]), [2.0, 2.0])
    assert net.params["b"][1].grad is None


def test_loss_weights_scale_gradients_and_leave_losses_alone() -> None:
    text = X + dense("a", "x") + total("l", "a", 0.5) + total("m", "a", -2) + total("n", "a", 0)
    net = Net(parse_net(text))
    out = net(x=ones())
    assert [float(out[name].detach()) for name in "lmn"] == [6.0, 6.0, 6.0]
    loss = net.total_loss(out)
    assert float(loss.detach()) == -9.0
    loss.backward()
    np.testing.assert_array_equal(grad(net.params["a"][1]), [-3.0, -3.0])


def test_a_loss_weight_on_a_map_weighs_each_of_its_values() -> None:
    relu = 'layer { name: "r" type: "ReLU" bottom: "a" top: "r" loss_weight: 0.25 }'
    net = Net(parse_net(X + dense("a", "x") + relu))
    out = net(x=ones())
    assert float(net.total_loss(out).detach()) == 0.25 * 4 * 1.5


def test_labels_and_selectors_get_no_gradient() -> None:
    text = (
        X
        + """
    layer { name: "t" type: "Input" top: "t" input_param { shape { dim: 2 } } }
    layer { name: "l" type: "SoftmaxWithLoss" bottom: "x" bottom: "t" top: "l" }"""
    )
    x, label = ones(), torch.tensor([0.0, 2.0], requires_grad=True)
    Net(parse_net(text))(x=x, t=label)["l"].backward()
    assert label.grad is None
    np.testing.assert_allclose(grad(x), [[-1 / 3, 1 / 6, 1 / 6], [1 / 6, 1 / 6, -1 / 3]], rtol=1e-6)


MAP = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 4 dim: 4 } } }'
DEFAULTS = {  # type and settings: first values of its blobs where nothing is said
    'type: "Convolution" convolution_param { num_output: 2 kernel_size: 3 }': (0.0, 0.0),
    'type: "InnerProduct" inner_product_param { num_output: 2 }': (0.0, 0.0),
    'type: "PReLU"': (0.25,),
    'type: "Scale" scale_param { bias_term: true }': (1.0, 0.0),
    'type: "Bias"': (0.0,),
    'type: "BatchNorm"': (0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("layer", DEFAULTS)
def test_first_values_without_a_filler(layer: str) -> None:
    net = Net(parse_net(MAP + f'layer {{ name: "l" bottom: "x" top: "y" {layer} }}'), seed=0)
    assert tuple(set(p.detach().reshape(-1).tolist()) for p in net.params["l"]) == tuple(
        {value} for value in DEFAULTS[layer]
    )


def test_a_bilinear_deconvolution_doubles_a_plane() -> None:
    """A ramp stays a ramp: the filler's factor is 2, kernel 4, stride 2, pad 1, as filler.hpp documents."""
    layer = """layer { name: "l" type: "Deconvolution" bottom: "x" top: "y" convolution_param { num_output: 2
        group: 2 kernel_size: 4 stride: 2 pad: 1 bias_term: false weight_filler { type: "bilinear" } } }"""
    ramp = torch.arange(4.0).expand(1, 2, 4, 4)
    inner = Net(parse_net(MAP + layer))(x=ramp)["y"][:, :, 2:-2, 1:-1]
    np.testing.assert_allclose(inner.detach().numpy()[0, 0, 0], np.arange(6) / 2 + 0.25)
