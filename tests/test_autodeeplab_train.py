"""Auto-DeepLab by the commands: a net of an architecture file, its training with drop path, its score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from made_data import make_camvid

from caffe_weights.errors import InputError
from caffe_weights.prototxt import parse_net, read_net
from reproduce.cli import cli
from reproduce.data.python_layers import layer_data
from reproduce.net import Net
from reproduce.nets import Form, make_net
from reproduce.nets.architecture import Architecture, write_architecture
from reproduce.nets.data import read_param_str
from reproduce.nets.drop_path import add_drop_path
from surgery.shapes import infer_shapes

SMALL = Architecture(
    (4, 8, 8),
    ((("H-1", "sep 3x3"), ("H-2", "skip")), (("block 1", "max pool 3x3"), ("H-1", "atrous 3x3"))),
    4,
)


def fcn(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.fixture
def file(tmp_path: Path) -> str:
    write_architecture(SMALL, tmp_path / "a.json")
    return str(tmp_path / "a.json")


# ---- drop path ----


def test_drop_path_stands_behind_every_operation_but_plain_skips() -> None:
    net = add_drop_path(make_net("auto-deeplab", "train", form=Form(architecture=SMALL)), 0.7, 100)
    drops = {layer.bottom[0]: layer for layer in net.layer if layer.type == "Python" and layer.bottom}
    ends = ("block1_left_pointwise2", "block2_left_pool", "block2_right_atrous")
    want = {f"cell{i}_{end}" for i in range(3) for end in ends} | {
        "cell1_block1_right_skip"
    }  # cell 1 goes down
    assert set(drops) == want
    keeps = [read_param_str(drops[f"cell{i}_block2_left_pool"].python_param.param_str) for i in range(3)]
    assert [k["keep"] for k in keeps] == pytest.approx([0.9, 0.8, 0.7]) and keeps[0]["passes"] == 100
    block = next(layer for layer in net.layer if layer.name == "cell0_block1")
    assert list(block.bottom) == ["cell0_block1_left_pointwise2_drop", "cell0_before"]
    shapes = infer_shapes(net, {"data": (1, 3, 33, 33), "label": (1, 1, 33, 33)}).layers
    assert shapes["cell0_block2_left_pool_drop"].params == ((1,),)
    for bad in (0, 1.2):
        with pytest.raises(InputError, match="--drop-path: .*; wanted a probability above 0"):
            add_drop_path(net, bad, 10)
    with pytest.raises(InputError, match="a net without cells; wanted an Auto-DeepLab"):
        add_drop_path(make_net("voc-fcn8s", "train"), 0.5, 10)


def drop_net(keep: float, passes: int, phase: str) -> Net:
    text = f"""
        layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 4000 dim: 2 dim: 3 }} }} }}
        layer {{ name: "d" type: "Python" bottom: "x" top: "d" python_param {{ module: "reproduce.layers"
                 layer: "DropPath" param_str: "{{'keep': {keep}, 'passes': {passes}}}" }} }}"""
    return Net(parse_net(text), phase=phase)


def test_drop_path_drops_whole_items_ever_more_often() -> None:
    torch.manual_seed(0)
    net = drop_net(0.5, 4, "TRAIN")
    x = torch.rand(4000, 2, 3) + 1
    for step, chance in enumerate((1, 0.875, 0.75, 0.625, 0.5, 0.5)):
        ratio = (net(x=x)["d"] / x).reshape(4000, -1)
        assert torch.allclose(ratio, ratio[:, :1].expand(-1, 6))  # an item as a whole
        kept = ratio[:, 0] > 0
        assert torch.allclose(ratio[kept], torch.tensor(1 / chance))
        assert float(kept.float().mean()) == pytest.approx(chance, abs=0.03)
        assert net.params["d"][0].item() == step + 1 and not net.params["d"][0].requires_grad
    x.requires_grad_()
    y = net(x=x)["d"]
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(slope * x, y)
    still = drop_net(0.5, 4, "TEST")
    assert torch.equal(still(x=x)["d"], x) and still.params["d"][0].item() == 0


# ---- the commands ----


def test_a_net_of_a_file(file: str, tmp_path: Path) -> None:
    printed = parse_net(fcn("net", "auto-deeplab", "--architecture", file, "--size", "65x97").stdout)
    assert printed == make_net("auto-deeplab", size=(65, 97), form=Form(architecture=SMALL))
    found = json.loads(
        fcn("summary", "auto-deeplab", "--architecture", file, "--size", "65x97", "--json").stdout
    )
    assert found["total"]["parameters"] > 0 and found["layers"][-1]["shapes"] == [[1, 19, 65, 97]]
    slid = parse_net(fcn("net", "auto-deeplab-s", "--size", "1025x2049", "--sliding-pooling").stdout)
    pool = next(layer for layer in slid.layer if layer.name == "image_pooling").pooling_param
    assert (pool.kernel_h, pool.kernel_w, pool.global_pooling) == (97, 97, False)
    for bad, message in (
        (["net", "auto-deeplab"], "auto-deeplab: no architecture; wanted the file of one"),
        (["net", "voc-fcn8s", "--architecture", file], "an architecture was given; wanted none"),
        (["net", "auto-deeplab", "--architecture", str(tmp_path / "no.json")], "no such file"),
        (["net", "vgg16", "--sliding-pooling"], "no layer image_pooling"),
    ):
        assert message in fcn(*bad, code=2).stderr
    (tmp_path / "bad.json").write_text('{"strides": [4], "cell": [[["block 1", "skip"], ["H-1", "skip"]]]}')
    bad_file = ["net", "auto-deeplab", "--architecture", str(tmp_path / "bad.json")]
    assert (
        "bad.json: cell, block 1: the input 'block 1', which is no earlier block"
        in fcn(*bad_file, code=2).stderr
    )


def test_training_from_scratch_scoring_and_going_on(file: str, tmp_path: Path) -> None:
    data = f"camvid:{make_camvid(tmp_path / 'camvid', {'train': 4, 'val': 1, 'test': 1}, (40, 48))}"
    out = tmp_path / "run"
    arguments = ["train", "auto-deeplab", "--architecture", file, "--data", data, "--init", "own",
                 "--out", str(out), "--iterations", "4", "--batch", "2", "--crop", "33", "--mirror",
                 "--drop-path", "0.8", "--bn-fraction", "0.5", "--score-every", "4", "--set", "snapshot=2",
                 "--workers", "0"]  # fmt: skip
    run = json.loads(fcn(*arguments, "--json").stdout)["runs"][0]
    assert run["iteration"] == 4 and 0 <= run["scores"]["mean_iu"] <= 1 and np.isfinite(run["loss"])
    train = read_net(out / "train.prototxt")
    fractions = {x.batch_norm_param.moving_average_fraction for x in train.layer if x.type == "BatchNorm"}
    assert fractions == {0.5}
    settings = read_param_str(train.layer[0].python_param.param_str)
    assert settings["crop"] == 33 and settings["mean"] == [127.5] * 3 and settings["batch"] == 2
    assert layer_data(train.layer[0]).dataset.mean == (127.5, 127.5, 127.5)
    deploy = read_net(out / "deploy.prototxt")
    assert not [x for x in deploy.layer if x.type in ("Python", "Dropout")]
    assert infer_shapes(deploy).blobs["score"][1] == 11
    rates = [json.loads(line)["lr"] for line in (out / "log.jsonl").read_text().splitlines() if "lr" in line]
    np.testing.assert_allclose(rates, [0.05 * (1 - i / 4) ** 0.9 for i in range(4)], rtol=1e-6)
    again = ["--set", "max_iter=4", "--resume"]
    assert json.loads(fcn(*arguments, *again, "--json").stdout)["runs"][0]["iteration"] == 4
    weights = run["weights"]
    arguments = ["evaluate", "auto-deeplab", "--architecture", file, "--weights", weights, "--data", data]
    scored = json.loads(fcn(*arguments, "--json", "--workers", "0").stdout)
    assert scored["heads"][0]["mean_iu"] == pytest.approx(run["scores"]["mean_iu"])
