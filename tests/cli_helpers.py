"""Running `fcn` in a folder of small models, and files broken in every way; for the tests of commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from caffe_nets import colours_net, dense_net, save_net
from click.testing import CliRunner, Result
from PIL import Image

from caffe_weights import caffe_pb2
from reproduce import cli

RGB = np.array([[[200, 10, 20], [10, 200, 20]], [[10, 20, 200], [0, 0, 1]]], np.uint8)
Fcn = Callable[..., Result]


def run_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    """A function that runs `fcn` with its arguments in `folder`."""
    monkeypatch.chdir(folder)
    return lambda *arguments: CliRunner().invoke(cli.cli, [str(item) for item in arguments])


def make_models(folder: Path) -> Path:
    """Write net.prototxt and net.caffemodel of `colours`, dense.* of `dense`, and x.png."""
    save_net(folder, colours_net())
    save_net(folder, dense_net(), "dense")
    Image.fromarray(RGB).save(folder / "x.png")
    return folder


def refused(result: Result, *words: str) -> None:
    """Exit code 2, nothing on standard output, one line on standard error that has these words."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


def make_bad_files(folder: Path) -> None:
    """Write files that no command can use, each for one reason, and two that must not be replaced."""
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
