"""A net's parameters: filled, loaded, saved, shared, as Caffe does it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_net import BODY, DATA, SMALL, image, small

from caffe_weights.errors import NetError, WeightsError
from caffe_weights.export import read_weights, write_weights
from caffe_weights.prototxt import parse_net
from caffe_weights.weights import Weights
from reproduce.net import Net


def test_seed_fixes_the_fillers() -> None:
    first, second, other = small(), small(), Net(parse_net(SMALL), seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.params["ip"][0], other.params["ip"][0])
    bound = (3 / 36) ** 0.5  # xavier over 36 inputs
    largest = float(first.params["ip"][0].detach().abs().max())
    assert 0.9 * bound < largest <= bound
    assert not first.params["ip"][1].any()  # constant 0 where no filler is given


def test_state_dict_round_trip_and_unknown_key() -> None:
    first, second = small(), Net(parse_net(SMALL), seed=9)
    state = first.state_dict()
    assert str(second.load_state_dict(state)) == "<All keys matched successfully>"
    assert torch.equal(first(data=image())["prob"], second(data=image())["prob"])
    with pytest.raises(RuntimeError, match="Unexpected key.*stranger"):
        second.load_state_dict({**state, "stranger.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Missing key.*conv\.1\.bias"):
        second.load_state_dict({k: v for k, v in state.items() if k != "conv.1.bias"})


@pytest.mark.parametrize("extension", ["caffemodel", "caffemodel.h5", "safetensors", "pt", "npz"])
def test_weights_go_through_every_format(tmp_path: Path, extension: str) -> None:
    net = Net(parse_net(SMALL.replace("pool/a", "pool_a")), seed=1)  # HDF5 holds no slash
    path = tmp_path / f"model.{extension}"
    write_weights(net.weights(), path, net=net.definition)
    (tmp_path / "net.prototxt").write_text(SMALL)
    again = Net.from_prototxt(tmp_path / "net.prototxt", weights=path)
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    again.load_weights(read_weights(path))


def test_weights_are_matched_as_caffe_matches_them() -> None:
    rng = np.random.default_rng(0)
    blobs: dict[str, list[np.ndarray]] = {
        "conv.1": [rng.normal(size=(4, 3, 3, 3)), rng.normal(size=(1, 1, 1, 4))],  # float64, legacy sizes
        "ip": [rng.normal(size=(1, 1, 5, 36)).astype(np.float32), np.arange(1, 6, dtype=np.float32)],
        "data_split": [],
        "elsewhere": [np.zeros(3)],
    }
    net = Net(parse_net(SMALL), Weights(blobs))
    for layer in ("conv.1", "ip"):
        for got, want in zip(net.params[layer], blobs[layer], strict=True):
            assert np.array_equal(got.detach().numpy(), want.astype(np.float32).reshape(got.shape))
    net.params["ip"][1].data.zero_()
    assert blobs["ip"][1][0] == 1  # the net holds a copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ip": None},
            "no blobs for layer ip; wanted blobs for all 2 layers with parameters; .*strict=False",
        ),
        ({"ip": [np.zeros((5, 36))]}, "layer ip: 1 blobs; wanted 2"),
        ({"ip": [np.zeros((5, 35)), np.zeros(5)]}, "layer ip: weight: shape 5x35; wanted 5x36"),
        ({"ip": [np.zeros((36, 5)), np.zeros(5)]}, "layer ip: weight: shape 36x5; wanted 5x36"),
        ({"ip": [np.zeros((5, 36)), np.zeros((1, 5))]}, "layer ip: bias: shape 1x5; wanted 5"),
        ({"ip": [np.zeros((2, 1, 5, 36)), np.zeros(5)]}, "layer ip: weight: shape 2x1x5x36"),
    ],
)
def test_weights_that_do_not_fit(change: dict[str, list[np.ndarray] | None], message: str) -> None:
    blobs = {**dict(small().weights()), **change}
    with pytest.raises(WeightsError, match=message):
        Net(parse_net(SMALL), Weights({name: b for name, b in blobs.items() if b is not None}))


def test_missing_weights_are_filled_on_request() -> None:
    weights = small().weights()
    del weights["ip"]
    weights["conv.1"] = [2 * blob for blob in weights["conv.1"]]
    net = Net(parse_net(SMALL), weights, seed=5, strict=False)
    assert np.array_equal(net.params["conv.1"][0].detach().numpy(), weights["conv.1"][0])
    assert bool(net.params["ip"][0].any())


def test_data_layer_without_sizes_takes_parameters_from_the_weights() -> None:
    definition, weights = parse_net(DATA + BODY), small().weights()
    net = Net(definition, weights)
    assert net.inputs == ["data", "label"]
    assert torch.equal(net(data=image())["prob"], small()(data=image())["prob"])
    with pytest.raises(NetError, match=r"layer ip: bottom pool: 2x4x4x4 needs ip.weight of 5x64"):
        net(data=image(2, 9))
    with pytest.raises(NetError, match=r"no shape for blob data; .*input_shapes"):
        Net(definition)
    sized = Net(definition, input_shapes={"data": (1, 3, 8, 8)}, seed=1)  # the label's size is not needed
    assert torch.equal(sized(data=image())["prob"], net(data=image())["prob"])
    del weights["ip"]
    with pytest.raises(WeightsError, match="no blobs for layer ip; .*input_shapes"):
        Net(definition, weights, strict=False)


SHARED = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" }
        inner_product_param { num_output: 6 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" }
        inner_product_param { num_output: 6 bias_term: false } }
layer { name: "r" type: "Reshape" bottom: "b" top: "r" reshape_param { shape { dim: 3 dim: 4 } } }
layer { name: "d" type: "InnerProduct" bottom: "r" top: "d" param { name: "w" share_mode: PERMISSIVE }
        inner_product_param { num_output: 9 bias_term: false } }
"""


def test_shared_parameters_are_one() -> None:
    net = Net(parse_net(SHARED), seed=1)
    assert list(net.state_dict()) == ["a.weight", "b.weight"]
    assert [slot.key for slot in net.learnable()] == ["a.weight"] and len(list(net.parameters())) == 1
    assert net.params["b"][0] is net.params["a"][0] and net.params["d"][0].shape == (9, 4)
    x = torch.rand(2, 6)
    w = net.params["a"][0].detach().clone().requires_grad_()
    want = (x @ w.t() @ w.t()).reshape(3, 4) @ w.reshape(9, 4).t()
    out = net(x=x)["d"]
    torch.testing.assert_close(out, want)
    out.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(net.params["a"][0].grad, w.grad)
    again = Net(parse_net(SHARED), net.weights())
    assert torch.equal(again(x=x)["d"], out)


def test_shared_parameters_of_other_shapes_are_refused() -> None:
    with pytest.raises(NetError, match=r"layer d.*9x4"):
        Net(parse_net(SHARED.replace(" share_mode: PERMISSIVE", "")))


def test_sharers_must_agree_on_the_rate() -> None:
    text = SHARED.replace('param { name: "w" }', 'param { name: "w" lr_mult: 1 }', 1)
    text = text.replace('param { name: "w" }', 'param { name: "w" lr_mult: 2 }')
    with pytest.raises(NetError, match="layer b: param w: lr_mult 2; wanted 1, as layer a has it"):
        Net(parse_net(text))


def test_rate_of_a_sharer_serves_an_owner_without() -> None:
    text = SHARED.replace("share_mode: PERMISSIVE", "share_mode: PERMISSIVE lr_mult: 0")
    net = Net(parse_net(text), seed=1)
    assert not net.params["a"][0].requires_grad and net.learnable()[0].lr_mult == 0


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_a_loaded_file_is_not_kept_in_memory(tmp_path: Path) -> None:
    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4000 } } } '
    text += 'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"'
    text += " inner_product_param { num_output: 4000 } }"
    values = np.random.default_rng(0).standard_normal((4000, 4000), np.float32)  # 64 MB
    write_weights(Weights({"ip": [values, np.zeros(4000, np.float32)]}), tmp_path / "w.safetensors")
    weights = read_weights(tmp_path / "w.safetensors")
    before = _file_pages()
    net = Net(parse_net(text), weights)
    assert _file_pages() - before < 16e6
    assert np.array_equal(net.params["ip"][0].detach().numpy(), values)
    assert np.array_equal(weights["ip"][0], values)  # still there


def _file_pages() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssFile:")) * 1024
