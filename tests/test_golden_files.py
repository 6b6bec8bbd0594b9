"""Real Caffe's own files: read as it reads them, written again byte for byte."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from caffe_weights.export import read_weights, write_weights
from caffe_weights.mean import read_mean


def check_identical(golden: Path, tmp_path: Path) -> None:
    """Read and written again: as it is, and with every layer encoded anew where it has today's form."""
    raw = golden.read_bytes()
    raw = gzip.decompress(raw) if golden.suffix == ".gz" else raw
    weights = read_weights(golden)
    write_weights(weights, tmp_path / "again.caffemodel")
    assert (tmp_path / "again.caffemodel").read_bytes() == raw
    assert weights.model is not None
    if any(proto.HasField("num") for layer in weights.model.layers for proto in layer.message.blobs):
        return
    if weights.model.net.layers:
        return
    for name in weights:
        weights[name] = [np.array(array) for array in weights[name]]
    write_weights(weights, tmp_path / "anew.caffemodel")
    assert (tmp_path / "anew.caffemodel").read_bytes() == raw


@pytest.mark.goldens("nets/*.caffemodel.gz")
def test_golden_net_is_byte_identical_when_written_again(golden: Path, tmp_path: Path) -> None:
    check_identical(golden, tmp_path)


@pytest.mark.goldens("formats/*.caffemodel")
def test_golden_format_is_byte_identical_when_written_again(golden: Path, tmp_path: Path) -> None:
    check_identical(golden, tmp_path)


@pytest.mark.goldens("solvers/**/*.caffemodel")
def test_golden_solver_snapshot_is_byte_identical_when_written_again(golden: Path, tmp_path: Path) -> None:
    check_identical(golden, tmp_path)


@pytest.mark.goldens("nets/*.caffemodel.gz")
@pytest.mark.parametrize("extension", ["safetensors", "pt", "npz", "h5", "caffemodel"])
def test_golden_net_goes_to_every_format_and_back(golden: Path, extension: str, tmp_path: Path) -> None:
    weights = read_weights(golden)
    if extension == "h5" and any("/" in name for name in weights):
        extension = "npz"  # HDF5 cannot hold such names, see test_export.py
    write_weights(weights, tmp_path / f"a.{extension}")
    again = read_weights(tmp_path / f"a.{extension}")
    assert list(again) == list(weights)
    for name in weights:
        for got, want in zip(again[name], weights[name], strict=True):
            assert (got.shape, got.dtype, got.tobytes()) == (want.shape, want.dtype, want.tobytes())


@pytest.mark.goldens("formats/*.npz", exclude="formats/[!v]*.npz")
def test_golden_format_parameters_are_those_caffe_loaded(golden: Path) -> None:
    path = golden.with_suffix(".caffemodel")
    weights = read_weights(path)
    with np.load(golden) as stored:
        wanted = {key.removeprefix("param/"): stored[key] for key in stored.files if key.startswith("param/")}
    got = {f"{name}:{i}": array for name, arrays in weights.items() for i, array in enumerate(arrays)}
    assert set(got) == set(wanted)
    for key, want in wanted.items():
        assert (got[key].shape, got[key].dtype, got[key].tobytes()) == (
            want.shape,
            want.dtype,
            want.tobytes(),
        )


@pytest.mark.goldens("formats/*.upgraded.caffemodel")
def test_golden_format_upgraded_model_holds_the_same_blobs(golden: Path) -> None:
    upgraded = read_weights(golden)
    original = read_weights(golden.with_name(golden.name.replace(".upgraded", "")))
    assert list(upgraded) == list(original)
    for name in original:
        for got, want in zip(upgraded[name], original[name], strict=True):
            assert (got.shape, got.tobytes()) == (want.shape, want.tobytes())


@pytest.mark.goldens("formats/*.caffemodel.h5")
def test_golden_format_hdf5_holds_what_the_binary_model_holds(golden: Path) -> None:
    stored, whole = read_weights(golden), read_weights(golden.with_suffix(""))
    assert set(stored) <= set(whole)
    kept = [
        (name, i, array) for name, arrays in stored.items() for i, array in enumerate(arrays) if array.size
    ]
    assert kept
    for name, i, array in kept:
        want = whole[name][i]
        assert (array.shape, array.dtype, array.tobytes()) == (want.shape, want.dtype, want.tobytes())


@pytest.mark.goldens("solvers/*/hdf5/*.caffemodel.h5")
def test_golden_solver_hdf5_snapshot_equals_the_binary_one(golden: Path) -> None:
    stored = read_weights(golden)
    binary = next((golden.parent.parent / "binaryproto").glob("*.caffemodel"))
    whole = read_weights(binary)
    assert set(stored) == set(whole)
    for name in whole:
        for got, want in zip(stored[name], whole[name], strict=True):
            assert (got.shape, got.dtype, got.tobytes()) == (want.shape, want.dtype, want.tobytes())


@pytest.mark.goldens("formats/*.binaryproto")
def test_golden_format_mean_is_read(golden: Path) -> None:
    with np.load(golden.with_name("mean.npz")) as stored:
        want = stored["mean"]
    got = read_mean(golden)
    assert (got.shape, got.dtype) == (want.shape, np.float32)
    assert np.array_equal(got, want)
