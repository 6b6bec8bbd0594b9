"""What `fcn inspect` finds, against files whose content is known because the test wrote them by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from caffe_nets import colours_net, dense_net, save_net
from google.protobuf import text_format

from caffe_weights.caffe_pb2 import BlobProto, LayerParameter, NetParameter, V1LayerParameter
from caffe_weights.errors import InputError
from caffe_weights.export import read_weights, write_weights
from caffe_weights.weights import Weights
from reproduce import inspection
from reproduce.inspection import inspect_file, net_notes, scan, unknown_types


def _layers(text: str) -> list:
    return list(text_format.Parse(text, NetParameter()).layer)


def test_prototxt_with_shapes_and_parameters(tmp_path: Path) -> None:
    path, _ = save_net(tmp_path, dense_net())
    found = inspect_file(str(path))
    assert (found.kind, found.format, found.net_name) == ("net", "net prototxt V2", "dense")
    assert [(r.name, r.type, r.shapes, r.parameters) for r in found.layers] == [
        ("data", "Input", [(1, 1, 2, 2)], []),
        ("ip", "InnerProduct", [(1, 2)], [(2, 4), (2,)]),
    ]
    assert found.parameter_count == 10
    assert found.parameter_bytes == 40
    assert found.problems == []
    assert found.notes == [
        "fully connected (ip): takes one input size only; convert-weights --convolutional lifts that"
    ]


def test_caffemodel_lists_all_layers(tmp_path: Path) -> None:
    _, path = save_net(tmp_path, dense_net())
    found = inspect_file(str(path))
    assert (found.kind, found.format, found.bytes) == ("weights", "caffemodel V2", path.stat().st_size)
    assert [(r.name, r.type, r.parameters, r.dtypes) for r in found.layers] == [
        ("data", "Input", [], []),
        ("ip", "InnerProduct", [(2, 4), (2,)], ["float32", "float32"]),
    ]


def test_v1_caffemodel(tmp_path: Path) -> None:
    net = NetParameter(name="old")
    layer = net.layers.add(name="ip", type=V1LayerParameter.INNER_PRODUCT)
    layer.blobs.append(BlobProto(num=1, channels=1, height=1, width=2, data=[1, 2]))
    (tmp_path / "x.caffemodel").write_bytes(net.SerializeToString())
    found = inspect_file(str(tmp_path / "x.caffemodel"))
    assert found.format == "caffemodel V1"
    assert [(r.name, r.type, r.parameters) for r in found.layers] == [("ip", "InnerProduct", [(1, 2)])]


@pytest.mark.parametrize(
    ("extension", "name"),
    [(".caffemodel.h5", "HDF5"), (".safetensors", "safetensors"), (".npz", "npz"), (".pt", "torch zip")],
)
def test_other_formats(tmp_path: Path, extension: str, name: str) -> None:
    path = str(tmp_path / f"x{extension}")
    write_weights(Weights({"a": [np.ones((2, 3), np.float32)], "b": [np.ones(4, np.float64)]}), path)
    found = inspect_file(path)
    assert found.format == name
    assert [(r.name, r.parameters, r.dtypes) for r in found.layers] == [
        ("a", [(2, 3)], ["float32"]), ("b", [(4,)], ["float64"])]  # fmt: skip
    assert (found.parameter_count, found.parameter_bytes) == (10, 56)


def test_hdf5_under_the_wrong_name_is_listed_and_said(tmp_path: Path) -> None:
    write_weights(Weights({"a": [np.ones(2, np.float32)]}), tmp_path / "x.h5")
    (tmp_path / "x.h5").rename(tmp_path / "x.caffemodel")
    found = inspect_file(str(tmp_path / "x.caffemodel"))
    assert found.format == "HDF5"
    assert found.parameter_count == 2
    assert "wrong name; rename it to end in .caffemodel.h5" in found.notes[0]


def test_mean_file(tmp_path: Path) -> None:
    blob = BlobProto(num=1, channels=2, height=1, width=2, data=[1, 3, 10, 20])
    (tmp_path / "m.binaryproto").write_bytes(blob.SerializeToString())
    found = inspect_file(str(tmp_path / "m.binaryproto"))
    assert found.kind == "mean"
    assert found.layers[0].shapes == [(2, 1, 2)]
    assert found.notes == ["channel means 2.0000, 15.0000"]


def test_solver_prototxt(tmp_path: Path) -> None:
    (tmp_path / "solver.prototxt").write_text('net: "x.prototxt" base_lr: 0.01')
    found = inspect_file(str(tmp_path / "solver.prototxt"))
    assert found.kind == "solver"
    assert "net: x.prototxt" in found.notes


def test_unknown_layer_types_are_listed(tmp_path: Path) -> None:
    text = """layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 } } }
              layer { name: "x" type: "Mystery" bottom: "data" top: "x" }"""
    (tmp_path / "x.prototxt").write_text(text)
    found = inspect_file(str(tmp_path / "x.prototxt"))
    assert found.unknown_types == ["Mystery"]
    assert found.parameter_count is None
    assert "no shapes: the net has layers of unknown type" in found.notes


def test_unknown_means_what_the_runtime_has_not() -> None:
    from reproduce.layers import LAYERS
    from surgery.shapes import SOURCES, known_types

    for kind in sorted(known_types()):
        unknown = unknown_types([LayerParameter(name="x", type=kind, bottom=["a"])])
        assert unknown == ([] if kind in LAYERS or (kind in SOURCES and kind != "Python") else [kind])
    assert unknown_types([LayerParameter(type="Python", top=["data"])]) == []


def test_train_net_says_that_sizes_are_missing(tmp_path: Path) -> None:
    (tmp_path / "x.prototxt").write_text('layer { name: "d" type: "Data" top: "data" }')
    assert (
        "no shapes: the net does not say how large data is"
        in inspect_file(str(tmp_path / "x.prototxt")).notes
    )


def test_a_net_that_cannot_be_built_is_a_problem(tmp_path: Path) -> None:
    text = """layer { name: "data" type: "Input" top: "data"
                      input_param { shape { dim: 1 dim: 1 dim: 2 dim: 2 } } }
              layer { name: "c" type: "Convolution" bottom: "data" top: "c"
                      convolution_param { num_output: 1 kernel_size: 3 } }"""
    (tmp_path / "x.prototxt").write_text(text)
    found = inspect_file(str(tmp_path / "x.prototxt"))
    assert len(found.problems) == 1
    assert found.problems[0].startswith("layer c")


def test_contradicting_rules_are_a_problem(tmp_path: Path) -> None:
    text = 'layer { name: "x" type: "ReLU" include { phase: TEST } exclude { phase: TRAIN } }'
    (tmp_path / "x.prototxt").write_text(text)
    found = inspect_file(str(tmp_path / "x.prototxt"))
    assert [row.name for row in found.layers] == ["x"]
    assert "include and exclude" in found.problems[0]


def test_layers_of_another_phase_are_counted(tmp_path: Path) -> None:
    text = """layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 } } }
              layer { name: "x" type: "ReLU" bottom: "data" top: "x" include { phase: TRAIN } }"""
    (tmp_path / "x.prototxt").write_text(text)
    found = inspect_file(str(tmp_path / "x.prototxt"))
    assert [row.name for row in found.layers] == ["data"]
    assert found.notes == ["1 of 2 layers are not for phase TEST and not listed"]


def test_crop_without_crop_param_is_explained() -> None:
    bare = _layers('layer { name: "c" type: "Crop" bottom: "a" bottom: "b" top: "c" }')
    assert "BVLC Caffe takes offset 0" in net_notes(bare)[0]
    assert "--crop auto" in net_notes(bare)[0]
    assert net_notes(_layers('layer { name: "c" type: "Crop" crop_param { axis: 2 } }')) == []


def test_pooling_that_skips_pixels_is_said() -> None:
    skipping = 'layer { name: "p" type: "Pooling" pooling_param { kernel_size: 2 stride: 3 } }'
    assert "never seen" in net_notes(_layers(skipping))[0]
    assert net_notes(_layers(skipping.replace("stride: 3", "stride: 2"))) == []


def test_python_layers_are_never_run() -> None:
    text = 'layer { name: "p" type: "Python" python_param { module: "os" layer: "system" } }'
    assert "os.system" in net_notes(_layers(text))[0]


def test_scan_counts_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "CHUNK_VALUES", 4)
    bad = np.ones(10, np.float32)
    bad[[0, 5, 9]] = np.nan, np.inf, -np.inf
    zero = np.zeros((2, 1, 2, 2), np.float32)
    blobs: dict[str, list[np.ndarray]] = {
        "a": [np.ones((2, 5), np.float32), bad],
        "up": [zero],
        "conv": [zero],
        "ip": [np.zeros((3, 3))],
    }
    types = {"up": "Deconvolution", "conv": "Convolution", "ip": "InnerProduct", "a": "InnerProduct"}
    assert scan(blobs, types) == [
        "layer 'a', blob 1 of shape 10: 1 NaN",
        "layer 'a', blob 1 of shape 10: 2 infinite",
        "layer 'up', blob 0 of shape 2x1x2x2: all up-sampling weights are zero",
        "layer 'conv', blob 0 of shape 2x1x2x2: all convolution weights are zero",
    ]


def test_scan_without_types_goes_by_shape() -> None:
    zero = np.zeros((1, 1, 2, 2), np.float32)
    assert scan({"x": [zero, zero]}, {}) == [
        "layer 'x', blob 0 of shape 1x1x2x2: all convolution weights are zero"
    ]
    zero[0, 0, 1, 1] = -1e-30
    assert scan({"x": [zero]}, {}) == []


def test_check_reads_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = save_net(tmp_path, colours_net())
    monkeypatch.setattr(inspection, "_scan_blob", lambda array: pytest.fail("values were read"))
    assert inspect_file(str(path)).checked is False


def test_neither_listing_nor_checking_imports_torch(tmp_path: Path) -> None:
    net, model = save_net(tmp_path, colours_net())
    code = (
        "import sys; from reproduce.inspection import inspect_file as i\n"
        f"i({str(net)!r}); i({str(model)!r}, True)\n"
        "print([m for m in ('torch', 'scipy', 'matplotlib', 'rich', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.prototxt", b"layer { nme: 1 }", "nme"),
        ("x.prototxt", b"\xff\xfe", "x"),
        ("x.caffemodel", b"", "x"),
        ("x.caffemodel", b"\xff" * 50, "x"),
        ("x.safetensors", b"\xff" * 50, "x"),
        ("x.npz", b"PK\x03\x04", "x"),
        ("x.h5", b"\x89HDF\r\n\x1a\n", "x"),
        ("x.caffemodel", b"\x89HDF\r\n\x1a\n", "x"),
        ("x.binaryproto", b"\xff" * 50, "x"),
        ("x.unknown", b"\x01\x02", "extension"),
        ("none", None, "no such file"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, data: bytes | None, words: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=words) as caught:
        inspect_file(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    """The helper's file holds what the tests above say it holds."""
    _, path = save_net(tmp_path, dense_net())
    assert read_weights(path)["ip"][0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
