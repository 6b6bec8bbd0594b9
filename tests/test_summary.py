"""`fcn summary`: counts against paper arithmetic and PyTorch's own counter, geometry against the paper."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from caffe_weights.prototxt import parse_net
from reproduce.cli import cli
from reproduce.net import Net
from reproduce.nets import Form, make_net
from surgery.summary import summarize

SMALL = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 9 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 kernel_h: 3 kernel_w: 2 stride: 2 group: 2 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "ave" type: "Pooling" bottom: "conv" top: "ave" pooling_param { pool: AVE kernel_size: 2 } }
layer { name: "up" type: "Deconvolution" bottom: "conv" top: "up"
  convolution_param { num_output: 2 kernel_size: 3 stride: 2 group: 2 bias_term: false } }
layer { name: "ip" type: "InnerProduct" bottom: "ave" top: "ip" inner_product_param { num_output: 5 } }
layer { name: "again" type: "InnerProduct" bottom: "ip" top: "again" param { name: "w" } param { name: "b" }
  inner_product_param { num_output: 5 } }
layer { name: "thrice" type: "InnerProduct" bottom: "again" top: "thrice"
  param { name: "w" } param { name: "b" } inner_product_param { num_output: 5 } }
"""


def summary_json(*arguments: str) -> Any:
    result = CliRunner().invoke(cli, ["summary", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_counts_by_hand() -> None:
    rows = {row.name: row for row in summarize(parse_net(SMALL)).rows}
    assert rows["conv"].shapes == ((2, 6, 4, 3),)
    assert rows["conv"].multiply_adds == 2 * 6 * 4 * 3 * (4 // 2) * 3 * 2
    assert rows["up"].multiply_adds == 2 * 6 * 4 * 3 * (2 // 2) * 3 * 3
    assert rows["ip"].multiply_adds == 2 * (6 * 3 * 2) * 5
    assert [rows[name].parameters for name in ("conv", "up", "ip")] == [6 * 2 * 6 + 6, 6 * 9, 36 * 5 + 5]
    assert [rows[name].activation_bytes for name in ("conv", "relu")] == [4 * 2 * 6 * 12, 0]


def test_shared_parameters_count_once_and_uncounted_types_are_named() -> None:
    found = summarize(parse_net(SMALL))
    rows = {row.name: row for row in found.rows}
    assert (rows["again"].parameters, rows["thrice"].parameters) == (30, 0)
    assert found.uncounted == ("Pooling (AVE)",)
    assert found.up_sampling_parameters == 54


@pytest.mark.parametrize("name", ["voc-fcn8s", "voc-fcn-alexnet", "voc-fcn-googlenet", "voc-fcn8s-resnet34"])
def test_multiply_adds_are_those_that_torch_counts(name: str) -> None:
    definition = make_net(name, size=(40, 56), form=Form(16, fc=8))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        Net(definition, seed=0, frame=False)(data=torch.zeros(1, 3, 40, 56))
    assert 2 * summarize(definition).multiply_adds == counter.get_total_flops()


def test_fcn_8s_costs_what_the_design_says() -> None:
    total = summary_json("voc-fcn8s")["total"]
    assert round(2 * total["multiply_adds"] / 1e9) in (362, 363)
    assert total["parameters"] == 134_489_759


def test_fcn_32s_parameters() -> None:
    total = summary_json("voc-fcn32s", "--size", "100x100")["total"]
    assert (total["parameters_without_up_sampling"], total["parameters"]) == (134_346_581, 136_152_917)


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [("vgg16", "pool5", 212), ("voc-fcn32s", "fc6", 404), ("voc-fcn-alexnet", "fc6", 355),
     ("voc-fcn-googlenet", "score_fr", 715), ("googlenet", "pool5/7x7_s1", 907)],
)  # fmt: skip
def test_geometry_of_the_paper(name: str, layer: str, size: int) -> None:
    row = next(row for row in summary_json(name)["layers"] if row["name"] == layer)
    assert (row["receptive_field"], row["stride"]) == ([size, size], [32, 32])


def test_where_a_layer_keeps_no_grid_there_is_no_geometry() -> None:
    rows = {row["name"]: row for row in summary_json("vgg16")["layers"]}
    assert rows["fc6"]["receptive_field"] is None and rows["fc6"]["stride"] is None
    final = {row["name"]: row for row in summary_json("voc-fcn8s")["layers"]}["score"]
    assert (final["stride"], final["offset"], final["shapes"]) == ([1, 1], [0, 0], [[1, 21, 500, 500]])


def test_a_train_prototxt_is_read_in_its_deploy_form(tmp_path: Path) -> None:
    path = str(tmp_path / "train.prototxt")
    CliRunner().invoke(cli, ["net", "nyud-fcn32s-color-d", "--split", "trainval", "--out", path])
    by_file, by_name = (summary_json(net, "--size", "60x80") for net in (path, "nyud-fcn32s-color-d"))
    assert by_file["total"] == by_name["total"]
    result = CliRunner().invoke(cli, ["summary", path])
    assert result.exit_code == 2 and "--size" in result.stderr


def test_the_table(tmp_path: Path) -> None:
    text = CliRunner().invoke(cli, ["summary", "voc-fcn8s", "--narrow", "16", "--fc", "4"]).stdout
    lines = text.splitlines()
    headings = "layer type output parameters multiply-adds activations field stride offset"
    assert lines[0].split() == headings.split()
    upscore = next(line.split() for line in lines if line.startswith("upscore2"))
    assert upscore == ["upscore2", "Deconvolution", "1x21x34x34", "7,056", "1,806,336", "97,104", "436", "16",
                       "-11.5"]  # fmt: skip
    assert "not counted     the arithmetic of Eltwise" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "net nothing: neither a published net nor a prototxt"),
        (("nothing.prototxt",), "nothing.prototxt: no such file"),
        (
            ("nothing.prototxt", "--narrow", "2"),
            "nothing.prototxt: a width or number of classes for a prototxt",
        ),
        (("vgg16", "--size", "20x20"), "size: 20x20; wanted 224x224"),
    ],
)
def test_errors(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(cli, ["summary", *arguments])
    assert result.exit_code == 2 and message in result.stderr


def test_no_torch_is_imported() -> None:
    code = "import sys; sys.argv = ['fcn', 'summary', 'voc-fcn8s']; import reproduce.cli as c\n"
    code += "try: c.main()\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
