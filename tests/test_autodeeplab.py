"""Auto-DeepLab: the paper's numbers from our nets, cells against numpy, names of a checkpoint by shape.

Constants are the published ones, and those that were worked out from the authors' code apart from ours.
"""

from __future__ import annotations

import random
from typing import Any

import cell_oracle
import numpy as np
import pytest
import torch
from test_recognition import full_width

from caffe_weights.errors import NetError, WeightsError
from reproduce.net import Net
from reproduce.nets import Form, make_net, named_solver
from reproduce.nets.architecture import OPERATIONS, PUBLISHED, Architecture, block_inputs
from reproduce.nets.autodeeplab import State, cell, slide_image_pooling
from reproduce.nets.autodeeplab_checkpoint import from_tensorflow, tensorflow_variables
from reproduce.nets.autodeeplab_counts import (
    breakdown,
    cell_table,
    full_multiply_adds,
    learnable_values,
    plain_multiply_adds,
)
from reproduce.recognition import recognize
from surgery.netspec import L, NetSpec
from surgery.shapes import infer_shapes
from surgery.summary import summarize

SIZES = {  # parameters; plain, ours in full and published multiply-adds in 1e9, at 1025 x 2049
    "s": (10_147_427, 320.45, 333.18, 333.25),
    "m": (21_622_451, 439.92, 460.83, 460.93),
    "l": (44_424_691, 662.42, 694.88, 695.03),
}
PARTS = {
    "s": (112_832, 6_918_000, 1_815_552, 1_296_160, 4_883),
    "m": (112_832, 17_499_264, 2_706_432, 1_299_040, 4_883),
    "l": (112_832, 39_109_824, 3_894_272, 1_302_880, 4_883),
}
CELLS = [  # level, f (F = 20), channels of H-2, H-1, out, map at 1025 x 2049, parameters of S, M, L
    (0, 20, 64, 128, 100, (257, 513), 38_240, 89_216, 189_888),
    (0, 20, 128, 100, 100, (257, 513), 38_960, 92_288, 198_336),
    (0, 20, 100, 100, 100, (257, 513), 38_400, 93_312, 203_712),
    (1, 40, 100, 100, 200, (129, 257), 135_200, 336_128, 743_808),
    (2, 80, 100, 200, 400, (65, 129), 512_000, 1_290_752, 2_879_232),
    (1, 40, 200, 400, 200, (129, 257), 151_200, 377_088, 835_968),
    (2, 80, 400, 200, 400, (65, 129), 536_000, 1_352_192, 3_017_472),
    (2, 80, 200, 400, 400, (65, 129), 536_000, 1_352_192, 3_017_472),
    (3, 160, 400, 400, 800, (33, 65), 2_038_400, 5_178_368, 11_601_408),
    (3, 160, 400, 800, 800, (33, 65), 2_102_400, 5_342_208, 11_970_048),
    (2, 80, 800, 800, 400, (65, 129), 616_000, 1_556_992, 3_478_272),
    (1, 40, 800, 400, 200, (129, 257), 175_200, 438_528, 974_208),
]


@pytest.mark.parametrize("size", SIZES)
def test_parameters_and_multiply_adds(size: str) -> None:
    net = make_net(f"auto-deeplab-{size}")
    values, plain, full, published = SIZES[size]
    assert learnable_values(net) == values
    assert tuple(breakdown(net).values()) == PARTS[size] and sum(PARTS[size]) == values
    assert plain_multiply_adds(net) / 1e9 == pytest.approx(plain, abs=0.005)
    assert full_multiply_adds(net) / 1e9 == pytest.approx(full, abs=0.005)
    assert full_multiply_adds(net) / 1e9 == pytest.approx(published, rel=0.001)


@pytest.mark.parametrize("size", SIZES)
def test_every_cell_of_the_table(size: str) -> None:
    rows = cell_table(make_net(f"auto-deeplab-{size}"))
    for row, want in zip(rows, CELLS, strict=True):
        level, width, before, last, out, place, *values = want
        assert (row.level, row.height, row.width) == (level, *place)
        assert row.learnable == values["sml".index(size)]
        if size == "s":
            assert (row.block_channels, row.channels_before_last, row.channels_last, row.channels) == (
                width, before, last, out)  # fmt: skip


def test_the_summary_counts_the_same() -> None:
    found = summarize(make_net("auto-deeplab-s", size=(65, 65)))
    assert found.multiply_adds == plain_multiply_adds(make_net("auto-deeplab-s", size=(65, 65)))
    assert found.parameters - found.statistics == 10_147_427
    rows = {row.name: row for row in found.rows}
    assert rows["cell0_last"].stride == (4, 4) and rows["cell0_last"].receptive_field == (11, 11)
    assert rows["score"].receptive_field is None  # it sees the whole picture by image pooling


def test_maps_at_the_training_crop() -> None:
    rows = cell_table(make_net("auto-deeplab-s", size=(769, 769)))
    assert [row.height for row in rows] == [193, 193, 193, 97, 49, 97, 49, 49, 25, 25, 49, 97]


def test_the_published_wiring() -> None:
    """As numbers of the authors' code: 0 is the last cell's output, 1 the one before, then the blocks."""
    numbers = {"H-1": 0, "H-2": 1, **{f"block {i}": i + 1 for i in range(1, 6)}}
    wiring = [numbers[source] for block in PUBLISHED.cell for source, _ in block]
    assert wiring == [1, 0, 1, 0, 3, 1, 4, 2, 3, 5]
    assert list(PUBLISHED.levels) == [0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1]


MOVES = {"same": (4, 4), "up": (8, 4), "down": (4, 8)}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("seed", range(6))
def test_a_cell_is_what_numpy_makes_of_it(move: str, seed: int) -> None:
    """The published cell, and random ones of all operations; maps of odd and of even sizes."""
    draw = random.Random(seed)
    blocks = PUBLISHED.cell if not seed else tuple(random_block(draw, i) for i in range(1, 4))
    old, new = MOVES[move]
    height, width = (9, 13) if seed % 2 == 0 else (6, 7)
    far = (5, 7) if seed == 2 else (height, width)  # H-2 at another stride
    channels = Architecture((new,), blocks, 3).channels(new)
    net, params = one_cell(blocks, (old, new), (height, width), far, channels if seed == 3 else 7)
    rng = np.random.default_rng(seed)
    last, before = (
        rng.normal(size=(2, 5, height, width)),
        rng.normal(size=(2, *net.shapes().blobs["before"][1:])),
    )
    with torch.no_grad():
        got = net(last=last, before=before)["cell"].numpy()
    want = cell_oracle.cell(params, "cell", last, before, move, blocks, channels)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def random_block(draw: random.Random, number: int) -> Any:
    return tuple((draw.choice(block_inputs(number)), draw.choice(OPERATIONS)) for _ in range(2))


def one_cell(
    blocks: Any, strides: tuple[int, int], size: tuple[int, int], far: tuple[int, int], before: int
) -> tuple[Net, dict[str, list[np.ndarray]]]:
    """A net of one cell on two inputs, in float64, all parameters drawn; and these by layer."""
    n = NetSpec()
    n.last = L.Input(shape=[2, 5, *size])
    n.before = L.Input(shape=[2, before, *far])
    architecture = Architecture((strides[1],), blocks, 3)
    old = strides[0] if far == size else 2 * strides[0]
    states = State("last", n["last"], strides[0], 5), State("before", n["before"], old, before)
    cell(n, "cell", *states, strides[1], architecture, Form())
    net = Net(n.to_proto()).double()
    rng = np.random.default_rng(1)
    for blobs in net.params.values():
        for i, blob in enumerate(blobs):
            value = (
                rng.normal(size=blob.shape) if i != 1 or len(blobs) != 3 else rng.uniform(1, 3, blob.shape)
            )
            with torch.no_grad():
                blob.copy_(
                    torch.from_numpy(value if blob.numel() > 1 or len(blobs) != 3 else value * 0 + 1.5)
                )
    return net, {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}


def test_the_net_runs_at_any_size_and_learns() -> None:
    net = Net(make_net("auto-deeplab-s", "train", form=Form(16, classes=3)), phase="TRAIN", seed=1,
              input_shapes={"data": (2, 3, 33, 65), "label": (2, 1, 33, 65)})  # fmt: skip
    for height, width in ((33, 65), (40, 47)):
        label = torch.randint(0, 3, (2, 1, height, width))
        out = net(data=torch.randn(2, 3, height, width), label=label, keep=["score", "cell9"])
        assert out["score"].shape == (2, 3, height, width)
        net.total_loss(out).backward()
    grads = [p.grad for p in net.parameters() if p.requires_grad]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)


def test_sliding_image_pooling() -> None:
    """97 x 97 over 129 x 257 has 33 x 161 places; at the training crop of 769 it is the whole map."""
    wide = slide_image_pooling(make_net("auto-deeplab-s"))
    assert infer_shapes(wide).blobs["image_pooling"] == (1, 200, 33, 161)
    crop = slide_image_pooling(make_net("auto-deeplab-s", size=(769, 769)))
    assert infer_shapes(crop).blobs["image_pooling"] == (1, 200, 1, 1)
    small = make_net("auto-deeplab-s", size=(33, 65), form=Form(16))
    nets = [Net(definition, seed=3) for definition in (small, slide_image_pooling(small, 3))]
    x = torch.randn(1, 3, 33, 65)
    with torch.no_grad():
        pooled = [net(data=x, keep=["image_pooling", "cell11_relu"]) for net in nets]
    features = pooled[1]["cell11_relu"].numpy()
    windows = np.lib.stride_tricks.sliding_window_view(features, (3, 3), (2, 3))
    np.testing.assert_allclose(
        pooled[1]["image_pooling"].numpy(), windows.mean((-2, -1)), rtol=1e-5, atol=1e-6
    )
    assert pooled[0]["image_pooling"].shape[2:] == (1, 1) and pooled[1]["image_pooling"].shape[2:] == (3, 7)
    with pytest.raises(NetError, match="no layer image_pooling; wanted an Auto-DeepLab"):
        slide_image_pooling(make_net("vgg16"))


def test_other_paths_and_ends() -> None:
    """A path that begins at stride 8, and one that ends at 4."""
    for strides in ((8, 8, 16), (4, 8, 4), (8, 16, 32, 32)):
        form = Form(architecture=Architecture(strides, PUBLISHED.cell[:2], 4))
        blobs = infer_shapes(make_net("auto-deeplab", size=(65, 97), form=form)).blobs
        assert blobs["score"] == (1, 19, 65, 97)
        assert [blobs[f"cell{i}"][1:3] for i in range(len(strides))] == [
            (2 * stride, 64 // stride + 1) for stride in strides]  # fmt: skip
        rate = 12 * 8 // strides[-1]
        net = make_net("auto-deeplab", form=form)
        assert next(x for x in net.layer if x.name == "aspp1").convolution_param.dilation == [rate]


def test_architectures_belong_to_auto_deeplab() -> None:
    with pytest.raises(NetError, match="auto-deeplab: no architecture; wanted the file of one; pass --arch"):
        make_net("auto-deeplab")
    with pytest.raises(NetError, match="voc-fcn8s: an architecture was given; wanted none"):
        make_net("voc-fcn8s", form=Form(architecture=PUBLISHED))
    assert make_net("auto-deeplab", form=Form(architecture=PUBLISHED)) == make_net("auto-deeplab-s")


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_told_apart_by_their_widths(size: str) -> None:
    found = recognize(full_width(f"auto-deeplab-{size}"))
    assert str(found) == f"auto-deeplab-{size}" and found.published_shape


def test_the_solver_is_the_paper_s() -> None:
    solver = named_solver("auto-deeplab-s")
    assert (solver.lr_policy, solver.base_lr, solver.power) == (
        "poly",
        pytest.approx(0.05),
        pytest.approx(0.9),
    )
    assert (solver.max_iter, solver.momentum) == (1_500_000, pytest.approx(0.9))
    assert solver.weight_decay == pytest.approx(4e-5)


def test_names_and_shapes_of_a_checkpoint() -> None:
    net = make_net("auto-deeplab-s")
    variables = tensorflow_variables(net)
    names = {v.name: v for v in variables}
    trained = [v for v in variables if "moving_" not in v.name]
    assert len(names) == len(variables)
    assert sum(int(np.prod(v.shape)) for v in trained) == 10_147_427
    assert names["hnasnet/conv0/weights"].shape == (3, 3, 3, 64)
    assert names["hnasnet/cell_3/comb_iter_0/left/atrous_5x5/weights"].shape == (5, 5, 40, 40)
    assert names["hnasnet/cell_3/comb_iter_3/right/separable_5x5_2/depthwise_weights"].shape == (5, 5, 40, 1)
    assert names["hnasnet/cell_3/comb_iter_3/right/separable_5x5_2/pointwise_weights"].shape == (1, 1, 40, 40)
    assert names["hnasnet/cell_8/comb_iter_4/right/bn_atr_5x5/gamma"].shape == (160,)
    assert names["hnasnet/cell_0/prev_bn/moving_variance"].shape == (20,)
    assert names["hnasnet/cell_11/1x1/weights"].shape == (1, 1, 400, 40)
    assert names["aspp3/weights"].shape == (3, 3, 200, 256)
    assert names["image_pooling/BatchNorm/beta"].shape == (256,)
    assert names["decoder/decoder_conv0/decoder_conv0_1/weights"].shape == (3, 3, 304, 256)
    assert names["logits/semantic/weights"].shape == (1, 1, 256, 19)


def test_weights_come_from_a_checkpoint() -> None:
    net = make_net("auto-deeplab-s", size=(33, 33), form=Form(10))
    rng = np.random.default_rng(0)
    values = {v.name: rng.normal(size=v.shape).astype(np.float32) for v in tensorflow_variables(net)}
    weights = from_tensorflow(net, values | {"global_step": np.zeros(())})
    Net(net, weights)  # every layer, every shape
    kernel = values["hnasnet/conv0/weights"]
    assert weights["stem1"][0][1, 0, 2, 0] == kernel[2, 0, 2, 1]  # blue here is the third channel there
    depthwise = values["hnasnet/cell_1/comb_iter_2/left/separable_3x3_1/depthwise_weights"]
    assert weights["cell1_block3_left_depthwise1"][0][1, 0, 2, 0] == depthwise[2, 0, 1, 0]
    assert weights["aspp0_bn"][2].tolist() == [1.0]
    del values["aspp2/weights"]
    with pytest.raises(
        WeightsError, match="variable aspp2/weights: not in the checkpoint; wanted the weights of"
    ):
        from_tensorflow(net, values)
    values["aspp2/weights"] = np.zeros((1, 1, 20, 25), np.float32)
    with pytest.raises(WeightsError, match=r"variable aspp2/weights: shape 1x1x20x25; wanted 3x3x\d+x25"):
        from_tensorflow(net, values)
