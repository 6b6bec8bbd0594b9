"""Sizes, shapes, coordinate maps and crops against those recorded from BVLC Caffe."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from surgery.coordinates import crop_offsets, fill_crops, map_to_input
from surgery.shapes import NetShapes, Shape, infer_shapes

TYPES = {"conv": "Convolution", "pool": "Pooling", "deconv": "Deconvolution"}
CHAIN_TYPES = {
    "conv": "Convolution",
    "dilconv": "Convolution",
    "deconv": "Deconvolution",
    "pool": "Pooling",
    "lrn": "LRN",
    "relu": "ReLU",
}

REFUSALS = {"scale mismatch": "a scale of 1", "negative": "begins before", "noninteger": "between two pixels"}


def read(path: Path) -> caffe_pb2.NetParameter:
    return text_format.Parse(path.read_text(), caffe_pb2.NetParameter())


def one_layer(kind: str, row: dict[str, Any]) -> caffe_pb2.NetParameter:
    net = caffe_pb2.NetParameter()
    source = net.layer.add(name="x", type="Input", top=["x"])
    source.input_param.shape.add(dim=[1, 1, row["h"], row["w"]])
    layer = net.layer.add(name="y", type=TYPES[kind], bottom=["x"], top=["y"])
    p = layer.pooling_param if kind == "pool" else layer.convolution_param
    for field in ("kernel", "stride", "pad"):
        setattr(p, f"{field}_h", row[f"{field}_h"])
        setattr(p, f"{field}_w", row[f"{field}_w"])
    if kind == "pool":
        layer.pooling_param.round_mode = row["round_mode"]
    else:
        layer.convolution_param.num_output = 1
        layer.convolution_param.dilation.extend([row["dilation_h"], row["dilation_w"]])
    return net


@pytest.mark.goldens("formats/shapes.json")
@pytest.mark.parametrize("kind", TYPES)
def test_golden_format_output_sizes(golden: Path, kind: str) -> None:
    table = json.loads(golden.read_text())
    rows = [dict(zip(table["columns"][kind], row, strict=True)) for row in table[kind]]
    assert rows
    wrong = [
        row
        for row in rows
        if infer_shapes(one_layer(kind, row)).blobs["y"] != (1, 1, row["out_h"], row["out_w"])
    ]
    assert wrong == []


@pytest.mark.goldens("formats/coord_map.json")
def test_golden_format_coordinate_maps_of_nets(golden: Path) -> None:
    for name, net, expected in nets_of(golden):
        maps = map_to_input(net)
        for layer, (axis, scale, shift) in expected["map_to_input"].items():
            top = next(x.top[0] for x in net.layer if x.name == layer)
            assert values(maps[top]) == (axis, scale, shift), (name, layer)


@pytest.mark.goldens("formats/coord_map.json")
def test_golden_format_crop_offsets_of_nets(golden: Path) -> None:
    for name, net, expected in nets_of(golden):
        for layer in net.layer:
            if layer.type == "Crop":
                layer.ClearField("crop_param")
        filled = {x.name: x for x in fill_crops(net).layer}
        for layer, crop in expected["crops"].items():
            found = filled[layer]
            assert list(found.bottom) == crop["bottoms"]
            assert found.crop_param.axis == crop["axis"]
            assert list(found.crop_param.offset) == crop["offset"], (name, layer)


@pytest.mark.goldens("formats/coord_map.json")
def test_golden_format_coordinate_maps_of_chains(golden: Path) -> None:
    chains = json.loads(golden.read_text())["chains"]
    assert chains
    for chain in chains:
        net, last = chain_net(chain["layers"])
        assert values(map_to_input(net)[last]) == tuple(chain["map"]), chain
        kind, message = chain.get("error", ("", ""))
        if kind == "AttributeError":  # Caffe trips over chains of pointwise layers, whose map is the identity
            assert crop_offsets(net, last, "data") == (0,)
        elif kind:
            ours = next(ours for theirs, ours in REFUSALS.items() if theirs in message)
            with pytest.raises(NetError, match=ours):
                crop_offsets(net, last, "data")
        else:
            assert crop_offsets(net, last, "data") == tuple(chain["crop"]["offset"]), chain


@pytest.mark.goldens("layers/*.npz")
def test_golden_layer_shapes(golden: Path) -> None:
    with np.load(golden) as arrays:
        keys = [key for key in arrays.files if key.split("/")[0] in ("in", "out", "param")]
        recorded = {key: arrays[key].shape for key in keys}
    shapes = infer_shapes(read(golden.with_suffix(".prototxt")))
    inferred = {key: shape_of(shapes, key) for key in recorded}
    if any(layer.type == "Filter" for layer in shapes.layers.values()):
        # How many items pass depends on data: the inferred number is the largest possible.
        tops = [key for key in recorded if key.startswith("out/")]
        assert all(recorded[key][0] <= inferred[key][0] for key in tops)
        inferred |= {key: (*recorded[key][:1], *inferred[key][1:]) for key in tops}
    assert recorded
    assert inferred == recorded


@pytest.mark.goldens("nets/*.npz")
def test_golden_net_shapes(golden: Path) -> None:
    net = read(golden.with_suffix(".prototxt"))
    with np.load(golden) as arrays:
        given = {
            key[3:]: arrays[key].shape
            for key in arrays.files
            if key.startswith("in/") and not key.endswith("_large")
        }
        shapes = infer_shapes(net, given)
        for key in arrays.files:
            kind, _, rest = key.partition("/")
            if not rest.endswith("/shape"):
                continue
            name = rest.removesuffix("/shape")
            if kind in ("probe", "grad_in"):
                assert shapes.blobs[name] == tuple(arrays[key]), key
            elif kind == "grad":
                layer, _, index = name.rpartition("/")
                assert shapes.layers[layer].params[int(index)] == tuple(arrays[key]), key
        for layer, params in json.loads(str(arrays["meta"])).get("param_shapes", {}).items():
            assert [list(p) for p in shapes.layers[layer].params] == params


@pytest.mark.goldens("nets/*.npz")
def test_golden_net_shapes_after_a_reshape(golden: Path) -> None:
    with np.load(golden) as arrays:
        if "in/data_large" not in arrays.files:
            assert "probe_large" not in {key.split("/")[0] for key in arrays.files}
            return
        shapes = infer_shapes(read(golden.with_suffix(".prototxt")), {"data": arrays["in/data_large"].shape})
        sizes = {
            key[12:-6]: tuple(arrays[key])
            for key in arrays.files
            if key.startswith("probe_large/") and key.endswith("/shape")
        }
    assert sizes
    assert {name: shapes.blobs[name] for name in sizes} == sizes


def nets_of(golden: Path) -> list[tuple[str, caffe_pb2.NetParameter, dict[str, Any]]]:
    """The nets that coord_map.json speaks of; their definitions lie in nets/ beside formats/."""
    table = json.loads(golden.read_text())["nets"]
    paths = {name: golden.parent.parent / "nets" / f"{name}.prototxt" for name in table}
    found = [(name, read(path), table[name]) for name, path in paths.items() if path.is_file()]
    if not found:
        pytest.skip(f"none of the nets of {golden.name} is in this goldens directory")
    return found


def values(m: Any) -> tuple[int | None, list[float], list[float]]:
    assert all(isinstance(v, Fraction) for v in m.scale + m.shift)
    return m.axis, [float(v) for v in m.scale], [float(v) for v in m.shift]


def chain_net(layers: list[dict[str, Any]]) -> tuple[caffe_pb2.NetParameter, str]:
    net, last = caffe_pb2.NetParameter(), "data"
    net.layer.add(name="data", type="Input", top=["data"])
    for i, step in enumerate(layers):
        layer = net.layer.add(name=f"l{i}", type=CHAIN_TYPES[step["type"]], bottom=[last], top=[f"t{i}"])
        last = f"t{i}"
        if layer.type == "Pooling":
            p = layer.pooling_param
            p.kernel_size, p.stride, p.pad = step["k"], step["s"], step["p"]
        elif layer.type not in ("LRN", "ReLU"):
            layer.convolution_param.kernel_size.append(step["k"])
            layer.convolution_param.stride.append(step["s"])
            layer.convolution_param.pad.append(step["p"])
            layer.convolution_param.dilation.append(step.get("d", 1))
    return net, last


def shape_of(shapes: NetShapes, key: str) -> Shape:
    kind, _, name = key.partition("/")
    if kind != "param":
        return shapes.blobs[name]
    layer, _, index = name.rpartition("/")
    return shapes.layers[layer].params[int(index)]
