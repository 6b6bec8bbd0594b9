"""Parity: every planted fault is found at its layer by every oracle that can see it, and sound nets agree."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from parity_cases import FAULTS, Model, golden_model, plant
from test_golden_nets import made_input, made_weights

from caffe_weights.export import write_weights
from caffe_weights.prototxt import format_net, read_net
from reproduce.net import Net
from reproduce.parity.case import Request
from reproduce.parity.check import check
from reproduce.parity.report import Report
from reproduce.tolerances import FULL
from surgery.deploy import deploy_net

SIZE = (60, 74)  # where pool1 rounds up, and the crop still has room without that
LENET = Path(__file__).parents[2] / "shared" / "data" / "lenet_mnist"
CAFFE = os.environ.get("CAFFE_PYTHON", "")

needs_caffe = pytest.mark.skipif(not CAFFE, reason="CAFFE_PYTHON names no interpreter that can import caffe")
RUN_BY_US = ["float64", "self", "opencv", f"caffe:{CAFFE}"]


def oracles(*names: str) -> list[Any]:
    return [pytest.param(n, id=n.partition(":")[0], marks=needs_caffe if "caffe" in n else ()) for n in names]


@pytest.fixture
def model(own_goldens: Path, tmp_path: Path) -> Model:
    return golden_model(own_goldens, tmp_path)


def held(model: Model, against: str, other: Model | None = None, **options: Any) -> Report:
    """The report on a model, the other side with files of its own if given."""
    request = Request(model.net, model.weights, *((other.net, other.weights) if other else ()), **options)
    return check(request, against)


@pytest.mark.parametrize("against", oracles(*RUN_BY_US))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_at_its_layer(fault: str, against: str, model: Model, tmp_path: Path) -> None:
    faulty = plant(model, FAULTS[fault], tmp_path)
    sides = (model, faulty)
    if against == "opencv" and fault == "floor pooling":  # its importer knows no round_mode
        sides = (faulty, model)
    report = held(sides[0], against, sides[1], size=SIZE)
    assert not report.passed
    assert report.guilty is not None
    assert report.guilty.suspects == (FAULTS[fault].guilty,)
    assert report.also == []
    before = report.rows[: report.rows.index(report.guilty.row)]
    assert {row.state for row in before} <= {"agree", "rounding", "absent"}


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "floor pooling"])
def test_a_fault_of_ours_is_found_by_caffes_stored_probes(
    fault: str, own_goldens: Path, model: Model, tmp_path: Path
) -> None:
    """The probes know only what in-place layers left: a convolution comes with its ReLU."""
    report = held(plant(model, FAULTS[fault], tmp_path), f"blobs:{own_goldens}/nets/fcn-alexnet.npz")
    assert not report.passed
    assert report.guilty is not None
    guilty = FAULTS[fault].guilty
    rectified = (guilty, guilty.replace("conv", "relu"))
    assert report.guilty.suspects == (rectified if guilty.startswith("conv") else (guilty,))


@pytest.mark.parametrize("extension", ["npz", "h5"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_ours_is_found_by_stored_blobs(
    fault: str, extension: str, model: Model, tmp_path: Path
) -> None:
    data = np.random.default_rng(3).normal(0, 60, (1, 3, *SIZE)).astype(np.float32)
    net = Net.from_prototxt(model.net, weights=model.weights)
    with torch.no_grad():
        blobs = {f"blob/{name}": t.numpy() for name, t in net(data=data, keep=net.blobs).items()}
    path = tmp_path / f"blobs.{extension}"
    if extension == "npz":
        np.savez(path, **blobs, **{"in/data": data})  # type: ignore[arg-type]
    else:
        with h5py.File(path, "w") as file:
            for name, value in {**blobs, "in/data": data}.items():
                file[name] = value
    assert held(model, f"blobs:{path}").passed
    report = held(plant(model, FAULTS[fault], tmp_path), f"blobs:{path}")
    assert report.guilty is not None
    assert report.guilty.suspects[0] == FAULTS[fault].guilty
    assert len(report.guilty.suspects) <= 2


def test_two_faults_are_both_found(model: Model, tmp_path: Path) -> None:
    faulty = plant(plant(model, FAULTS["channel order"], tmp_path), FAULTS["crop offset"], tmp_path)
    report = held(model, "float64", faulty, size=SIZE)
    assert report.guilty is not None
    assert report.guilty.suspects == ("conv1",)
    assert [finding.suspects for finding in report.also] == [("score",)]


@pytest.mark.goldens("nets/*.caffemodel.gz")
def test_golden_net_agrees_with_stored_blobs(golden: Path) -> None:
    """Probes of all blobs, outputs and gradients as BVLC Caffe 1.0 computed them."""
    stem = str(golden).removesuffix(".caffemodel.gz")
    report = held(Model(f"{stem}.prototxt", str(golden)), f"blobs:{stem}.npz", backward=True)
    assert report.passed
    keys = np.load(f"{stem}.npz").files
    stored = {key[6:-4] for key in keys if key.startswith("probe/") and key.endswith("/idx")}
    seen = {row.key[1] for row in report.rows if row.state in ("agree", "rounding")}
    assert seen == stored
    assert sum(row.state == "agree" for row in report.gradients) > 10


@pytest.mark.parametrize("against", oracles("opencv", f"caffe:{CAFFE}", "float64"))
@pytest.mark.goldens("nets/*.caffemodel.gz")
def test_golden_net_agrees_live(golden: Path, against: str) -> None:
    """Every content of every blob, those that in-place layers replace included; gradients too."""
    net = str(golden).replace(".caffemodel.gz", ".prototxt")
    report = held(Model(net, str(golden)), against, backward=against != "opencv")
    assert report.passed
    expected = {"absent"} if against == "opencv" else {"agree"}
    assert {row.state for row in report.rows if row.type == "Input"} == expected
    assert all(row.their_shape is not None for row in report.rows if row.type != "Input")
    if against != "opencv":
        assert sum(row.their_shape is not None for row in report.gradients) > len(report.rows) / 2


@pytest.mark.skipif(not LENET.exists(), reason="no LeNet beside the repository (../shared/data)")
@pytest.mark.parametrize("against", oracles("opencv", f"caffe:{CAFFE}", "float64"))
def test_real_lenet(against: str) -> None:
    model = Model(str(LENET / "lenet.prototxt"), str(LENET / "lenet_iter_10000.caffemodel"))
    report = held(model, against, picture=(None, 1 / 256, None), backward=against != "opencv")
    assert report.passed
    assert [row.words for row in report.rows if row.output] == ["prob"]
    assert max(row.difference.relative for row in report.rows if row.difference) < 1e-5


@pytest.mark.slow
@pytest.mark.goldens("nets/*-full.npz")
def test_golden_net_full_width(golden: Path, tmp_path: Path) -> None:
    stored = np.load(golden)
    meta = json.loads(str(stored["meta"]))
    definition = deploy_net(read_net(golden.with_suffix(".prototxt")))
    write_weights(made_weights(golden, stored, meta), tmp_path / "full.caffemodel", net=definition)
    np.save(tmp_path / "data.npy", made_input(meta))
    (tmp_path / "net.prototxt").write_text(format_net(definition))
    request = Request(str(tmp_path / "net.prototxt"), str(tmp_path / "full.caffemodel"),
                      inputs=[str(tmp_path / "data.npy")])  # fmt: skip
    report = check(request, f"blobs:{golden}", judge=False)
    assert report.passed
    assert report.tolerance == FULL
    assert sum(row.state == "agree" for row in report.rows) >= 30
