"""The plain PyTorch port that benchmarks measure ours next to: the same numbers from the same weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_weights import made_weights

from caffe_weights.errors import WeightsError
from reproduce.net import Net
from reproduce.nets import Form, make_net
from reproduce.tolerances import NET, worst_difference

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import usual_port

FORM = Form(16, fc=12, classes=5)
NAMES = {32: "voc-fcn32s", 16: "voc-fcn16s", 8: "voc-fcn8s"}


def port(stride: int) -> usual_port.UsualFCN:
    made = usual_port.UsualFCN(stride, classes=5, narrow=16, fc=12)
    usual_port.load(made, made_weights(NAMES[stride], FORM))
    return made.eval()


def picture(height: int = 45, width: int = 66) -> torch.Tensor:
    return 60 * torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("stride", NAMES)
def test_the_port_gives_our_scores(stride: int) -> None:
    net = Net(make_net(NAMES[stride], form=FORM), made_weights(NAMES[stride], FORM), frame=False)
    x = picture()
    with torch.no_grad():
        ours, usual = net(data=x)["score"], port(stride)(x)
    assert usual.shape == (1, 5, 45, 66)
    assert worst_difference(usual.numpy(), ours.numpy())[0] <= NET


@pytest.mark.parametrize("stride", NAMES)
def test_the_port_has_the_parameters_of_the_published_net(stride: int) -> None:
    full = make_net(NAMES[stride], form=Form())
    with torch.device("meta"):
        made = usual_port.UsualFCN(stride)
    have = {name for name, _ in usual_port.layers(made)}
    assert have == {layer.name for layer in full.layer if layer.type in ("Convolution", "Deconvolution")}
    # VGG16's convolutions with fc6 and fc7, and 21 classes
    trunk = 14_714_688 + 4096 * (512 * 49 + 1) + 4096 * 4097
    score = {32: 0, 16: 513 * 21, 8: (513 + 257) * 21}[stride] + 4097 * 21
    learned = sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert learned == trunk + score


def test_void_pixels_do_not_count_in_the_summed_loss() -> None:
    scores = torch.zeros(1, 4, 2, 3)
    labels = torch.tensor([[[0, 1, 255], [3, 255, 2]]])
    assert usual_port.summed_loss(scores, labels).item() == pytest.approx(4 * np.log(4))


def test_the_ports_optimizer_is_the_published_solver() -> None:
    groups = usual_port.optimizer(port(8), lr=1e-3).param_groups
    assert [(g["lr"], g["weight_decay"], g["momentum"]) for g in groups] == [
        (1e-3, 5e-4, 0.99), (2e-3, 0.0, 0.99),
    ]  # fmt: skip
    assert [len(g["params"]) for g in groups] == [18, 18]


def test_weights_of_another_net_are_refused() -> None:
    with pytest.raises((KeyError, WeightsError)):
        usual_port.load(usual_port.UsualFCN(8, 5, 16, 12), made_weights(NAMES[32], FORM))
