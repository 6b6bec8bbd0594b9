"""The commands that run or convert: what they print and leave, above all when they are given nonsense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from caffe_nets import colours_net, dense_net, save_net, set_blobs
from cli_helpers import Fcn, make_bad_files, make_models, refused, run_in
from google.protobuf import text_format
from PIL import Image

from caffe_weights import caffe_pb2
from caffe_weights.export import read_weights, write_weights
from caffe_weights.weights import Weights


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    return run_in(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_models(tmp_path)


# convert-weights


def test_convert_and_report(fcn: Fcn, folder: Path) -> None:
    result = fcn("convert-weights", "dense.caffemodel", "out.npz")
    assert result.exit_code == 0
    assert "1 layers with weights, 10 parameters" in result.stdout
    with np.load(folder / "out.npz") as stored:
        assert stored["ip.weight"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert stored["ip.bias"].tolist() == [1, -1]


def test_convert_convolutional(fcn: Fcn, folder: Path) -> None:
    result = fcn("convert-weights", "dense.caffemodel", "out.safetensors", "--convolutional", "--json")
    report = json.loads(result.stdout)
    assert report["convolutions"] == [
        {"layer": "ip", "kernel": [2, 2], "old_shape": [2, 4], "new_shape": [2, 1, 2, 2]}]  # fmt: skip
    assert report["out_net"] == "out.prototxt"
    assert report["smallest_input"] == [2, 2]
    assert read_weights(folder / "out.safetensors")["ip"][0].ravel().tolist() == list(range(8))
    assert "kernel_size: 2" in (folder / "out.prototxt").read_text()


def test_convolutional_net_goes_where_told(fcn: Fcn, folder: Path) -> None:
    result = fcn(
        "convert-weights", "dense.caffemodel", "o.caffemodel.h5", "--convolutional", "--out-net", "n.txt"
    )
    assert result.exit_code == 0
    assert (folder / "n.txt").exists()
    assert (folder / "o.caffemodel.h5").exists()


def test_convert_says_what_the_net_has_no_place_for(fcn: Fcn, folder: Path) -> None:
    result = fcn("convert-weights", "dense.caffemodel", "o.npz", "--net", "net.prototxt")
    refused(result, "score")
    net = dense_net()
    extra = net.layer.add(name="extra", type="Bias", bottom=["ip"], top=["ip"])
    set_blobs(net, extra.name, [np.ones(2)])
    save_net(folder, net, "more")
    result = fcn("convert-weights", "more.caffemodel", "o.npz", "--net", "dense.prototxt", "--json")
    assert json.loads(result.stdout)["dropped"] == ["extra.weight"]
    assert list(read_weights(folder / "o.npz")) == ["ip"]


SHARED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 2 dim: 2 } } }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" param { name: "w" }
  inner_product_param { num_output: 4 bias_term: false } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" }
  inner_product_param { num_output: 4 bias_term: false } }
layer { name: "rows" type: "Reshape" bottom: "b" top: "rows"
  reshape_param { shape { dim: 0 dim: 4 dim: 1 dim: 1 } } }
layer { name: "c" type: "Convolution" bottom: "rows" top: "c" param { name: "w" share_mode: PERMISSIVE }
  convolution_param { num_output: 4 kernel_size: 1 bias_term: false } }
"""


def test_shared_blobs_reach_every_user(fcn: Fcn, folder: Path) -> None:
    matrix = np.arange(16, dtype=np.float32).reshape(4, 4)
    write_weights(Weights({"a": [matrix]}), folder / "owner.h5")
    (folder / "shared.prototxt").write_text(SHARED)
    result = fcn("convert-weights", "owner.h5", "o.caffemodel", "--net", "shared.prototxt")
    assert result.exit_code == 0, result.stderr
    found = read_weights(folder / "o.caffemodel")
    assert [(name, blobs[0].shape) for name, blobs in found.items()] == [
        ("a", (4, 4)), ("b", (4, 4)), ("c", (4, 4, 1, 1))]  # fmt: skip
    assert all((blobs[0].reshape(4, 4) == matrix).all() for blobs in found.values())


def test_net_without_input_size_is_matched_by_name(fcn: Fcn, folder: Path) -> None:
    train = text_format.Parse((folder / "dense.prototxt").read_text(), caffe_pb2.NetParameter())
    train.layer[0].ClearField("input_param")
    train.layer[0].type = "Data"
    save_net(folder, train, "train")
    result = fcn("convert-weights", "dense.caffemodel", "o.npz", "--net", "train.prototxt")
    assert result.exit_code == 0
    assert "names were matched, shapes were not" in result.stdout
    refused(
        fcn("convert-weights", "net.caffemodel", "p.npz", "--net", "train.prototxt"), "no layer ip", "--net"
    )


def test_zero_upsampling_is_warned_of(fcn: Fcn, folder: Path) -> None:
    net = colours_net()
    up = net.layer.add(name="up", type="Deconvolution", bottom=["score"], top=["up"])
    up.convolution_param.num_output = 3
    up.convolution_param.kernel_size.append(2)
    set_blobs(net, "up", [np.zeros((3, 3, 2, 2))])
    save_net(folder, net, "up")
    assert (
        "warning: layer up: all up-sampling weights are zero"
        in fcn("convert-weights", "up.caffemodel", "o.pt").stdout
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.caffemodel", "o.npz"], ["none.caffemodel", "no such file"]),
        (["none", "o.npz"], ["none", "no such file"]),  # told before its extension
        (["dense.caffemodel", "o.xyz"], ["o.xyz", "extension"]),
        (["dense.caffemodel", "no/such/folder/o.npz"], ["folder"]),
        (["dense.caffemodel", "there.npz"], ["there.npz", "exists", "--force"]),
        (["dense.caffemodel", "dense.caffemodel", "--force"], ["itself"]),
        (["dense.caffemodel", "o.npz", "--net", "o.prototxt"], ["o.prototxt", "no such file"]),
        (["dense.caffemodel", "o.npz", "--net", "broken.prototxt"], ["broken.prototxt", "kernel_sise"]),
        (["dense.npz", "o.caffemodel"], ["--net"]),
        (["dense.npz", "o.pt", "--convolutional"], ["--net"]),
        (["cut.caffemodel", "o.npz"], ["cut.caffemodel"]),
        (["hdf5.caffemodel", "o.npz"], ["hdf5.caffemodel", "HDF5"]),
        (["empty.caffemodel", "o.npz"], ["empty.caffemodel"]),
        (
            ["dense.caffemodel", "o.npz", "--convolutional", "--out-net", "there.prototxt"],
            ["there.prototxt", "exists"],
        ),
        (
            ["dense.caffemodel", "o.npz", "--convolutional", "--out-net", "dense.caffemodel", "--force"],
            ["itself"],
        ),
        (["dense.caffemodel", "o.npz", "--convolutional", "--out-net", "o.npz"], ["two names"]),
        (["dense.caffemodel", "o.npz", "--convolutional", "--out-net", "no/n.prototxt"], ["folder"]),
        (["net.caffemodel", "o.npz", "--convolutional"], ["InnerProduct"]),
        (["train.caffemodel", "o.npz", "--convolutional"], ["--input-shape C,H,W"]),
        (["train.caffemodel", "o.npz", "--convolutional", "--input-shape", "1,3,3"], ["ip"]),
        (["slash.npz", "o.h5"], ["'/'"]),
    ],
)
def test_bad_conversions_leave_nothing(
    fcn: Fcn, folder: Path, arguments: list[str], words: list[str]
) -> None:
    make_bad_files(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused(fcn("convert-weights", *arguments), *words)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_force_replaces(fcn: Fcn, folder: Path) -> None:
    (folder / "o.npz").write_text("old")
    assert fcn("convert-weights", "dense.caffemodel", "o.npz", "--force").exit_code == 0
    assert read_weights(folder / "o.npz").count() == 10


def test_train_caffemodel_with_input_shape(fcn: Fcn, folder: Path) -> None:
    make_bad_files(folder)
    result = fcn("convert-weights", "train.caffemodel", "o.npz", "--convolutional", "--input-shape", "1,2,2")
    assert result.exit_code == 0, result.stderr
    text = (folder / "o.prototxt").read_text()
    assert "Input" in text
    assert "SoftmaxWithLoss" not in text
    assert "include" not in text


# run


def test_run_array(fcn: Fcn, folder: Path) -> None:
    np.save(folder / "x.npy", np.arange(4.0).reshape(1, 1, 2, 2))
    result = fcn(
        "run", "dense.prototxt", "dense.caffemodel", "--input", "x.npy", "--out", "o.npz", "--blob", "data"
    )
    assert result.exit_code == 0, result.stderr
    with np.load(folder / "o.npz") as blobs:
        assert blobs["ip"].tolist() == [[0 + 1 + 4 + 9 + 1, 0 + 5 + 12 + 21 - 1]]
        assert blobs["data"].ravel().tolist() == [0, 1, 2, 3]
        assert set(blobs) == {"ip", "data"}


def test_run_picture(fcn: Fcn, folder: Path) -> None:
    arguments = ("--input", "data=x.png", "--mean", "1,2,3", "--scale", 2, "--out", "o.npz", "--json")
    result = fcn("run", "net.prototxt", "net.caffemodel", *arguments)
    report = json.loads(result.stdout)
    assert report["inputs"] == {"data": [1, 3, 2, 2]}
    assert report["blobs"]["score"]["shape"] == [1, 3, 2, 2]
    with np.load(folder / "o.npz") as blobs:
        assert blobs["score"][0, :, 0, 0].tolist() == [(20 - 1) * 2, (10 - 2) * 2, (200 - 3) * 2]


def test_run_resizes_to_size(fcn: Fcn, folder: Path) -> None:
    result = fcn(
        "run",
        "net.prototxt",
        "net.caffemodel",
        "--input",
        "x.png",
        "--size",
        "5x7",
        "--out",
        "o.npz",
        "--json",
    )
    assert json.loads(result.stdout)["inputs"] == {"data": [1, 3, 5, 7]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "none.npy"], ["none.npy", "no such file"]),
        (["--input", "x.png", "--input", "x.png"], ["two files for input 'data'"]),
        (["--input", "other=x.png"], ["no input 'other'", "data"]),
        (["--input", "x.png", "--blob", "scroe"], ["no blob 'scroe'", "score"]),
        (["--input", "x.png", "--device", "nonsense"], ["--device nonsense"]),
        (["--input", "x.png", "--mean", "1,2"], ["--mean"]),
        (["--input", "x.png", "--mean", "none.binaryproto"], ["none.binaryproto"]),
        (["--input", "x.png", "--scale", "nan"], ["--scale"]),
        (["--input", "x.png", "--color", "gray"], ["--color gray"]),
        (["--input", "flat.npy"], ["flat.npy", "4 axes, as 1x3x2x2"]),
        (["--input", "object.npy"], ["object.npy"]),
        (["--input", "text.npy"], ["text.npy", "wrong first bytes"]),
        (["--input", "huge.npy"], ["huge.npy"]),
        (["--input", "net.prototxt"], ["net.prototxt", "not a readable picture"]),
        (["--input", "x.png", "--out", "o.txt"], [".npz"]),
        (["--input", "x.png", "--out", "no/o.npz"], ["folder"]),
        (["--input", "x.png", "--out", "there.npz"], ["exists", "--force"]),
    ],
)
def test_bad_runs_leave_nothing(fcn: Fcn, folder: Path, arguments: list[str], words: list[str]) -> None:
    make_bad_files(folder)
    before = {path.name for path in folder.iterdir()}
    out = [] if "--out" in arguments else ["--out", "o.npz"]
    refused(fcn("run", "net.prototxt", "net.caffemodel", *arguments, *out), *words)
    assert {path.name for path in folder.iterdir()} == before


def test_run_with_weights_of_another_net(fcn: Fcn, folder: Path) -> None:
    refused(fcn("run", "net.prototxt", "dense.caffemodel", "--input", "x.png", "--out", "o.npz"), "score")


# segment and classify


def test_segment_writes_labels_and_overlay(fcn: Fcn, folder: Path) -> None:
    result = fcn("segment", "x.png", "--net", "net.prototxt", "--weights", "net.caffemodel", "--out", "a/b",
                 "--overlay", "--mean", "0,0,0", "--json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    image = json.loads(result.stdout)["images"][0]
    assert image["classes"] == [
        {"label": 0, "name": "class 0", "share": 0.5}, {"label": 1, "name": "class 1", "share": 0.25},
        {"label": 2, "name": "class 2", "share": 0.25}]  # fmt: skip
    assert np.asarray(Image.open(folder / image["labels"])).tolist() == [[2, 1], [0, 0]]
    assert Image.open(folder / image["overlay"]).width > 50


def test_segment_names_classes_from_a_file(fcn: Fcn, folder: Path) -> None:
    (folder / "names.txt").write_text("blue\ngreen\nred\n")
    arguments = (
        "segment",
        "x.png",
        "--net",
        "net.prototxt",
        "--weights",
        "net.caffemodel",
        "--mean",
        "0,0,0",
        "--labels",
    )
    assert "blue 50.0%, green 25.0%, red 25.0%" in fcn(*arguments, "names.txt", "--out", "o").stdout
    (folder / "names.txt").write_text("blue\n")
    refused(fcn(*arguments, "names.txt", "--out", "p"), "1 names")
    refused(fcn(*arguments, "x.png", "--out", "p"), "no list of names")


def test_segment_refuses_before_it_overwrites(fcn: Fcn, folder: Path) -> None:
    arguments = ("--net", "net.prototxt", "--weights", "net.caffemodel", "--out")
    refused(fcn("segment", "x.png", *arguments, "."), "exists")
    refused(fcn("segment", "x.png", *arguments, ".", "--force"), "itself")
    refused(fcn("segment", "x.png", "a/x.png", *arguments, "o"), "both be written")
    refused(fcn("segment", "x.png", *arguments, "net.prototxt"), "net.prototxt")
    refused(fcn("segment", "none.png", *arguments, "o"), "none.png")


def test_classify(fcn: Fcn, folder: Path) -> None:
    (folder / "names.txt").write_text("first\nsecond\n")
    Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).save(folder / "g.png")
    result = fcn("classify", "g.png", "--net", "dense.prototxt", "--weights", "dense.caffemodel", "--top", 1,
                 "--labels", "names.txt", "--json")  # fmt: skip
    image = json.loads(result.stdout)["images"][0]
    assert image["predictions"] == [{"label": 1, "name": "second", "score": 37.0}]
    assert image["positions"] == 1
    plain = fcn("classify", "g.png", "--net", "dense.prototxt", "--weights", "dense.caffemodel").stdout
    assert plain.split() == ["g.png", "37", "1", "15", "0"]
