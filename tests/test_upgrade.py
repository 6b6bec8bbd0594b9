"""Upgrades in literal text, beside the goldens of Caffe's own tool in test_golden_text.py.

The expected texts follow Caffe's rules; those on nets were also given to a running Caffe.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from caffe_weights.caffe_pb2 import NetParameter, V0LayerParameter, V1LayerParameter
from caffe_weights.errors import UpgradeError
from caffe_weights.prototxt import format_net, parse_net, parse_solver
from caffe_weights.upgrade import load_net, load_solver, net_version, upgrade_net, upgrade_solver
from caffe_weights.upgrade_tables import V0_FIELDS, V0_TYPES, V1_TYPES

DATA = 'input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8 '
PAD = 'layers { layer { name: "p" type: "padding" pad: 2 } bottom: "data" top: "p" } '


def upgraded(text: str) -> NetParameter:
    return upgrade_net(parse_net(text))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("", "V2"),
        ('layer { name: "a" }', "V2"),
        ('layers { name: "a" }', "V1"),
        ('layers { layer { name: "a" } }', "V0"),
    ],
)
def test_version(text: str, version: str) -> None:
    assert net_version(parse_net(text)) == version


def test_the_argument_is_left_alone_and_today_s_net_is_a_fixed_point() -> None:
    old = parse_net(DATA + 'layers { name: "r" type: RELU bottom: "data" top: "r" blobs_lr: 1 }')
    before = format_net(old)
    new = upgrade_net(old)
    assert format_net(old) == before and net_version(new) == "V2"
    assert upgrade_net(new) == new and upgrade_net(new) is not new


def test_tables_name_every_enum_and_existing_fields() -> None:
    assert set(V1_TYPES) == set(V1LayerParameter.LayerType.keys())
    assert set(V0_TYPES.values()) <= set(V1_TYPES)
    assert set(V0_FIELDS) <= set(V0LayerParameter.DESCRIPTOR.fields_by_name)
    messages = {field.name: field.message_type for field in V1LayerParameter.DESCRIPTOR.fields}
    for target in {path for targets in V0_FIELDS.values() for path in targets.values()}:
        owner, _, field = target.partition(".")
        message = messages[owner]
        assert message and (not field or field in message.fields_by_name)


def test_padding_in_place_and_shared_by_two_readers() -> None:
    conv = 'layers { layer { name: "%s" type: "conv" num_output: 2 kernelsize: 1 } bottom: "%s" top: "%s" } '
    net = upgraded(DATA + PAD + conv % ("c", "p", "c") + conv % ("d", "p", "d"))
    assert [(layer.name, list(layer.bottom)) for layer in net.layer[1:]] == [("c", ["data"]), ("d", ["data"])]
    assert [list(layer.convolution_param.pad) for layer in net.layer[1:]] == [[2], [2]]
    net = upgraded(DATA + PAD.replace('top: "p"', 'top: "data"') + conv % ("c", "data", "c"))
    assert list(net.layer[1].bottom) == ["data"] and list(net.layer[1].convolution_param.pad) == [2]


def test_transformation_fields_of_v1_data_move_and_replace() -> None:
    net = upgraded(
        "layers { type: DATA data_param { scale: 2 crop_size: 5 } transform_param { scale: 3 mirror: true } }"
    )
    assert net.layer[0] == parse_net(
        'layer { type: "Data" transform_param { scale: 2 mirror: true crop_size: 5 } data_param { } }'
    ).layer[0]  # fmt: skip


def test_transformation_fields_of_today_s_data_stay() -> None:
    net = parse_net('layer { type: "Data" data_param { scale: 2 } }')
    assert upgrade_net(net) == net


def test_blobs_move_along() -> None:
    net = NetParameter()
    net.layers.add(name="fc", type="INNER_PRODUCT").blobs.add(
        num=1, channels=1, height=1, width=2, data=[3, 4]
    )
    net.layers.add().CopyFrom(net.layers[0])
    v0 = NetParameter()
    v0.layers.add().layer.MergeFrom(
        V0LayerParameter(name="fc", type="innerproduct", blobs=net.layers[0].blobs)
    )
    for new in (upgrade_net(net), upgrade_net(v0)):
        blob = new.layer[0].blobs[0]
        np.testing.assert_array_equal(blob.data, [3, 4])
        assert (blob.width, new.layer[0].type) == (2, "InnerProduct")


def test_an_unknown_v1_enum_comes_out_without_type() -> None:
    layer = b"\x22\x01a" + b"\x28\x63"  # name: "a", type: 99
    net = NetParameter.FromString(b"\x12" + bytes([len(layer)]) + layer)
    assert format_net(upgrade_net(net)) == 'layer {\n  name: "a"\n}\n'


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('input: "x"', ""),
        ('input: "x" input_shape { dim: 7 }', "shape { dim: 7 }"),
        ('input: "x" input_shape { }', "shape { }"),
        ('input: "x" input_dim: [1, 2, 3, 4] input_shape { dim: 7 }', "shape { dim: 7 }"),
    ],
)
def test_inputs(text: str, want: str) -> None:
    layer = 'layer { name: "input" type: "Input" top: "x" input_param { ' + want + " } } "
    last = 'layer { name: "r" type: "ReLU" }'
    assert upgraded(text + last) == parse_net((layer if want else "") + last)


def test_dims_without_an_input_stay() -> None:
    assert upgraded("input_dim: 3") == parse_net("input_dim: 3")


V0_AFTER = 'layers { layer { name: "a" type: "%s" %s } bottom: "p" top: "a" }'
V0 = 'layers { layer { name: "a" type: "%s" %s } bottom: "data" top: "a" }'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('layer { name: "a" } layers { name: "b" }', "net: both 'layer' and 'layers' blocks"),
        (V0 % ("im2col", "kernelsize: 3"), "layer a: field kernelsize .* wanted it in conv, pool"),
        (V0 % ("relu", "new_num: 3"), "layer a: field new_num in type 'relu'; wanted it in no type"),
        (V0 % ("reshape", ""), "layer a: unknown V0 type 'reshape'; wanted one of accuracy, "),
        (V0.replace("bottom", "blobs_lr: 1 bottom") % ("relu", ""), "layer a: blobs_lr outside of the V0"),
        (V0 % ("relu", "") + 'layers { name: "b" type: RELU bottom: "a" }', "layer b: name outside of"),
        (V0 % ("relu", "") + 'layers { bottom: "a" }', "no V0 layer, beside others"),
        (V0.replace('"data"', '"dat"') % ("relu", ""), "layer a: unknown bottom 'dat'"),
        (PAD + V0_AFTER % ("relu", ""), "layer a: 'relu' after padding layer p; wanted conv"),
        (PAD + V0_AFTER.replace("top", 'bottom: "p" top') % ("conv", ""), "layer a: 2 bottoms after"),
        (PAD + V0_AFTER % ("conv", "pad: 1"), "layer a: pad 1 of its own after padding by 2"),
        (
            PAD.replace('top: "p"', 'top: "p" top: "q"') + V0_AFTER % ("conv", ""),
            "layer p: 1 bottoms and 2 tops; wanted one of each",
        ),
        ("input_shape { dim: 1 } " + V0 % ("relu", ""), "net: input_shape in a net of V0 layers"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_today(text: str, words: str) -> None:
    with pytest.raises(UpgradeError, match=words):
        upgraded(DATA + text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('input: "a" input: "b" input_shape { dim: 1 }', "net: 1 input_shape for 2 input; wanted one each"),
        ('input: "a" input_dim: [1, 2, 3]', "net: 3 input_dim for 1 input; wanted 4, 4 each"),
        ('input: "a" input_dim: [1, 2, 3, 4, 5]', "net: 5 input_dim for 1 input"),
    ],
)
def test_inputs_that_do_not_fit(text: str, words: str) -> None:
    with pytest.raises(UpgradeError, match=words):
        upgraded(text)


def test_errors_of_files_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text('layer { name: "a" } layers { name: "b" }')
    with pytest.raises(UpgradeError, match=r"/net\.prototxt: net: both 'layer' and 'layers'"):
        load_net(tmp_path / "net.prototxt")


def test_solver_with_both_types(tmp_path: Path) -> None:
    text = 'type: "Adam" solver_type: SGD'
    with pytest.raises(UpgradeError, match="solver: both type and solver_type"):
        upgrade_solver(parse_solver(text))
    (tmp_path / "solver.prototxt").write_text(text)
    with pytest.raises(UpgradeError, match=r"/solver\.prototxt: solver: both"):
        load_solver(tmp_path / "solver.prototxt")


@pytest.mark.parametrize(
    ("prefix", "want"), [(None, "a/my.solver"), ("out", "out/my.solver"), ("out/run", "out/run")]
)
def test_snapshot_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str | None, want: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("a")
    os.mkdir("out")
    given = f'snapshot_prefix: "{prefix}"' if prefix else ""
    Path("a/my.solver.prototxt").write_text(f"max_iter: 1 solver_type: NESTEROV {given}")
    solver = load_solver("a/my.solver.prototxt")
    assert (solver.snapshot_prefix, solver.type) == (want, "Nesterov")
