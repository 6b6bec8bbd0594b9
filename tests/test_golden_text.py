"""Text files of the goldens: upgrades, states, splits and prints of Caffe itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_weights import caffe_pb2
from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import UpgradeError
from caffe_weights.filtering import filter_net, insert_splits
from caffe_weights.prototxt import (
    format_net,
    format_solver,
    parse_net,
    parse_solver,
    read_net,
    read_solver,
)
from caffe_weights.upgrade import load_net, upgrade_net, upgrade_solver


@pytest.mark.goldens("formats/*.upgraded.prototxt", exclude="formats/solver_*")
def test_golden_format_upgrade_text(golden: Path) -> None:
    source = _source(golden)
    if _dropped_a_field(golden, _stem(golden)):
        with pytest.raises(UpgradeError, match=rf"{source.name}: layer "):
            load_net(source)
    else:
        assert load_net(source) == _parsed_by_the_library(golden, NetParameter())


@pytest.mark.goldens("formats/solver_*.upgraded.prototxt")
def test_golden_format_upgrade_solver(golden: Path) -> None:
    want = _parsed_by_the_library(golden, caffe_pb2.SolverParameter())
    assert upgrade_solver(read_solver(_source(golden))) == want


@pytest.mark.goldens("formats/*.upgraded.caffemodel")
def test_golden_format_upgrade_binary(golden: Path) -> None:
    old = NetParameter.FromString(_source(golden).read_bytes())
    if _dropped_a_field(golden, f"{_stem(golden)}_binary"):
        with pytest.raises(UpgradeError, match=r"layer "):
            upgrade_net(old)
    else:
        assert upgrade_net(old).SerializeToString() == golden.read_bytes()


@pytest.mark.goldens("formats/*.upgraded.prototxt")
def test_golden_format_print(golden: Path) -> None:
    """Line by line what Caffe's tool printed; numbers as float32, since we print fewer digits."""
    text = golden.read_text()
    is_solver = golden.name.startswith("solver_")
    ours = format_solver(parse_solver(text)) if is_solver else format_net(parse_net(text))
    assert _with_float32(ours) == _with_float32(text)


@pytest.mark.goldens("formats/states.json")
def test_golden_format_states(golden: Path) -> None:
    net = load_net(golden.with_suffix(".prototxt"))
    cases = json.loads(golden.read_text())
    assert cases
    for case in cases:
        got = filter_net(net, case["phase"], case["level"], case["stages"])
        assert [layer.name for layer in got.layer] == case["layers"], case


@pytest.mark.goldens("formats/*_splits.json")
def test_golden_format_splits(golden: Path) -> None:
    want = json.loads(golden.read_text())
    net = load_net(golden.with_name(golden.name.replace("_splits.json", ".prototxt")))
    got = insert_splits(filter_net(net, want["phase"], want["level"], want["stages"]))
    assert [layer.name for layer in got.layer] == want["layers"]
    assert {layer.name: list(layer.bottom) for layer in got.layer} == want["bottoms"]
    assert {layer.name: list(layer.top) for layer in got.layer} == want["tops"]
    assert list(dict.fromkeys(top for layer in got.layer for top in layer.top)) == want["blobs"]


@pytest.mark.goldens("nets/*.npz")
def test_golden_net_layers_and_splits(golden: Path) -> None:
    arrays = np.load(golden)
    meta: dict[str, Any] = json.loads(str(arrays["meta"]))
    net = filter_net(load_net(golden.with_suffix(".prototxt")), meta.get("phase", "TEST"))
    split = insert_splits(net)
    assert meta.get("layers") in (None, [layer.name for layer in split.layer])
    probed = {key.split("/", 1)[1].rsplit("/", 1)[0] for key in arrays if key.startswith("probe")}
    plain = {top for layer in split.layer if layer.type != "Split" for top in layer.top}
    assert probed == plain


@pytest.mark.goldens("nets/*.prototxt")
def test_golden_net_text(golden: Path) -> None:
    _check_round_trip(golden)


@pytest.mark.goldens("layers/*.prototxt")
def test_golden_layer_text(golden: Path) -> None:
    _check_round_trip(golden)


@pytest.mark.goldens("solvers/*/solver*.prototxt")
def test_golden_solver_text(golden: Path) -> None:
    solver = read_solver(golden)
    assert solver == _parsed_by_the_library(golden, caffe_pb2.SolverParameter())
    assert parse_solver(format_solver(solver)) == solver


def _check_round_trip(path: Path) -> None:
    net = read_net(path)
    assert net == _parsed_by_the_library(path, NetParameter())
    assert parse_net(format_net(net)) == net


def _parsed_by_the_library(path: Path, message: Any) -> Any:
    return text_format.Parse(path.read_text(), message)


def _source(golden: Path) -> Path:
    return golden.with_name(golden.name.replace(".upgraded.", "."))


def _stem(golden: Path) -> str:
    return golden.name.split(".upgraded.")[0]


def _dropped_a_field(golden: Path, case: str) -> bool:
    """Whether Caffe's upgrade tool complained (exit code 1)."""
    codes = json.loads((golden.parent / "upgrade_exit_codes.json").read_text())
    return bool(codes[case])


def _with_float32(text: str) -> str:
    return re.sub(r"(?<=: )-?[\d.]+(e[+-]?\d+)?$", lambda m: repr(np.float32(m[0])), text, flags=re.MULTILINE)
