"""Layers of a user's own: what docs/own-layers.md shows is run, and what can be wrong with it is said."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import reproduce.layers as layers
from caffe_weights.errors import NetError
from caffe_weights.prototxt import parse_net
from reproduce.definition import input_shapes
from reproduce.net import Net
from surgery import shapes
from surgery.deploy import deploy_net

PAGE = Path(__file__).resolve().parent.parent / "docs" / "own-layers.md"
X = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }'


@pytest.fixture
def example(capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """The page's code, run; what it prints. The tables are put back afterwards."""
    tables = [layers.LAYERS, layers.PYTHON_LAYERS, shapes.LAYER_RULES, shapes.PYTHON_RULES]
    before = [dict(table) for table in tables]  # type: ignore[call-overload]
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)), {})
    yield capsys.readouterr().out
    for table, old in zip(tables, before, strict=True):
        table.clear()  # type: ignore[attr-defined]
        table.update(old)  # type: ignore[attr-defined]


def own(kind: str, settings: str = "", module: str = "") -> Net:
    param = f'python_param {{ param_str: "{settings}" {module} }}'
    return Net(parse_net(X + f'layer {{ name: "l" type: "{kind}" bottom: "x" top: "y" {param} }}'))


def test_the_page_s_example(example: str) -> None:
    assert example == "(1, 4, 5, 3)\n"
    x = torch.rand(2, 3, 4, 5, requires_grad=True)
    y = own("Permute", "{'order': [3, 1, 0, 2]}")(x=x)["y"]
    assert y.shape == (5, 3, 2, 4) and torch.equal(y[4, 2, 1, 3], x[1, 2, 3, 4])
    (y * torch.arange(5.0).reshape(5, 1, 1, 1)).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.arange(5.0).expand(2, 3, 4, 5))


def test_a_layer_with_parameters(example: str) -> None:
    net = own("Gain")
    assert net.params["l"][0].tolist() == [1.0, 1.0, 1.0] and list(net.state_dict()) == ["l.weight"]
    with torch.no_grad():
        net.params["l"][0].copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert net(x=torch.ones(2, 3, 4, 5))["y"].mean((0, 2, 3)).tolist() == [1.0, 2.0, 3.0]


def test_a_python_layer_is_looked_up_and_never_imported(example: str) -> None:
    net = own("Python", "{'order': [0, 1, 3, 2]}", 'module: "ssd" layer: "Permute"')
    assert net.inputs == ["x"] and net(x=torch.rand(2, 3, 4, 5))["y"].shape == (2, 3, 5, 4)
    assert list(input_shapes(net.definition)) == ["x"] and len(deploy_net(net.definition).layer) == 2
    message = r"layer l \(Python\): no class is registered for layer 'system' of module 'os', .*ssd.Permute"
    with pytest.raises(NetError, match=message):
        own("Python", "", 'module: "os" layer: "system"')


def test_an_unregistered_python_layer_with_bottoms_is_refused() -> None:
    with pytest.raises(NetError, match=r"layer l \(Python\): .*layer 'L' of module 'm'.*call .*register\("):
        own("Python", "", 'module: "m" layer: "L"')


def test_settings_are_read_and_never_evaluated(example: str) -> None:
    with pytest.raises(NetError, match=r"layer l: param_str: .*; wanted the literal of a Python dict"):
        own("Permute", "__import__('os').getcwd()")


def test_counts_of_an_own_layer_are_checked(example: str) -> None:
    with pytest.raises(NetError, match=r"layer l \(Permute\): 2 tops; wanted 1"):
        Net(parse_net(X + 'layer { name: "l" type: "Permute" bottom: "x" top: "y" top: "z" }'))
