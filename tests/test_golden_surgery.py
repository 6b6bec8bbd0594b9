"""Surgery against what BVLC Caffe 1.0 wrote: bilinear kernels, fillers, nets cut fully convolutional."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_weights.caffe_pb2 import FillerParameter, LayerParameter, NetParameter
from caffe_weights.export import read_weights
from reproduce.fillers import fill
from surgery.convolutionize import convolutionize
from surgery.interpolation import bilinear_filler, bilinear_kernel, bilinear_weights
from surgery.shapes import infer_shapes
from surgery.transplant import transplant

SIGMAS = 5.5  # one false alarm in about 25 million draws


@pytest.mark.goldens("formats/bilinear.npz")
def test_golden_format_bilinear(golden: Path) -> None:
    stored = np.load(golden)
    kernels = [key for key in stored.files if key != "meta"]
    assert kernels
    for key in kernels:
        rule, _, size = key.rpartition("/")
        want = stored[key]
        if rule == "diagonal_rule":
            got = bilinear_weights((1, 1, int(size), int(size)))[0, 0]
            assert np.array_equal(bilinear_kernel(int(size)).astype(np.float32), want), key
        else:
            got = bilinear_filler((1,) * (4 - want.ndim) + want.shape).reshape(want.shape)
        assert got.dtype == want.dtype, key
        assert np.array_equal(got, want), key


@pytest.mark.goldens("formats/fillers.json")
def test_golden_format_fillers(golden: Path) -> None:
    cases = json.loads(golden.read_text())
    assert cases
    for seed, case in enumerate(cases):
        filler = text_format.Parse(case["filler"], FillerParameter())
        compare_statistics(fill(case["shape"], filler, seed).astype(np.float64), case)


@pytest.mark.goldens("nets/*-fullconv.npz")
def test_golden_net_cut_fully_convolutional(golden: Path) -> None:
    """The classifier beside it, cut by us, is the net that was cut by hand for Caffe, values and all."""
    classifier = golden.with_name(golden.name.removesuffix("-fullconv.npz"))
    weights = read_weights(classifier.with_name(classifier.name + ".caffemodel.gz"))
    want, stored = read(golden.with_suffix(".prototxt")), np.load(golden)
    new, cut, report = convolutionize(read(classifier.with_name(classifier.name + ".prototxt")), weights)
    names = [layer.name for layer in want.layer]
    ours = [layer for layer in new.layer if layer.name in names]  # without label and loss
    assert list(map(without_defaults, ours)) == list(map(without_defaults, want.layer))
    coerced = [[layer.name, 0, list(layer.old_shape), list(layer.new_shape)] for layer in report.layers]
    assert coerced == json.loads(str(stored["meta"]))["coerced"]
    assert cut is not None
    assert list(cut) == list(weights)
    for name, blobs in weights.items():
        assert all(np.array_equal(x.ravel(), y.ravel()) for x, y in zip(cut[name], blobs, strict=True)), name
    native = infer_shapes(NetParameter(layer=ours)).blobs
    assert native["fc8"] == stored["out/conv_fc8_native"].shape
    large = infer_shapes(NetParameter(layer=ours), {"data": stored["in/data_large"].shape}).blobs
    assert large["fc8"] == stored["out/conv_fc8_large"].shape


@pytest.mark.goldens("nets/*-fullconv.npz")
def test_golden_net_transplanted(golden: Path) -> None:
    """Copying by name with coercion fills the net cut by hand with the same values."""
    classifier = golden.name.removesuffix("-fullconv.npz")
    weights = read_weights(golden.with_name(f"{classifier}.caffemodel.gz"))
    shapes = infer_shapes(read(golden.with_suffix(".prototxt"))).layers
    result, report = transplant(weights, {name: layer.params for name, layer in shapes.items()}, coerce=True)
    coerced = [
        [*change.blob.split(".weight"), list(change.old), list(change.new)] for change in report.coerced
    ]
    assert coerced == [
        [name, "", old, new] for name, _, old, new in json.loads(str(np.load(golden)["meta"]))["coerced"]
    ]
    assert report.missing == []
    assert report.dropped == []
    assert len(report.copied) + len(coerced) == sum(map(len, weights.values()))
    for name, blobs in weights.items():
        assert [x.ravel().tobytes() for x in result[name]] == [y.ravel().tobytes() for y in blobs]


def read(path: Path) -> NetParameter:
    return text_format.Parse(path.read_text(), NetParameter())


def without_defaults(layer: LayerParameter) -> LayerParameter:
    """A copy without the pad 0 and stride 1 that a hand may or may not have written."""
    copy = LayerParameter()
    copy.CopyFrom(layer)
    conv = copy.convolution_param
    for field, default in (("pad", [0]), ("stride", [1])):
        if list(getattr(conv, field)) == default:
            conv.ClearField(field)
    return copy


def compare_statistics(values: np.ndarray, case: dict[str, Any]) -> None:
    """Mean and std within the sampling error of two draws of that many values; bounds and zeros alike."""
    what = f"{case['layer']}, {case['filler']}"
    count, std = case["count"], case["std"]
    assert values.shape == tuple(case["shape"]), what
    if std == 0:
        assert np.all(values == case["mean"]), what
        return
    assert abs(values.mean() - case["mean"]) <= SIGMAS * std * sqrt(2 / count), what
    fourth = (
        np.mean((values - values.mean()) ** 4) / values.var() ** 2
    )  # the kurtosis sets the error of a std
    assert abs(values.std() - std) <= SIGMAS * std * sqrt((fourth - 1) / (2 * count)), what
    zeros = case["zero_fraction"]
    assert abs(np.mean(values == 0) - zeros) <= SIGMAS * sqrt(2 * zeros * (1 - zeros) / count), what
    spread = 0.002 if "gaussian" not in what and "msra" not in what else 0.6  # extremes of normal values vary
    if "unitball" in what:
        sums = values.reshape(len(values), -1).sum(axis=1)
        assert np.allclose(sums, [[case["row_sum_min"]], [case["row_sum_max"]]], rtol=1e-5, atol=0), what
        spread = 0.2
    reach = case["max"] - case["min"]
    assert abs(values.min() - case["min"]) <= spread * reach, what
    assert abs(values.max() - case["max"]) <= spread * reach, what
