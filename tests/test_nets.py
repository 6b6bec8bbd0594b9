"""The published nets, held to the prototxts Caffe ran, and to the reference's facts.

The goldens are narrow nets with Input layers; the rest of each must be ours, message for message. What
they do not show (data layers, solvers, classes, FCN-AlexNet's own manner) is stated here once more, from the
published files' facts.
"""

from __future__ import annotations

import ast
import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from google.protobuf import text_format

from caffe_weights.caffe_pb2 import LayerParameter, NetParameter, SolverParameter
from caffe_weights.errors import NetError
from caffe_weights.prototxt import parse_net, parse_solver, read_net
from reproduce.cli import cli
from reproduce.nets import NETS, Form, make_net, named_solver
from reproduce.nets.blocks import finish
from reproduce.nets.data import VOC, read_param_str
from reproduce.nets.googlenet import fcn_googlenet
from surgery.coordinates import receptive_field
from surgery.shapes import infer_shapes

FCNS = [name for name, entry in NETS.items() if entry.data]
PUBLISHED = [name for name, entry in NETS.items() if entry.published and entry.data]

OWN_GOLDENS = Path(__file__).parent / "goldens" / "nets"

# kind of the golden net, its finest stride and whether its skips are scaled -> our name
GOLDEN_NAMES = {
    ("vgg16",): "vgg16", ("caffenet",): "caffenet", ("alexnet",): "alexnet", ("googlenet",): "googlenet",
    ("fcn", 32, False): "voc-fcn32s", ("fcn", 16, False): "voc-fcn16s", ("fcn", 8, False): "voc-fcn8s",
    ("fcn", 8, True): "voc-fcn8s-atonce", ("fcn-alexnet", 32, False): "voc-fcn-alexnet",
    ("fcn-color-d", 32, False): "nyud-fcn32s-color-d", ("fcn-color-hha", 32, False): "nyud-fcn32s-color-hha",
    ("fcn-two-head", 8, False): "siftflow-fcn8s", ("fcn-two-head", 16, False): "siftflow-fcn16s",
    ("fcn-two-head", 32, False): "siftflow-fcn32s",
}  # fmt: skip


@pytest.mark.parametrize("golden", sorted(OWN_GOLDENS.glob("*.caffemodel.gz")), ids=lambda path: path.name)
def test_caffes_nets_are_generated(golden: Path) -> None:
    stem = str(golden).removesuffix(".caffemodel.gz")
    theirs = read_net(stem + ".prototxt")
    config = json.loads(str(np.load(stem + ".npz")["meta"]))["config"]
    name = GOLDEN_NAMES[_kind(theirs, config)]
    form = Form(config["div"], config.get("fc"), config["ncls"])
    split = next(iter(NETS[name].splits))
    mine = make_net(name, split, form=form)
    adapt = _as_in_goldens if name == "voc-fcn-alexnet" else _as_it_is
    assert _core(mine, adapt) == _core(theirs, _without_loss if split == "deploy" else _as_it_is)


def test_the_net_of_full_width_is_generated() -> None:
    golden = OWN_GOLDENS / "fcn8s-full.npz"
    theirs = read_net(golden.with_suffix(".prototxt"))
    mine = make_net("voc-fcn8s", "train")
    assert _core(mine, _without_loss) == _core(theirs, _as_it_is)


OFFSETS = {
    "voc-fcn32s": [19], "voc-fcn16s": [5, 27], "voc-fcn8s": [5, 9, 31], "voc-fcn8s-atonce": [5, 9, 31],
    "voc-fcn-alexnet": [18], "nyud-fcn32s-color-d": [19], "nyud-fcn32s-color-hha": [19],
    "siftflow-fcn32s": [19] * 2, "siftflow-fcn16s": [5, 27] * 2, "siftflow-fcn8s": [5, 9, 31] * 2,
    "pascalcontext-fcn8s": [5, 9, 31], "voc-fcn-googlenet": [98],
}  # fmt: skip


@pytest.mark.parametrize("name", OFFSETS)
def test_crop_offsets(name: str) -> None:
    for split in NETS[name].splits:
        crops = [layer.crop_param for layer in make_net(name, split).layer if layer.type == "Crop"]
        assert [list(crop.offset) for crop in crops] == [[offset] for offset in OFFSETS[name]]
        assert {crop.axis for crop in crops} == {2}


def test_googlenet_with_the_stock_padding_crops_by_1() -> None:
    net = fcn_googlenet(VOC, 32, "train", Form(8), pad=3)
    assert [list(layer.crop_param.offset) for layer in net.layer if layer.type == "Crop"] == [[1]]


def test_googlenet_refuses_an_even_kernel() -> None:
    with pytest.raises(
        NetError, match=r"crop of upscore to data: the offset is 98\.5, between two pixels.*odd"
    ):
        fcn_googlenet(VOC, 32, "train", Form(8), kernel=64)


RECEPTIVE = [
    ("vgg16", "pool5", 212, 32), ("voc-fcn32s", "fc6", 404, 32), ("voc-fcn-alexnet", "fc6", 355, 32),
    ("voc-fcn-googlenet", "inception_5b/output", 715, 32), ("googlenet", "pool5/7x7_s1", 907, 32),
]  # fmt: skip


@pytest.mark.parametrize(("name", "blob", "size", "stride"), RECEPTIVE)
def test_receptive_fields_of_the_paper(name: str, blob: str, size: int, stride: int) -> None:
    field = receptive_field(make_net(name), blob)
    assert (field.size, field.stride) == ((size, size), (stride, stride))


# Counted by hand from Table 1 of the VGG paper's layers: sum of k * k * in * out + out.
TRUNK = sum(
    9 * a * b + b
    for a, b in [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)]
    + [(512, 512)] * 5
)
FULLY = 49 * 512 * 4096 + 4096 + 4096 * 4096 + 4096


@pytest.mark.parametrize(
    ("name", "without", "up"),
    [
        ("vgg16", 138_357_544, 0),
        ("caffenet", 60_965_224, 0),
        ("googlenet", 6_998_552, 0),
        ("voc-fcn32s", 134_346_581, 136_152_917 - 134_346_581),
        ("voc-fcn8s", TRUNK + FULLY + 21 * (4096 + 512 + 256 + 3), 21 * 21 * (2 * 16 + 256)),
        ("nyud-fcn32s-color-hha", 2 * (TRUNK + FULLY + 40 * 4097), 40 * 40 * 64 * 64),
        ("siftflow-fcn32s", TRUNK + FULLY + 36 * 4097, (33**2 + 3**2) * 64 * 64),
        ("resnet34", 21_797_672 + 2 * 8512 + 36, 0),  # torchvision's count, running statistics, counters
    ],
)
def test_parameter_counts(name: str, without: int, up: int) -> None:
    layers = infer_shapes(make_net(name)).layers.values()
    counts = {kind: sum(prod(p) for x in layers if (x.type == "Deconvolution") == kind for p in x.params)
              for kind in (False, True)}  # fmt: skip
    assert counts == {False: without, True: up}


MEAN = (104.00699, 116.66877, 122.67892)
SBD = {"sbdd_dir": "../data/sbdd/dataset", "split": "train", "mean": MEAN, "seed": 1337}
SEGVAL = {"voc_dir": "../data/pascal/VOC2011", "split": "seg11valid", "mean": MEAN, "seed": 1337}
DEEP_SBD = {**SBD, "sbdd_dir": "../../data/sbdd/dataset"}
DEEP_SEGVAL = {**SEGVAL, "voc_dir": "../../data/pascal/VOC2011"}
SIFT = {"siftflow_dir": "../data/sift-flow", "seed": 1337}
CONTEXT = {"voc_dir": "../../data/pascal", "context_dir": "../../data/pascal-context", "seed": 1337}
TOPS = {
    "nyud-fcn32s-color": ["color", "label"], "nyud-fcn32s-hha": ["hha", "label"],
    "nyud-fcn32s-color-d": ["color", "depth", "label"], "nyud-fcn32s-color-hha": ["color", "hha", "label"],
}  # fmt: skip


def _data_facts(name: str) -> dict[str, tuple[str, str, dict[str, Any], list[str]]]:
    """Split -> module, class, settings, tops."""
    if name.startswith("voc"):
        train, val = (DEEP_SBD, DEEP_SEGVAL) if name == "voc-fcn16s" else (SBD, SEGVAL)
        tops = ["data", "label"]
        return {"train": ("voc_layers", "SBDDSegDataLayer", train, tops),
                "val": ("voc_layers", "VOCSegDataLayer", val, tops)}  # fmt: skip
    if name.startswith("nyud"):
        tops = TOPS[name] if len(TOPS[name]) == 3 else ["data", "label"]
        common = {"nyud_dir": "../data/nyud", "tops": TOPS[name], "seed": 1337}
        return {split: ("nyud_layers", "NYUDSegDataLayer", {**common, "split": split}, tops)
                for split in ("trainval", "test")}  # fmt: skip
    if name.startswith("siftflow"):
        return {split: ("siftflow_layers", "SIFTFlowSegDataLayer", {**SIFT, "split": split},
                        ["data", "sem", "geo"]) for split in ("trainval", "test")}  # fmt: skip
    return {split: ("pascalcontext_layers", "PASCALContextSegDataLayer", {**CONTEXT, "split": split},
                    ["data", "label"]) for split in ("train", "val")}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_data_layers(name: str) -> None:
    facts = _data_facts(name)
    assert NETS[name].splits == (*facts, "deploy")
    for split, (module, kind, settings, tops) in facts.items():
        layer = make_net(name, split).layer[0]
        assert (layer.name, layer.type, list(layer.top)) == (tops[0], "Python", tops)
        assert (layer.python_param.module, layer.python_param.layer) == (module, kind)
        assert ast.literal_eval(layer.python_param.param_str) == settings
        assert read_param_str(layer.python_param.param_str) == settings
        set_fields = {field.name for field, _ in layer.python_param.ListFields()}
        assert set_fields == {"module", "layer", "param_str"}


@pytest.mark.parametrize("name", FCNS)
def test_splits_differ_in_the_data_layer_only(name: str) -> None:
    train, score, _ = NETS[name].splits
    a, b = make_net(name, train), make_net(name, score)
    assert list(a.layer)[1:] == list(b.layer)[1:]
    assert not a.name and not a.state.ListFields()


def test_the_published_deploy_net() -> None:
    deploy, train = make_net("voc-fcn8s"), make_net("voc-fcn8s", "train")
    first = (
        'name: "input" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 500 dim: 500 } }'
    )
    assert deploy.layer[0] == text_format.Parse(first, LayerParameter())
    kept = [layer for layer in train.layer if layer.type not in ("Python", "Dropout", "SoftmaxWithLoss")]
    assert list(deploy.layer)[1:] == kept


ALEXNET = """
layer { name: "conv2" type: "Convolution" bottom: "norm1" top: "conv2"
  convolution_param { num_output: 256 pad: 2 kernel_size: 5 group: 2 stride: 1 } }
layer { name: "fc7" type: "Convolution" bottom: "fc6" top: "fc7"
  convolution_param { num_output: 4096 pad: 0 kernel_size: 1 group: 1 stride: 1 } }
layer { name: "score_fr" type: "Convolution" bottom: "fc7" top: "score_fr"
  param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 21 pad: 0 kernel_size: 1 } }
layer { name: "upscore" type: "Deconvolution" bottom: "score_fr" top: "upscore" param { lr_mult: 0 }
  convolution_param { num_output: 21 bias_term: false kernel_size: 63 stride: 32 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss"
  loss_param { ignore_label: 255 normalize: true } }
"""


def test_fcn_alexnet_in_its_own_manner() -> None:
    mine = {layer.name: layer for layer in make_net("voc-fcn-alexnet", "train").layer}
    for layer in text_format.Parse(ALEXNET, NetParameter()).layer:
        assert mine[layer.name] == layer


@pytest.mark.parametrize("name", PUBLISHED)
def test_score_layers_have_the_classes_of_the_data(name: str) -> None:
    wanted = {"voc": {21}, "nyud": {40}, "siftflow": {33, 3}, "pascalcontext": {60}}[name.split("-")[0]]
    found = {layer.convolution_param.num_output for layer in make_net(name).layer if "score" in layer.name}
    assert found - {0} == wanted


# base_lr, max_iter, test_iter, snapshot, momentum, iter_size
SOLVERS = {
    "voc-fcn32s": (1e-10, 100000, 736, 4000, 0.99, 1),
    "voc-fcn16s": (1e-12, 100000, 736, 4000, 0.99, 1),
    "voc-fcn8s": (1e-14, 100000, 736, 4000, 0.99, 1),
    "voc-fcn8s-atonce": (1e-10, 300000, 736, 4000, 0.99, 1),
    "voc-fcn-alexnet": (1e-4, 100000, 736, 4000, 0.9, 20),
    "nyud-fcn32s-color": (1e-10, 300000, 654, 2000, 0.99, 1),
    "nyud-fcn32s-hha": (1e-10, 300000, 654, 2000, 0.99, 1),
    "nyud-fcn32s-color-d": (1e-10, 300000, 654, 2000, 0.99, 1),
    "nyud-fcn32s-color-hha": (1e-12, 300000, 654, 2000, 0.99, 1),
    "siftflow-fcn32s": (1e-10, 300000, 200, 0, 0.99, 1),
    "siftflow-fcn16s": (1e-12, 300000, 200, 0, 0.99, 1),
    "siftflow-fcn8s": (1e-12, 300000, 200, 0, 0.99, 1),
    "pascalcontext-fcn32s": (1e-10, 300000, 5105, 4000, 0.99, 1),
    "pascalcontext-fcn16s": (1e-12, 300000, 5105, 4000, 0.99, 1),
    "pascalcontext-fcn8s": (1e-14, 300000, 5105, 4000, 0.99, 1),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(name: str) -> None:
    lr, steps, tests, snapshot, momentum, accumulated = SOLVERS[name]
    train, score = ("trainval", "test") if name.startswith(("nyud", "siftflow")) else ("train", "val")
    text = f"""
      train_net: "{train}.prototxt" test_net: "{score}.prototxt" test_iter: {tests}
      test_interval: 999999999 test_initialization: false display: 20 average_loss: 20
      lr_policy: "fixed" base_lr: {lr!r} momentum: {momentum} iter_size: {accumulated} max_iter: {steps}
      weight_decay: 0.0005
    """
    if snapshot:
        text += f'snapshot: {snapshot} snapshot_prefix: "snapshot/train"'
    assert named_solver(name) == text_format.Parse(text, SolverParameter())


def test_all_published_nets_have_a_solver_fact() -> None:
    assert list(SOLVERS) == PUBLISHED


@pytest.mark.parametrize("name", [name for name in FCNS if "fcn32s" in name or "fcn-" in name])
@pytest.mark.parametrize("size", [(97, 131), (500, 375), (33, 64)])
def test_scores_cover_the_picture(name: str, size: tuple[int, int]) -> None:
    net = make_net(name, size=size, form=Form(16, fc=8))
    shapes = infer_shapes(net).blobs
    scores = [blob for blob in shapes if blob in ("score", "score_sem", "score_geo")]
    assert scores and all(shapes[blob][2:] == size for blob in scores)


@pytest.mark.parametrize("name", [name for name in NETS if name.endswith(("-16s", "-8s", "resnet34", "8s"))
                                  and NETS[name].data])  # fmt: skip
def test_skips_fit_at_every_parity(name: str) -> None:
    for height in range(160, 196, 5):
        size = (height, 389 - height)
        blobs = infer_shapes(make_net(name, size=size, form=Form(64, fc=2))).blobs
        scores = [blobs[blob][2:] for blob in ("score", "score_sem", "score_geo") if blob in blobs]
        assert scores and set(scores) == {size}


def test_ablations() -> None:
    fixed = {x.name: x for x in make_net("voc-fcn32s-fixed", "train").layer}
    learning = [name for name, x in fixed.items() if any(p.lr_mult for p in x.param)]
    assert learning == ["score_fr"]
    learned = {x.name: x for x in make_net("voc-fcn8s-learned", "train").layer if x.type == "Deconvolution"}
    rates = {name: layer.param[0].lr_mult for name, layer in learned.items()}
    assert rates == {"upscore2": 1, "upscore_pool4": 1, "upscore8": 0}
    names = [x.name for x in make_net("voc-fcn-pool4", "train").layer]
    assert names[-5:] == ["pool4", "score_pool4", "upscore16", "score", "loss"]


def test_narrow_nets_keep_their_geometry() -> None:
    wide, narrow = make_net("voc-fcn8s"), make_net("voc-fcn8s", form=Form(16, fc=32))
    for a, b in zip(wide.layer, narrow.layer, strict=True):
        for layer in (a, b):
            layer.convolution_param.ClearField("num_output")
        assert a == b


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("net", "voc-fcn8"), "net voc-fcn8: not a net of this toolkit; wanted voc-fcn8s"),
        (
            ("net", "voc-fcn8s", "--split", "test"),
            "split test: voc-fcn8s has none; wanted train or val or deploy",
        ),
        (("net", "voc-fcn8s", "--split", "train", "--size", "9x9"), "split train: a size was given"),
        (("net", "vgg16", "--size", "9x9"), "size: 9x9; wanted 224x224"),
        (("net",), "fcn net: no name; wanted a net, or --list"),
        (("net", "voc-fcn8s", "--json"), "--json: without --list"),
        (("net", "voc-fcn8s", "--narrow", "0"), "narrow"),
        (("solver", "vgg16"), "vgg16: a classifier, which has no solver here"),
        (("solver", "nothing"), "net nothing: not a net of this toolkit"),
    ],
)
def test_errors(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert message in result.stderr and not result.stdout


@pytest.mark.parametrize("text", ["{'a': __import__('os')}", "[1]", "{1: 2}", "{", "open('x')"])
def test_param_str_is_never_evaluated(text: str) -> None:
    with pytest.raises(NetError, match="param_str"):
        read_param_str(text)


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(NetError, match="narrow: 0; wanted at least 1"):
        Form(0)


def test_a_builder_names_the_crop_that_cannot_align() -> None:
    from surgery.netspec import L, NetSpec

    n = NetSpec()
    n.data = L.Input(shape=[1, 3, 9, 9])
    n.up = L.Deconvolution(n.data, num_output=1, kernel_size=4, stride=2)
    n.score = L.Crop(n.up, n.data)
    with pytest.raises(NetError, match="crop of up to data"):
        finish(n)


def test_prototxts_on_standard_output(tmp_path: Path) -> None:
    run = CliRunner()
    for split in ("train", "deploy"):
        printed = run.invoke(cli, ["net", "voc-fcn16s", "--split", split])
        assert parse_net(printed.stdout) == make_net("voc-fcn16s", split) and not printed.stderr
    assert parse_solver(run.invoke(cli, ["solver", "voc-fcn16s"]).stdout) == named_solver("voc-fcn16s")
    ours = run.invoke(cli, ["solver", "voc-fcn-googlenet"])
    assert "ours" in ours.stderr and parse_solver(ours.stdout) == named_solver("voc-fcn-googlenet")
    assert run.invoke(cli, ["net", "voc-fcn8s", "--out", str(tmp_path / "a.prototxt")]).exit_code == 0
    assert read_net(tmp_path / "a.prototxt") == make_net("voc-fcn8s")
    assert run.invoke(cli, ["net", "voc-fcn8s", "--out", str(tmp_path / "a.prototxt")]).exit_code == 2
    assert run.invoke(cli, ["solver", "voc-fcn8s", "--out", str(tmp_path / "s.prototxt")]).exit_code == 0
    rows = json.loads(run.invoke(cli, ["net", "--list", "--json"]).stdout)
    assert [row["name"] for row in rows] == list(NETS) and sum(
        row["published"] for row in rows
    ) == 15 + 1  # DeconvNet
    assert "voc-fcn8s " in run.invoke(cli, ["net", "--list"]).stdout


def _kind(net: NetParameter, config: dict[str, Any]) -> tuple[Any, ...]:
    if not config["kind"].startswith("fcn"):
        return (config["kind"],)
    names = [layer.name for layer in net.layer]
    scaled = any(name.startswith("scale_pool") for name in names)
    kind = config["kind"]
    if "conv1_1_bgrd" in names:
        kind = "fcn-color-d"
    elif "score_fused" in names:
        kind = "fcn-color-hha"
    return kind, config.get("stages", 32), scaled


def _core(net: NetParameter, adapt: Any) -> list[LayerParameter]:
    """The layers behind the data layers."""
    layers = []
    for layer in net.layer:
        if layer.type not in ("Input", "Python"):
            copy = LayerParameter()
            copy.CopyFrom(layer)
            layers += adapt(copy)
    return layers


def _as_it_is(layer: LayerParameter) -> list[LayerParameter]:
    return [layer]


def _without_loss(layer: LayerParameter) -> list[LayerParameter]:
    return [] if layer.type == "SoftmaxWithLoss" else [layer]


def _as_in_goldens(layer: LayerParameter) -> list[LayerParameter]:
    """FCN-AlexNet's golden has learning rates, no group of 1 spelled out and no normalised loss."""
    if layer.type == "Convolution" and layer.convolution_param.group == 1:
        layer.convolution_param.ClearField("group")
    if layer.type == "Convolution" and not layer.param:
        layer.param.add(lr_mult=1, decay_mult=1)
        layer.param.add(lr_mult=2, decay_mult=0)
    if layer.type == "SoftmaxWithLoss":
        layer.loss_param.normalize = False
    return [layer]
