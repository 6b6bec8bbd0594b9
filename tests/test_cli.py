"""The command line: what it prints, leaves and returns, above all when it is given nonsense."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caffe_nets import colours_net, dense_net, save_net, set_blobs
from click.testing import CliRunner, Result
from PIL import Image

from caffe_weights import caffe_pb2
from caffe_weights.export import read_weights
from reproduce import cli

RGB = np.array([[[200, 10, 20], [10, 200, 20]], [[10, 20, 200], [0, 0, 1]]], np.uint8)
Fcn = Callable[..., Result]


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    """Run `fcn` in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli.cli, [str(item) for item in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """net.prototxt and net.caffemodel of `colours`, dense.* of `dense`, x.png."""
    save_net(tmp_path, colours_net())
    save_net(tmp_path, dense_net(), "dense")
    Image.fromarray(RGB).save(tmp_path / "x.png")
    return tmp_path


def refused(result: Result, *words: str) -> None:
    """Exit code 2, nothing on standard output, one line on standard error that has these words."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


def test_help_lists_every_command(fcn: Fcn) -> None:
    result = fcn("--help")
    assert result.exit_code == 0
    for name in ("convert-weights", "inspect", "explain-crop", "run", "segment", "classify", "demo"):
        assert name in result.stdout
        assert fcn(name, "--help").exit_code == 0


def test_version(fcn: Fcn) -> None:
    from caffe_weights import __version__

    assert fcn("--version").stdout.strip() == f"fcn, version {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["--nonsense"], ["inspect"], ["inspect", "a", "b"], ["run", "a", "b", "--phase", "x"],
     ["explain-crop", "x", "--size", "5"], ["explain-crop", "x", "--size", "0x5"], ["classify"],
     ["convert-weights", "a", "b", "--input-shape", "1,2"], ["classify", "a", "--top", "0"],
     ["convert-weights", "a", "b", "--out-net", "c"], ["run", "a", "b", "--scale", "x"]],
)  # fmt: skip
def test_usage_errors_are_one_line(fcn: Fcn, arguments: list[str]) -> None:
    refused(fcn(*arguments), "--help")


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
    _make_bad_files(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused(fcn("convert-weights", *arguments), *words)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_force_replaces(fcn: Fcn, folder: Path) -> None:
    (folder / "o.npz").write_text("old")
    assert fcn("convert-weights", "dense.caffemodel", "o.npz", "--force").exit_code == 0
    assert read_weights(folder / "o.npz").count() == 10


def test_train_caffemodel_with_input_shape(fcn: Fcn, folder: Path) -> None:
    _make_bad_files(folder)
    result = fcn("convert-weights", "train.caffemodel", "o.npz", "--convolutional", "--input-shape", "1,2,2")
    assert result.exit_code == 0, result.stderr
    text = (folder / "o.prototxt").read_text()
    assert "Input" in text
    assert "SoftmaxWithLoss" not in text
    assert "include" not in text


# inspect


def test_inspect_prints_a_table(fcn: Fcn, folder: Path) -> None:
    out = fcn("inspect", "dense.prototxt").stdout
    assert 'dense.prototxt: net prototxt V2 "dense"' in out
    assert "ip     InnerProduct  1x2      2x4  2" in out
    assert "2 layers, 10 parameters, 40 bytes of values" in out


def test_inspect_check_fails_with_one(fcn: Fcn, folder: Path) -> None:
    net = dense_net()
    set_blobs(net, "ip", [np.full((2, 4), np.nan), np.ones(2)])
    save_net(folder, net, "nan")
    result = fcn("inspect", "nan.caffemodel", "--check")
    assert result.exit_code == 1
    assert "problem: layer 'ip', blob 0 of shape 2x4: 8 NaN" in result.stdout
    assert fcn("inspect", "nan.caffemodel").exit_code == 0
    good = fcn("inspect", "dense.caffemodel", "--check")
    assert good.exit_code == 0
    assert "checked: no NaN" in good.stdout


@pytest.mark.parametrize("name", ["none", ".", "empty.caffemodel", "broken.prototxt", "cut.caffemodel"])
def test_inspect_refuses_what_is_no_model(fcn: Fcn, folder: Path, name: str) -> None:
    _make_bad_files(folder)
    refused(fcn("inspect", name), name)


# explain-crop


def test_explain_crop_says_19(fcn: Fcn, tmp_path: Path) -> None:
    (tmp_path / "x.prototxt").write_text(_fcn32s(crop="crop_param { axis: 2 offset: 19 }"))
    out = fcn("explain-crop", "x.prototxt", "--size", "500x375").stdout
    assert "-19" in out
    assert "the offset is 19, as in the file" in " ".join(out.split())
    crops = json.loads(fcn("explain-crop", "x.prototxt", "--size", "500x375", "--json").stdout)["crops"]
    assert [(c["layer"], c["scale"], c["shift"], c["offset_computed"]) for c in crops] == [
        ("score", ["1"], ["-19"], [19])]  # fmt: skip
    assert crops[0]["slack_before"] == [19, 19]
    assert crops[0]["slack_after"] == [544 - 19 - 500, 416 - 19 - 375]


def test_explain_crop_without_crops(fcn: Fcn, folder: Path) -> None:
    assert fcn("explain-crop", "net.prototxt").stdout == "net.prototxt: no Crop layer\n"
    refused(fcn("explain-crop", "none.prototxt"), "none.prototxt")


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
        (["--input", "text.npy"], ["text.npy"]),
        (["--input", "huge.npy"], ["huge.npy"]),
        (["--input", "net.prototxt"], ["net.prototxt", "not a readable picture"]),
        (["--input", "x.png", "--out", "o.txt"], [".npz"]),
        (["--input", "x.png", "--out", "no/o.npz"], ["folder"]),
        (["--input", "x.png", "--out", "there.npz"], ["exists", "--force"]),
    ],
)
def test_bad_runs_leave_nothing(fcn: Fcn, folder: Path, arguments: list[str], words: list[str]) -> None:
    _make_bad_files(folder)
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


# the process


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["convert-weights", "dense.caffemodel", "o.npz", "--json"], "convert-weights"),
        (["inspect", "dense.caffemodel", "--json"], "inspect"),
        (["explain-crop", "net.prototxt", "--json"], "explain-crop"),
        (["run", "net.prototxt", "net.caffemodel", "--input", "x.png", "--out", "o.npz", "--json"], "run"),
        (
            [
                "segment",
                "x.png",
                "--net",
                "net.prototxt",
                "--weights",
                "net.caffemodel",
                "--out",
                "o",
                "--json",
            ],
            "segment",
        ),
        (["classify", "x.png", "--net", "net.prototxt", "--weights", "net.caffemodel", "--json"], "classify"),
        (["demo", "--json"], "demo"),
    ],
)
def test_json_keys_are_documented(fcn: Fcn, folder: Path, arguments: list[str], file: str) -> None:
    result = fcn(*arguments)
    assert result.exit_code == 0, result.stderr
    words = set(fcn(file, "--help").stdout.replace(",", " ").replace(":", " ").split())
    for key in _keys(json.loads(result.stdout)):
        assert key in words, key
        assert key == key.lower()
        assert " " not in key


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    from reproduce.commands.common import print_json

    print_json({"a": [float("nan"), (1.5, float("inf"))]})
    assert json.loads(capsys.readouterr().out) == {"a": [None, [1.5, None]]}


def test_interrupt_is_130(fcn: Fcn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reproduce.commands.inspect.inspect_file", _raises(KeyboardInterrupt()))
    result = fcn("inspect", "net.prototxt")
    assert result.exit_code == 130
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_our_own_mistakes_keep_their_traceback(
    fcn: Fcn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reproduce.commands.inspect.inspect_file", _raises(ZeroDivisionError("ours")))
    assert isinstance(fcn("inspect", "net.prototxt").exception, ZeroDivisionError)


@pytest.mark.parametrize("module", ["reproduce", "reproduce.cli"])
def test_help_imports_next_to_nothing(module: str) -> None:
    code = ("import sys\nfrom reproduce.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
            "print([m for m in ('torch', 'numpy', 'google', 'PIL') if m in sys.modules])")  # fmt: skip
    assert _python("-c", code).stdout.splitlines()[-1] == "[]"


def test_module_and_entry_points_are_the_command(folder: Path) -> None:
    done = _python("-m", "reproduce", "inspect", str(folder / "none"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    code = f"from reproduce.cli import convert_weights_main as m; m([{str(folder / 'none.npz')!r}, 'o.npz'])"
    done = _python("-c", code)
    assert done.returncode == 2
    assert "none.npz: no such file" in done.stderr
    code = "from reproduce.cli import convert_weights_main as m; m(['--help'])"
    assert _python("-c", code).stdout.startswith("Usage: convert-weights")


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    net = dense_net()
    for i in range(3000):
        net.layer.add(name=f"relu{i}", type="ReLU", bottom=["ip"], top=["ip"])
    save_net(folder, net, "long")
    command = [sys.executable, "-m", "reproduce", "inspect", str(folder / "long.caffemodel")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment())
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == cli.EXIT_BROKEN_PIPE
    process.stderr.close()


def _raises(error: BaseException) -> Callable[..., None]:
    def function(*arguments: object) -> None:
        raise error

    return function


def _keys(value: Any) -> set[str]:
    """Keys at every depth, but for those of `inputs` and `blobs` of `run`, which are the net's own names."""
    if isinstance(value, list):
        return set().union(*map(_keys, value))
    if not isinstance(value, dict):
        return set()
    keys = set(value)
    for key, item in value.items():
        if key == "blobs":
            item = list(item.values())
        if key != "inputs":
            keys |= _keys(item)
    return keys


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}


def _make_bad_files(folder: Path) -> None:
    whole = (folder / "dense.caffemodel").read_bytes()
    (folder / "cut.caffemodel").write_bytes(whole[:-3])
    (folder / "empty.caffemodel").write_bytes(b"")
    (folder / "hdf5.caffemodel").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (folder / "broken.prototxt").write_text('layer { name: "c" convolution_param { kernel_sise: 3 } }')
    for name in ("there.npz", "there.prototxt"):
        (folder / name).write_text("mine")
    np.savez(folder / "dense.npz", **{"ip.weight": np.ones((2, 4), np.float32)})  # type: ignore[arg-type]
    np.savez(folder / "slash.npz", **{"a/b.weight": np.ones(2, np.float32)})  # type: ignore[arg-type]
    np.save(folder / "flat.npy", np.zeros(3, np.float32))
    np.save(folder / "object.npy", np.array([{}]), allow_pickle=True)
    (folder / "text.npy").write_text("no array")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,), }"
    (folder / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    train = dense_net()
    train.layer[0].Clear()
    train.layer[0].name, train.layer[0].type = "data", "Data"
    train.layer[0].top.extend(["data", "label"])
    train.layer[0].include.add().phase = caffe_pb2.TRAIN
    train.layer.add(name="loss", type="SoftmaxWithLoss", bottom=["ip", "label"], top=["loss"])
    (folder / "train.caffemodel").write_bytes(train.SerializeToString())


def _fcn32s(crop: str) -> str:
    """The geometry of the published FCN-32s: padding 100, total stride 32, kernel 7, up 64/32."""
    convolution = (
        'layer {{ name: "{0}" type: "Convolution" bottom: "{1}" top: "{0}"'
        " convolution_param {{ num_output: 1 kernel_size: {2} pad: {3} }} }}"
    )
    layers = [
        'layer { name: "data" type: "Input" top: "data"'
        " input_param { shape { dim: 1 dim: 3 dim: 9 dim: 9 } } }"
    ]
    layers.append(convolution.format("conv1_1", "data", 3, 100))
    last = "conv1_1"
    for i in range(1, 6):
        layers.append(f'layer {{ name: "pool{i}" type: "Pooling" bottom: "{last}" top: "pool{i}"'
                      " pooling_param { pool: MAX kernel_size: 2 stride: 2 } }")  # fmt: skip
        last = f"pool{i}"
    layers.append(convolution.format("fc6", last, 7, 0))
    layers.append('layer { name: "upscore" type: "Deconvolution" bottom: "fc6" top: "upscore"'
                  " convolution_param { num_output: 1 kernel_size: 64 stride: 32 } }")  # fmt: skip
    layers.append(
        f'layer {{ name: "score" type: "Crop" bottom: "upscore" bottom: "data" top: "score" {crop} }}'
    )
    return "\n".join(layers)
