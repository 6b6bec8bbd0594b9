"""DeconvNet's nets and solvers against the released prototxts' content and the table of its layers."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from deconvnet_text import text_of

from caffe_weights.errors import NetError
from caffe_weights.prototxt import parse_net, parse_solver
from caffe_weights.upgrade import upgrade_net
from reproduce.cli import cli
from reproduce.net import Net
from reproduce.nets import Form, find, make_net, named_solver
from reproduce.nets.deconvnet import RELEASED
from surgery.shapes import infer_shapes

# shared/reference, table A.1: layer, top, weights
SHAPES = """
conv1_1 64x224x224 64x3x3x3
conv1_2 64x224x224 64x64x3x3
pool1 64x112x112
conv2_1 128x112x112 128x64x3x3
conv2_2 128x112x112 128x128x3x3
pool2 128x56x56
conv3_1 256x56x56 256x128x3x3
conv3_2 256x56x56 256x256x3x3
conv3_3 256x56x56 256x256x3x3
pool3 256x28x28
conv4_1 512x28x28 512x256x3x3
conv4_2 512x28x28 512x512x3x3
conv4_3 512x28x28 512x512x3x3
pool4 512x14x14
conv5_1 512x14x14 512x512x3x3
conv5_2 512x14x14 512x512x3x3
conv5_3 512x14x14 512x512x3x3
pool5 512x7x7
fc6 4096x1x1 4096x512x7x7
fc7 4096x1x1 4096x4096x1x1
fc6-deconv 512x7x7 4096x512x7x7
unpool5 512x14x14
deconv5_1 512x14x14 512x512x3x3
deconv5_2 512x14x14 512x512x3x3
deconv5_3 512x14x14 512x512x3x3
unpool4 512x28x28
deconv4_1 512x28x28 512x512x3x3
deconv4_2 512x28x28 512x512x3x3
deconv4_3 256x28x28 512x256x3x3
unpool3 256x56x56
deconv3_1 256x56x56 256x256x3x3
deconv3_2 256x56x56 256x256x3x3
deconv3_3 128x56x56 256x128x3x3
unpool2 128x112x112
deconv2_1 128x112x112 128x128x3x3
deconv2_2 64x112x112 128x64x3x3
unpool1 64x224x224
deconv1_1 64x224x224 64x64x3x3
deconv1_2 64x224x224 64x64x3x3
seg-score-voc 21x224x224 21x64x1x1
"""
SOLVERS = {  # the released files, their fields in another order
    "stage1": """net: "./stage_1_train.prototxt" snapshot_prefix: "./snapshot/stage_1_train"
                 stepsize: 9000 max_iter: 20000""",
    "stage2": """net: "./stage_2_train.prototxt" snapshot_prefix: "./snapshot/stage_2_train"
                 stepsize: 10000 max_iter: 40000""",
}
SHARED = """ base_lr: 0.01 lr_policy: "step" gamma: 0.1 iter_size: 8 display: 1 momentum: 0.9
            weight_decay: 0.0005 test_interval: 500 test_iter: 1000 snapshot: 500 solver_mode: GPU"""
run = CliRunner()


@pytest.mark.parametrize("split", RELEASED)
def test_nets_equal_the_released_prototxts(split: str) -> None:
    assert make_net("deconvnet", split) == upgrade_net(parse_net(text_of(split)))


@pytest.mark.parametrize("split", SOLVERS)
def test_solvers_equal_the_released_ones(split: str) -> None:
    assert named_solver("deconvnet", split) == parse_solver(SOLVERS[split] + SHARED)


def test_every_shape_of_the_table() -> None:
    shapes = infer_shapes(make_net("deconvnet"))
    for row in SHAPES.strip().splitlines():
        name, top, *weight = row.split()
        found = shapes.layers[name]
        assert ["x".join(map(str, shape[1:])) for shape in found.tops][:1] == [top], name
        assert ["x".join(map(str, shape)) for shape in found.params[:1]] == weight, name
        if name.startswith("pool"):
            assert found.tops[1] == found.tops[0]
    assert shapes.blobs["seg-score"] == (1, 21, 224, 224)
    norms = [layer for layer in shapes.layers.values() if layer.type == "BN"]
    assert len(norms) == 29 and all(x.params == ((1, x.tops[0][1], 1, 1),) * 2 for x in norms)


def test_learnable_values_and_multiply_adds() -> None:
    found = json.loads(run.invoke(cli, ["summary", "deconvnet", "--json"]).stdout)
    assert found["total"]["parameters"] == 251_805_653
    assert sum(x["parameters"] for x in found["layers"] if x["type"] == "BN") == 33_408
    assert round(found["total"]["multiply_adds"] / 1e9, 2) == 32.75
    kinds = [layer["type"] for layer in found["layers"]]
    counts = {kind: kinds.count(kind) for kind in set(kinds) - {"Input"}}
    assert counts == {
        "Convolution": 16,
        "Deconvolution": 14,
        "BN": 29,
        "ReLU": 29,
        "Pooling": 5,
        "Unpooling": 5,
    }


@pytest.mark.parametrize("side", [32, 64, 224])
def test_a_narrow_net_runs_at_any_multiple_of_32(side: int) -> None:
    net = Net(make_net("deconvnet", size=(side, side), form=Form(narrow=32, fc=4, classes=5)), seed=1)
    with torch.no_grad():
        (score,) = net(data=torch.randn(2, 3, side, side)).values()
    assert score.shape == (2, 5, side, side)


def test_a_narrow_stage_trains() -> None:
    shapes = {"data": (3, 3, 32, 32), "seg-label": (3, 1, 32, 32)}
    net = Net(
        make_net("deconvnet", "stage1", (32, 32), Form(32, 4)), phase="TRAIN", seed=1, input_shapes=shapes
    )
    label = torch.randint(0, 21, shapes["seg-label"])
    label[0] = 255
    loss = net.total_loss(net(**{"data": torch.randn(shapes["data"]), "seg-label": label}))
    loss.backward()
    ungraded = [slot.key for slot in net.learnable() if slot.parameter().grad is None]
    assert torch.isfinite(loss) and not ungraded


def test_the_test_net_scores() -> None:
    net = Net(make_net("deconvnet", "test", (32, 32), Form(32, 4)), seed=1,
              input_shapes={"data": (2, 3, 32, 32), "seg-label": (2, 1, 32, 32)})  # fmt: skip
    with torch.no_grad():
        out = net(data=torch.randn(2, 3, 32, 32), **{"seg-label": torch.zeros(2, 1, 32, 32)})
    assert 0 <= float(out["seg-accuracy"]) <= 1


def test_the_statistics_net_hands_out_29_means_and_variances() -> None:
    net = Net(make_net("deconvnet", "statistics", (32, 32), Form(32, 4)), seed=1,
              input_shapes={"data": (2, 3, 32, 32), "seg-label": (2, 1, 32, 32)})  # fmt: skip
    with torch.no_grad():
        out = net(data=torch.randn(2, 3, 32, 32), **{"seg-label": torch.zeros(2, 1, 32, 32)})
    assert sum(name.endswith("-mean") for name in out) == sum(name.endswith("-var") for name in out) == 29


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(NetError, match="size: 100x100; wanted a multiple of 32"):
        make_net("deconvnet", size=(100, 100))
    with pytest.raises(NetError, match="size: 64x96; wanted a square: deconvnet takes crops"):
        make_net("deconvnet", size=(64, 96))
    with pytest.raises(NetError, match="split val: deconvnet has none; wanted deploy or stage1 or stage2"):
        make_net("deconvnet", "val")
    with pytest.raises(NetError, match="solver of deconvnet: no split; wanted stage1 or stage2"):
        named_solver("deconvnet")
    with pytest.raises(NetError, match="solver of voc-fcn8s: split stage1; wanted none: it has one solver"):
        named_solver("voc-fcn8s", "stage1")


def test_commands_know_it() -> None:
    assert parse_net(run.invoke(cli, ["net", "deconvnet"]).stdout) == make_net("deconvnet")
    text = run.invoke(cli, ["net", "deconvnet", "--split", "stage2", "--narrow", "8", "--fc", "16"]).stdout
    assert parse_net(text) == make_net("deconvnet", "stage2", form=Form(8, 16))
    solver = run.invoke(cli, ["solver", "deconvnet", "--split", "stage2"])
    assert parse_solver(solver.stdout) == named_solver("deconvnet", "stage2") and not solver.stderr
    rows = {row["name"]: row for row in json.loads(run.invoke(cli, ["net", "--list", "--json"]).stdout)}
    assert rows["deconvnet"]["classes"] == 21 and rows["deconvnet"]["published"]
    assert rows["deconvnet"]["splits"] == list(RELEASED) == list(find("deconvnet").splits)
