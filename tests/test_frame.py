"""The exact shortcut over the constant border: the same as the plain way, for every net, size and call.

The plain way, which the goldens hold against Caffe, is the oracle; in float64, where a wrong position cannot
hide behind rounding. The arithmetic of one axis is held against maps made by brute force.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from frame_nets import random_net
from hypothesis import given, settings
from hypothesis import strategies as st
from made_weights import NARROW, made_weights
from torch import Tensor, nn

from caffe_weights.errors import NetError
from caffe_weights.prototxt import parse_net
from reproduce.layers import LAYERS
from reproduce.layers.neuron import ReLU
from reproduce.net import Net
from reproduce.nets import NETS, Form, make_net
from reproduce.tolerances import GRADIENT, NET, worst_difference
from surgery.border import Axis, first_axis, image_axis, next_axis, read_span
from surgery.netspec import L, NetSpec

WIDER = ("auto-deeplab-m", "auto-deeplab-l")  # of the layers of auto-deeplab-s
FCNS = [name for name, entry in NETS.items() if entry.data and name not in WIDER]
SMALL = Form(16, fc=12, classes=5)
EXACT = 1e-12  # float64


def both_ways(name: str, form: Form = SMALL, dtype: torch.dtype = torch.float64) -> tuple[Net, Net]:
    """A net by name, plain and with the shortcut, with the same weights."""
    net, weights = make_net(name, form=form), made_weights(name, form)
    plain = Net(net, weights, frame=False).to(dtype)
    return plain, Net(net, weights, frame=True).to(dtype)


def pictures(net: Net, size: tuple[int, int], batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
    shapes = net.shapes().blobs
    draw = torch.Generator().manual_seed(seed)
    shape = {name: (batch, shapes[name][1], *size) for name in net.inputs}
    dtype = next(net.parameters()).dtype
    return {name: 60 * torch.randn(s, generator=draw).to(dtype) for name, s in shape.items()}


def run(net: Net, inputs: dict[str, Tensor], keep: Iterable[str] = ()) -> dict[str, Tensor]:
    with torch.no_grad():
        return net(keep=keep, **inputs)


def apart(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    assert got.keys() == want.keys()
    return max(worst_difference(got[k].numpy(), want[k].numpy(), channels=False)[0] for k in want)


def is_framed(net: Net, inputs: dict[str, Tensor]) -> bool:
    flops = net.flops({name: tuple(x.shape) for name, x in inputs.items()})
    return flops.regions < flops.plain


@pytest.mark.parametrize("name", FCNS)
def test_every_net_has_the_same_blobs(name: str) -> None:
    plain, short = both_ways(name)
    for size, batch in (((35, 52), 2), ((1, 1), 1)):
        inputs = pictures(plain, size, batch)
        assert apart(run(short, inputs, short.blobs), run(plain, inputs, plain.blobs)) < EXACT
    padded = max(pad for layer in plain.definition.layer for pad in layer.convolution_param.pad)
    assert is_framed(short, inputs) == (padded == 100)


@pytest.mark.parametrize("name", ["voc-fcn8s", "voc-fcn-alexnet"])
def test_every_remainder_of_the_strides(name: str) -> None:
    """Every height and every width modulo 32, one after another in one net, so that rims are met again."""
    plain, short = both_ways(name, Form(64, fc=4, classes=2))
    for i in range(2 * 32):
        inputs = pictures(plain, (30 + i % 32, 25 + (13 * i + i // 32 * 7) % 32))
        assert apart(run(short, inputs), run(plain, inputs)) < EXACT, inputs["data"].shape


def test_random_sizes_in_float32() -> None:
    plain, short = both_ways("voc-fcn8s", dtype=torch.float32)
    draw = np.random.default_rng(5)
    for _ in range(20):
        inputs = pictures(plain, (int(draw.integers(1, 160)), int(draw.integers(1, 160))))
        got, want = run(short, inputs)["score"], run(plain, inputs)["score"]
        assert worst_difference(got.numpy(), want.numpy(), channels=False)[0] < 2e-6
        best = want.topk(2, dim=1).values
        sure = best[:, 0] - best[:, 1] > 2 * NET * want.abs().max()
        assert torch.equal(got.argmax(1)[sure], want.argmax(1)[sure])


def test_the_largest_size() -> None:
    plain, short = both_ways("voc-fcn32s", Form(64, fc=4, classes=2))
    inputs = pictures(plain, (1200, 900))
    assert is_framed(short, inputs)
    assert apart(run(short, inputs), run(plain, inputs)) < EXACT


@pytest.mark.parametrize("seed", range(60))
def test_random_nets_forward_and_backward(seed: int) -> None:
    """All layers that are followed, in any order, with any window, and some layers that are not."""
    try:
        plain = Net(random_net(seed), frame=False, seed=seed).double()
    except NetError:
        return  # a map got too small for its layer: such a net has no plain way either
    with torch.no_grad():
        for blobs in plain.params.values():
            if len(blobs) == 3:  # BatchNorm: sums and their factor
                for blob, value in zip(blobs, (0.3, 2.0, 1.5), strict=True):
                    blob.fill_(value)
    short = Net(random_net(seed), frame=True).double()
    short.load_state_dict(plain.state_dict())
    x = torch.randn(plain.shapes().blobs["data"], generator=torch.Generator().manual_seed(seed)).double()
    results = [backward(net, x, net.blobs) for net in (plain, short)]
    assert apart(results[1][0], results[0][0]) < EXACT
    largest = max(float(g.abs().max()) for g in results[0][1].values())
    for name, want in results[0][1].items():
        assert float((results[1][1][name] - want).abs().max()) <= 1e-10 * largest, name


def backward(net: Net, x: Tensor, keep: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All blobs, and the gradients of a random sum of them by parameter and for the input."""
    leaf = x.clone().requires_grad_()
    blobs = net(data=leaf, keep=keep)
    draw = torch.Generator().manual_seed(1)
    terms = [(b * torch.randn(b.shape, generator=draw)).sum() for b in blobs.values() if b.requires_grad]
    torch.stack(terms).sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in blobs.items()}, {**gradients, "data": leaf.grad}  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["voc-fcn8s", "voc-fcn-alexnet", "nyud-fcn32s-color-hha"])
def test_gradients_of_the_parameters_in_training(name: str) -> None:
    """The train net with its loss and dropout; same seed, same masks."""
    definition = make_net(name, NETS[name].splits[0], form=SMALL)
    size = dict.fromkeys(NETS[name].data.inputs, (2, 3, 45, 58))  # type: ignore[union-attr]
    shapes = {**size, "label": (2, 1, 45, 58)}
    inputs: dict[str, Any] = {top: 60 * torch.randn(shape) for top, shape in size.items()}
    inputs["label"] = torch.randint(0, 5, shapes["label"]).float()
    gradients = []
    for frame in (False, True):
        net = Net(definition, made_weights(name, SMALL), phase="TRAIN", input_shapes=shapes, frame=frame)
        torch.manual_seed(3)
        net.total_loss(net(**inputs)).backward()
        gradients.append({k: p.grad for k, p in net.named_parameters() if p.grad is not None})
    for key, want in gradients[0].items():
        assert worst_difference(gradients[1][key].numpy(), want.numpy(), channels=False)[0] <= GRADIENT, key


def test_rims_follow_the_parameters() -> None:
    """However a parameter is changed, the next call knows: by an optimizer, or as users of pycaffe do it."""
    plain, short = both_ways("voc-fcn32s")
    inputs = pictures(plain, (40, 50))
    before = run(short, inputs)["score"]

    def bias(net: Net) -> nn.Parameter:
        parameter = net.params["conv3_2"][1]
        assert isinstance(parameter, nn.Parameter)
        return parameter

    def step(net: Net) -> None:
        with torch.no_grad():
            bias(net).add_(0.5)

    def edit_data(net: Net) -> None:
        bias(net).data[:] = 0.7

    def replace_data(net: Net) -> None:
        bias(net).data = torch.full_like(bias(net), -0.4)

    def reorder_data(net: Net) -> None:
        weight = net.params["conv3_2"][0]
        weight.data[:] = weight.data.flip(0, 1)

    for change in (step, edit_data, replace_data, reorder_data):
        change(plain), change(short)
        after = run(short, inputs)["score"]
        assert not torch.allclose(after, before)
        assert apart({"score": after}, run(plain, inputs)) < EXACT
        before = after


def test_rims_follow_dtype_and_copies() -> None:
    plain, short = both_ways("voc-fcn32s")
    inputs = pictures(plain, (40, 50))
    want = run(plain, inputs)["score"]
    run(short, inputs)
    singles = {name: x.float() for name, x in inputs.items()}
    got = run(deepcopy(short).float(), singles)["score"]
    assert got.dtype == torch.float32
    assert worst_difference(got.numpy(), want.float().numpy(), channels=False)[0] < NET
    assert torch.equal(run(short.double(), inputs)["score"], run(short, inputs)["score"])


def test_modes_of_autograd_share_no_rims() -> None:
    """Without gradients, in inference mode, and with gradients: in any order."""
    plain, short = both_ways("voc-fcn32s")
    inputs = pictures(plain, (40, 50))
    want = run(plain, inputs)
    with torch.inference_mode():
        assert apart(short(**inputs), want) < EXACT
    assert apart(run(short, inputs), want) < EXACT
    gradients = []
    for net in (plain, short):
        out = net(**inputs)["score"]
        out.sum().backward()
        assert apart({"score": out.detach()}, want) < EXACT
        gradients.append({k: p.grad for k, p in net.named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 30
    assert apart(gradients[1], gradients[0]) < 1e-10  # also by way of the rims, which were known before
    assert apart(run(short, inputs), want) < EXACT


def test_autocast_shares_no_rims() -> None:
    plain, short = both_ways("voc-fcn32s", dtype=torch.float32)
    inputs = pictures(plain, (40, 50))
    want = run(plain, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        halves = run(short, inputs)
    assert apart({"score": halves["score"].float()}, want) > 1e-4
    assert apart(run(short, inputs), want) < NET


def test_without_a_wide_padding_nothing_changes() -> None:
    """Not one bit, and no FLOP counted away."""
    for name in ("vgg16", "googlenet"):
        net, weights = make_net(name, form=NARROW), made_net_weights(name)
        plain, short = Net(net, weights, frame=False), Net(net, weights)
        inputs = pictures(plain, tuple(plain.shapes().blobs["data"][2:]))  # type: ignore[arg-type]
        assert not is_framed(short, inputs)
        assert torch.equal(run(short, inputs)["prob"], run(plain, inputs)["prob"])


def made_net_weights(name: str) -> Any:
    return Net(make_net(name, form=NARROW), seed=0).weights()


def test_by_default_only_where_it_pays() -> None:
    """Not for an image so large that its border is nothing beside it."""
    net = Net(make_net("voc-fcn32s", form=Form(4, fc=64, classes=2)))
    usual = net.flops({"data": (1, 3, 500, 500)})
    assert usual.regions + usual.rims < 0.8 * usual.plain
    huge = net.flops({"data": (1, 3, 6000, 6000)})
    assert huge.regions == huge.plain
    assert huge.rims == 0


def test_a_layer_put_in_the_place_of_ours_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's layer may look at the whole map; this one does."""

    class Centred(ReLU):
        def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
            return [bottoms[0] - bottoms[0].mean((2, 3), keepdim=True)]

    monkeypatch.setitem(LAYERS, "ReLU", Centred)
    plain, short = both_ways("voc-fcn32s")
    inputs = pictures(plain, (40, 50))
    assert apart(run(short, inputs), run(plain, inputs)) < EXACT


NOT_FOLLOWED = {  # in TRAIN; x is positive
    "each position its own mask": 'type: "Dropout" bottom: "x" top: "y"',
    "statistics of the map": 'type: "BatchNorm" bottom: "x" top: "y"',
    "a normalised map": 'type: "MVN" bottom: "x" top: "y"',
    "draws": 'type: "Pooling" bottom: "x" top: "y" pooling_param { pool: STOCHASTIC kernel_size: 2 }',
    "places of the map": 'type: "Pooling" bottom: "x" top: "y" top: "mask" pooling_param { kernel_size: 2 }',
    "the whole map": 'type: "Pooling" bottom: "x" top: "y" pooling_param { pool: AVE global_pooling: true }',
    "a scale a row": 'type: "Scale" bottom: "x" top: "y" scale_param { axis: 2 filler { type: "xavier" } }',
    "a scale a channel and row":
        'type: "Scale" bottom: "x" top: "y" scale_param { num_axes: 2 filler { type: "xavier" } }',
    "a bias a column": 'type: "Bias" bottom: "x" top: "y" bias_param { axis: -1 filler { type: "xavier" } }',
    "rows below each other": 'type: "Concat" bottom: "x" bottom: "x" top: "y" concat_param { axis: 2 }',
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_FOLLOWED)
def test_layers_that_are_not_alike_at_every_position_see_the_whole_map(what: str) -> None:
    """Their bottom is framed; they are not, and draw as many random numbers."""
    noise = 'weight_filler { type: "gaussian" std: 1 }'
    definition = parse_net(f"""
        layer {{ name: "d" type: "Input" top: "d" input_param {{ shape {{ dim: 2 dim: 2 dim: 7 dim: 6 }} }} }}
        layer {{ name: "c" type: "Convolution" bottom: "d" top: "c"
                 convolution_param {{ num_output: 3 kernel_size: 3 pad: 14 {noise} }} }}
        layer {{ name: "x" type: "BNLL" bottom: "c" top: "x" }}
        layer {{ name: "y" {NOT_FOLLOWED[what]} }}
        layer {{ name: "z" type: "AbsVal" bottom: "y" top: "z" }}""")
    inputs = {"d": torch.randn(2, 2, 7, 6, dtype=torch.float64)}
    found = []
    for frame in (False, True):
        net = Net(definition, phase="TRAIN", seed=0, frame=frame).double()
        torch.manual_seed(4)
        found.append(run(net, inputs, keep=["x", "y"]))
    assert is_framed(net, inputs)
    assert apart(found[1], found[0]) < EXACT


def test_export_does_without() -> None:
    _, short = both_ways("voc-fcn32s", dtype=torch.float32)
    inputs = pictures(short, (32, 32))
    program = torch.export.export(short, (), inputs)
    assert not any("_Paste" in str(node.target) for node in program.graph.nodes)
    got = program.module()(**inputs)["score"]
    assert worst_difference(got.detach().numpy(), run(short, inputs)["score"].numpy())[0] < NET


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3)), max_size=4),
)
def test_one_axis_against_maps_made_by_brute_force(image: int, windows: list[tuple[int, int, int]]) -> None:
    """Cores against where changing the image changes anything; alike positions against equal values."""
    draw = np.random.default_rng(0)
    one, other, none = (np.pad(x, 12) for x in (draw.random(image), draw.random(image), np.zeros(image)))
    axis, values = image_axis(image), [one[12:-12], other[12:-12], none[12:-12]]
    for step, (extent, stride, pad) in enumerate([(3, 1, 12), *windows]):
        weights, bias = draw.random(extent) + 0.1, draw.random()
        values = [convolve(v, weights, bias, stride, pad) for v in values]
        size = len(values[0])
        if not size:
            return
        axis = (next_axis if step else first_axis)(axis, extent, stride, pad, size)
        check_axis(axis, values)


def convolve(x: np.ndarray, weights: np.ndarray, bias: float, stride: int, pad: int) -> np.ndarray:
    x = np.pad(x, pad)
    starts = range(0, len(x) - len(weights) + 1, stride)
    return np.array([x[i : i + len(weights)] @ weights + bias for i in starts])


def check_axis(axis: Axis, values: list[np.ndarray]) -> None:
    one, other, none = values
    changed = np.flatnonzero(one != other)
    assert 0 <= axis.core[0] < axis.core[1] <= axis.size == len(one)
    assert all(axis.core[0] <= i < axis.core[1] for i in changed)
    outside = np.r_[0 : axis.core[0], axis.core[1] : axis.size]
    assert np.array_equal(one[outside], none[outside])
    alike = none[axis.low : axis.low + axis.fold + 1]
    assert len(alike) == axis.fold + 1
    assert np.allclose(alike, alike[0], rtol=1e-12)


def test_what_a_span_reads() -> None:
    assert read_span((10, 20), 3, 1, 1) == (9, 21)
    assert read_span((0, 5), 2, 2, 0) == (0, 10)
    assert read_span((23, 150), 11, 4, 100) == (
        -8,
        507,
    )  # AlexNet's conv1 over 500 pixels: 8 and 7 beyond them


def test_flops_of_one_convolution_by_hand() -> None:
    """pad 10, kernel 3: of 26 x 28 positions 10 x 12 see the 8 x 10 image; 1 x 1 for the rim."""
    n = NetSpec()
    n.data = L.Input(shape=[2, 3, 8, 10])
    n.wide = L.Convolution(n.data, num_output=5, kernel_size=3, pad=10)
    flops = Net(n.to_proto()).flops()
    assert flops.plain == 2 * 2 * 5 * 3 * 9 * 26 * 28
    assert flops.regions == 2 * 2 * 5 * 3 * 9 * 10 * 12
    assert flops.rims == 2 * 5 * 3 * 9


@pytest.mark.slow
def test_full_width_as_designed() -> None:
    """250 of 362 GFLOP at 500x500, about half at 256x256; the scores there."""
    plain, short = both_ways("voc-fcn8s", Form(), torch.float32)
    large, small = (short.flops({"data": (1, 3, n, n)}) for n in (500, 256))
    assert large.plain == pytest.approx(362e9, rel=0.01)
    assert large.regions + large.rims == pytest.approx(250e9, rel=0.03)
    assert small.regions + small.rims < 0.57 * small.plain
    inputs = pictures(plain, (256, 256))
    got, want = run(short, inputs)["score"], run(plain, inputs)["score"]
    assert worst_difference(got.numpy(), want.numpy())[0] < NET
