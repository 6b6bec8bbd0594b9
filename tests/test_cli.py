"""The command line: help, errors, exit codes, the process; inspect and explain-crop."""

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
from caffe_nets import dense_net, save_net, set_blobs
from cli_helpers import Fcn, make_bad_files, make_models, refused, run_in

from reproduce import cli


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    return run_in(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_models(tmp_path)


def test_help_lists_every_command(fcn: Fcn) -> None:
    result = fcn("--help")
    assert result.exit_code == 0
    for name in ("convert-weights", "inspect", "explain-crop", "run", "segment", "classify", "demo"):
        assert name in result.stdout
        assert fcn(name, "--help").exit_code == 0


@pytest.mark.parametrize("group", [(), ("data",)])
def test_a_group_alone_shows_its_help(fcn: Fcn, group: tuple[str, ...]) -> None:
    result = fcn(*group)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == fcn(*group, "--help").stdout  # as it is, not in one line


def test_lists_of_commands_are_whole_sentences(fcn: Fcn) -> None:
    assert "..." not in fcn("data", "--help").stdout.split("Commands:")[1]


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
    make_bad_files(folder)
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


def test_progress_shows_late_and_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from reproduce.commands import common

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    with common.progress("working", 2) as step:
        step()
    assert capsys.readouterr() == ("", "")
    bar = common._LateBar("working", 2)
    bar.step()
    bar.show()
    bar.step()
    assert bar.bar.tasks[0].completed == 2
    bar.close()
    bar.show()
    assert capsys.readouterr().out == ""


def test_progress_leaves_nothing_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    from reproduce.commands import common

    bar = common._LateBar("working", 2)
    bar.show()
    bar.step()
    bar.close()
    assert capsys.readouterr() == ("", "")


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
    monkeypatch.setattr("reproduce.commands.inspect.inspect_file", _raises(EOFError()))
    assert isinstance(fcn("inspect", "net.prototxt").exception, RuntimeError)  # to click it is Ctrl-D


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_help_imports_next_to_nothing(command: str | None) -> None:
    arguments = [*([command] if command else []), "--help"]
    code = (
        f"import sys\nfrom reproduce.cli import main\ntry: main({arguments})\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'scipy', 'matplotlib', 'rich') if m in sys.modules])"
    )
    assert _python("-c", code).stdout.splitlines()[-1] == "[]"
    if command is None:
        code = code.replace("'torch',", "'torch', 'numpy', 'google',")
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
