"""The five formats: round trips to the bit, what other libraries read, and every way a file can be bad."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import FileError, FormatError, InputError, WeightsError
from caffe_weights.export import EXTENSIONS, format_of, read_weights, sniff, with_shared, write_weights
from caffe_weights.hdf5 import read_hdf5
from caffe_weights.safetensors_file import widen_bfloat16
from caffe_weights.weights import Weights, blob_key, split_key

FORMATS = ("safetensors", "pt", "npz", "caffemodel.h5", "caffemodel")
RNG = np.random.default_rng(0)


def sample(names: tuple[str, ...] = ("zeta", "ip.1", "alpha")) -> Weights:
    """Layers out of alphabetical order, a dotted name, three blobs, a 0-d blob, doubles, NaN and -0."""
    odd = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    blobs: dict[str, list[Any]] = {
        names[0]: [RNG.standard_normal((4, 3, 2, 2)).astype(np.float32), odd],
        names[1]: [np.float32(2).reshape(()), RNG.standard_normal(5), np.ones(1, np.float32)],
        names[2]: [RNG.standard_normal((2, 7)).astype(np.float32)],
    }
    net = NetParameter(layer=[{"name": name, "type": "Any"} for name in names])
    return Weights(blobs, net=net)


def check_same(got: Weights, want: Weights) -> None:
    assert list(got) == list(want)
    for name in want:
        for a, b in zip(got[name], want[name], strict=True):
            assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes()), name


def save_npz(path: Path, tensors: dict[str, Any], save: Any = np.savez) -> None:
    save(path, **tensors)


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("through", FORMATS)
def test_any_format_to_any_other_and_back(tmp_path: Path, extension: str, through: str) -> None:
    weights = sample()
    write_weights(weights, tmp_path / f"a.{extension}")
    write_weights(read_weights(tmp_path / f"a.{extension}"), tmp_path / f"b.{through}", net=weights.net)
    check_same(read_weights(tmp_path / f"b.{through}"), weights)


@pytest.mark.parametrize("extension", ["safetensors", "pt", "npz", "caffemodel"])
def test_names_with_slashes_are_kept(tmp_path: Path, extension: str) -> None:
    weights = sample(("inception_3a/1x1", "inception_3a/1x1/bn", "x"))
    write_weights(weights, tmp_path / f"a.{extension}")
    check_same(read_weights(tmp_path / f"a.{extension}"), weights)


def test_hdf5_refuses_a_slash_as_caffe_does(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"/a.h5: layer 'a/b': a name that HDF5 .*BVLC/caffe#4267"):
        write_weights(sample(("a/b", "c", "d")), tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extension", ["npz", "h5"])
def test_a_name_that_the_format_would_cut_is_refused(tmp_path: Path, extension: str) -> None:
    with pytest.raises(WeightsError, match="a name with a zero byte"):
        write_weights(sample(("a\0b", "c", "d")), tmp_path / f"a.{extension}")
    assert list(tmp_path.iterdir()) == []


def test_other_libraries_read_the_same(tmp_path: Path) -> None:
    weights = sample()
    flat = {blob_key(n, i): a for n, arrays in weights.items() for i, a in enumerate(arrays)}
    for extension in FORMATS:
        write_weights(weights, tmp_path / f"a.{extension}")
    theirs = {
        "safetensors": safetensors.numpy.load_file(tmp_path / "a.safetensors"),
        "npz": dict(np.load(tmp_path / "a.npz")),
        "pt": {k: v.numpy() for k, v in torch.load(tmp_path / "a.pt", weights_only=True).items()},
    }
    for tensors in theirs.values():
        assert set(tensors) == set(flat)
        for key, array in flat.items():
            assert (tensors[key].shape, tensors[key].tobytes()) == (array.shape, array.tobytes())
    assert list(theirs["pt"]) == list(theirs["npz"]) == list(flat)
    with h5py.File(tmp_path / "a.caffemodel.h5") as file:
        assert file["data/ip.1/1"][()].tobytes() == weights["ip.1"][1].tobytes()


def test_the_safetensors_header_is_the_specifications(tmp_path: Path) -> None:
    blobs: dict[str, list[Any]] = {"b": [np.array([1, 2], np.float32)], "a": [np.zeros((1, 1))]}
    write_weights(Weights(blobs), tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    assert length % 8 == 0
    assert json.loads(data[8 : 8 + length]) == {
        "__metadata__": {"format": "pt"},
        "b.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "a.weight": {"dtype": "F64", "shape": [1, 1], "data_offsets": [8, 16]},
    }
    assert data[8 + length :] == struct.pack("<2fd", 1, 2, 0)


@pytest.mark.parametrize(
    ("layer", "index", "key"),
    [
        ("conv1", 0, "conv1.weight"),
        ("ip.1", 1, "ip.1.bias"),
        ("bn", 2, "bn.blob2"),
        ("a.weight", 12, "a.weight.blob12"),
    ],
)
def test_keys(layer: str, index: int, key: str) -> None:
    assert blob_key(layer, index) == key
    assert split_key(key) == (layer, index)


@pytest.mark.parametrize(
    "key", ["conv1", "conv1.running_mean", "weight", "a.blob1", "a.blob02", "a.blob99999"]
)
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(WeightsError, match="<layer>.weight"):
        split_key(key)


def test_a_missing_blob_in_between_is_named(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", {"c.weight": np.zeros(1, np.float32), "c.blob2": np.zeros(1, np.float32)})
    with pytest.raises(WeightsError, match="no c.bias"):
        read_weights(tmp_path / "a.npz")


def test_half_precision_is_widened_exactly(tmp_path: Path) -> None:
    halves = {"a.weight": np.array([0.1, 65504], np.float16)}
    save_npz(tmp_path / "a.npz", halves)
    safetensors.numpy.save_file(halves, tmp_path / "a.safetensors")
    torch.save({"a.weight": torch.from_numpy(halves["a.weight"])}, tmp_path / "a.pt")
    for extension in ("npz", "safetensors", "pt"):
        write_weights(read_weights(tmp_path / f"a.{extension}"), tmp_path / f"b.{extension}")
        got = read_weights(tmp_path / f"b.{extension}")["a"][0]
        assert got.dtype == np.float32
        assert np.array_equal(got, halves["a.weight"].astype(np.float32))


def test_bfloat16_is_widened_as_torch_does(tmp_path: Path) -> None:
    tensor = torch.tensor([1.5, -2.25, 3e38, 1e-40]).to(torch.bfloat16)
    bits = tensor.view(torch.uint16).numpy()
    assert np.array_equal(widen_bfloat16(bits), tensor.float().numpy())


def test_big_endian_and_fortran_order_are_brought_into_order(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    save_npz(tmp_path / "a.npz", {"a.weight": array})
    write_weights(read_weights(tmp_path / "a.npz"), tmp_path / "b.safetensors")
    assert safetensors.numpy.load_file(tmp_path / "b.safetensors")["a.weight"].tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ]


def test_values_of_another_byte_order_are_read_in_this_machines(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", {"a.weight": np.arange(3, dtype=">f4"), "a.bias": np.ones(2, ">f8")})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data/a/0"], file["data/a/1"] = np.arange(3, dtype=">f4"), np.ones(2, ">f8")
    for name in ("a.npz", "a.h5"):
        first, second = read_weights(tmp_path / name)["a"]
        assert (first.dtype.str, first.tolist()) == ("<f4", [0, 1, 2])
        assert (second.dtype.str, second.tolist()) == ("<f8", [1, 1])


def test_compressed_npz_is_read(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.float32)
    save_npz(tmp_path / "a.npz", {"a.weight": values}, np.savez_compressed)
    assert np.array_equal(read_weights(tmp_path / "a.npz")["a"][0], values)


def test_a_checkpoint_around_a_state_dict_is_looked_into(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"a.weight": torch.ones(2)}}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth")["a"][0].tolist() == [1, 1]


def test_an_old_torch_pickle_is_read(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "a.pth")["a"][0].tolist() == [1, 1]


def test_shared_blobs_come_back_through_hdf5(own_goldens: Path) -> None:
    stored = read_weights(own_goldens / "formats/shared.caffemodel.h5")
    whole = read_weights(own_goldens / "formats/shared.caffemodel")
    net = NetParameter()
    net.CopyFrom(whole.net)  # type: ignore[arg-type]
    permissive = [entry for entry in net.layer if any(spec.share_mode for spec in entry.param)]
    with pytest.raises(WeightsError, match="PERMISSIVE"):
        with_shared(stored, net)
    for entry in permissive:
        net.layer.remove(entry)
    filled = with_shared(stored, net)
    for name in filled:
        for a, b in zip(filled[name], whole[name], strict=True):
            assert a.tobytes() == b.tobytes()
    assert set(filled) == set(whole) - {entry.name for entry in permissive}


def test_a_shared_blob_without_its_owner_is_named(tmp_path: Path, own_goldens: Path) -> None:
    stored = read_weights(own_goldens / "formats/shared.caffemodel.h5")
    net = NetParameter(layer=[{"name": name, "type": "Any"} for name in stored])
    with pytest.raises(WeightsError, match="'c2': a shared blob that its owner keeps"):
        write_weights(stored, tmp_path / "a.caffemodel", net=net)


def test_layer_types_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="--net"):
        write_weights(Weights({"a": [np.zeros(1, np.float32)]}), tmp_path / "a.caffemodel")


def test_a_layer_the_net_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no layer 'zeta', 'ip.1', 'alpha'"):
        write_weights(sample(), tmp_path / "a.caffemodel", net=NetParameter(layer=[{"name": "other"}]))


def test_integers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="values of int64"):
        write_weights(Weights({"a": [np.zeros(1, np.int64)]}), tmp_path / "a.npz")


@pytest.mark.parametrize("array", [np.zeros(2, np.int64), np.array(["a"]), np.zeros(2, np.longdouble)])
def test_an_npz_of_other_values_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    save_npz(tmp_path / "a.npz", {"a.weight": array})
    with pytest.raises(WeightsError, match=r"a.npz: tensor 'a.weight': values of .*; wanted float32"):
        read_weights(tmp_path / "a.npz")


@pytest.mark.parametrize("extension", ["safetensors", "npz", "pt"])
def test_a_key_that_says_no_blob_is_named_with_its_file(tmp_path: Path, extension: str) -> None:
    values, path = np.zeros(1, np.float32), tmp_path / f"a.{extension}"
    if extension == "pt":
        torch.save({"foo": torch.from_numpy(values)}, path)
    elif extension == "npz":
        np.savez(path, foo=values)
    else:
        safetensors.numpy.save_file({"foo": values}, path)
    with pytest.raises(WeightsError, match=rf"a.{extension}: tensor 'foo': a name that says no blob"):
        read_weights(path)


def test_the_extension_says_the_format() -> None:
    assert format_of("x.caffemodel.h5") == "hdf5"
    assert format_of("x.CAFFEMODEL") == "caffemodel"
    with pytest.raises(FormatError, match=r"wanted \.caffemodel, "):
        format_of("x.onnx")


@pytest.mark.parametrize("found", FORMATS)
@pytest.mark.parametrize("name", sorted(set(EXTENSIONS) - {".caffemodel.gz"}))
def test_a_file_under_another_formats_name_is_refused(tmp_path: Path, found: str, name: str) -> None:
    write_weights(sample(), tmp_path / f"a.{found}")
    path = tmp_path / f"wrong{name}"
    os.replace(tmp_path / f"a.{found}", path)
    if EXTENSIONS[name] == EXTENSIONS[f".{found}"]:
        assert len(read_weights(path)) == 3
        return
    with pytest.raises(FormatError) as error:
        read_weights(path)
    if found != "caffemodel":  # which has no magic
        assert sniff(path) == EXTENSIONS[f".{found}"]
        assert "rename it to end in" in str(error.value)


class Payload:
    """Would write a file when unpickled carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("new", [True, False])
def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, new: bool) -> None:
    torch.save({"a.weight": Payload(tmp_path / "ran")}, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(FormatError, match="more than tensors"):
        read_weights(tmp_path / "a.pt")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(FormatError):
        read_weights(tmp_path / "b.pth")
    assert not (tmp_path / "ran").exists()


def test_pickled_arrays_in_an_npz_are_refused(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", {"a.weight": np.array([Payload(tmp_path / "ran")], object)})
    with pytest.raises(FormatError, match="pickled"):
        read_weights(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(1).expand(2**40)}, tmp_path / "a.pt")
    with pytest.raises(FormatError, match="over fewer stored values"):
        read_weights(tmp_path / "a.pt")


def test_tensors_without_plain_values(tmp_path: Path) -> None:
    values = torch.arange(3.0)
    torch.save({"a.weight": torch._neg_view(values)}, tmp_path / "a.pt")
    assert read_weights(tmp_path / "a.pt")["a"][0].tolist() == [0, -1, -2]
    torch.save({"a.weight": values.to("meta")}, tmp_path / "a.pt")
    with pytest.raises(FormatError, match=r"a.pt: 'a.weight': a Tensor of torch.float32 without values"):
        read_weights(tmp_path / "a.pt")


def test_a_zip_that_would_fill_the_disk_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save_npz(path, {"a.weight": np.zeros(1000, np.float32)}, np.savez_compressed)
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02") + 24  # the size in the central directory, which zipfile goes by
    path.write_bytes(data[:at] + struct.pack("<I", 0xF0000000) + data[at + 4 :])
    with pytest.raises(FormatError, match=r"a.npz: 4026531840 bytes packed in a file of \d+"):
        read_weights(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    save_npz(tmp_path / "b.npz", {"a.weight": np.zeros(2, np.float32)})
    with zipfile.ZipFile(tmp_path / "b.npz", "a") as archive:
        archive.writestr("a.weight.npy", archive.read("a.weight.npy"))
    with pytest.raises(FormatError, match=r"two members 'a.weight.npy'; wanted each name once"):
        read_weights(tmp_path / "b.npz")


def test_an_npy_header_is_checked_before_anything_is_allocated(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(
            "a.weight.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)
        )
    with pytest.raises(FormatError, match=r"shape \(1099511627776,\) with 8 bytes"):
        read_weights(tmp_path / "a.npz")


def test_an_hdf5_shape_without_data_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data/a/0", (2**40,), np.float32, chunks=(2**10,), compression="gzip")
    with pytest.raises(FormatError, match="h5repack"):
        read_weights(tmp_path / "a.h5")


def test_hdf5_links_out_of_the_file_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x/0"] = np.zeros(3, np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("data")["a"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(FormatError, match="a link to elsewhere"):
        read_weights(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("data/a/0", (3,), np.float32, external=[(str(tmp_path / "raw"), 0, 12)])
    (tmp_path / "raw").write_bytes(bytes(12))
    with pytest.raises(FormatError, match="kept in another file"):
        read_weights(tmp_path / "b.h5")


def test_hdf5_without_caffes_layout_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["model_weights/a"] = np.zeros(3, np.float32)
    with pytest.raises(FormatError, match="no group /data"):
        read_weights(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data/a/kernel"] = np.zeros(3, np.float32)
    with pytest.raises(FormatError, match="blobs named kernel"):
        read_weights(tmp_path / "b.h5")


def test_nested_hdf5_groups_are_layer_names_with_slashes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data/x/0"] = np.ones(1, np.float32)
        file["data/x/bn/0"] = np.full(1, 2, np.float32)
    assert {name: blobs[0].tolist() for name, blobs in read_hdf5(tmp_path / "a.h5").items()} == {
        "x": [1],
        "x/bn": [2],
    }


@pytest.mark.parametrize("extension", ["safetensors", "npz", "pt", "h5"])
def test_truncated_files_are_refused_in_one_line(tmp_path: Path, extension: str) -> None:
    blobs: dict[str, list[Any]] = {"a": [np.arange(50, dtype=np.float32)], "b": [np.ones((3, 3), np.float32)]}
    weights = Weights(blobs)
    write_weights(weights, tmp_path / f"whole.{extension}")
    whole = (tmp_path / f"whole.{extension}").read_bytes()
    path = tmp_path / f"cut.{extension}"
    for size in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError) as error:
            read_weights(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("extension", ["safetensors", "npz", "pt", "h5"])
def test_damaged_files_are_refused_or_read(tmp_path: Path, extension: str) -> None:
    rng = np.random.default_rng(1)
    write_weights(Weights({"a": [np.arange(20, dtype=np.float32)]}), tmp_path / f"whole.{extension}")
    whole = (tmp_path / f"whole.{extension}").read_bytes()
    path = tmp_path / f"bad.{extension}"
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for position in rng.integers(0, len(data), 4):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        refused += _refused(path, len(whole))
    assert refused


def _refused(path: Path, size_bytes: int) -> bool:
    try:
        weights = read_weights(path)
    except InputError:
        return True
    assert weights.nbytes <= size_bytes
    return False


def test_a_deflated_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", {"a.weight": np.zeros(100000, np.float32)}, np.savez_compressed)
    data = (tmp_path / "a.npz").read_bytes()
    packed = zlib.compress(bytes(400))  # something else under the old directory entry
    (tmp_path / "b.npz").write_bytes(data[:60] + packed + data[60 + len(packed) :])
    with pytest.raises(FormatError):
        read_weights(tmp_path / "b.npz")


def vgg16_checkpoint(width: int = 4) -> dict[str, torch.Tensor]:
    convolutions = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    shapes: dict[str, tuple[int, ...]] = {
        f"features.{i}": (width, 3 if i == 0 else width, 3, 3) for i in convolutions
    }
    shapes |= {"classifier.0": (8, width * 49), "classifier.3": (8, 8), "classifier.6": (5, 8)}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer, shape in shapes.items():
        state[f"{layer}.weight"] = torch.randn(shape, generator=generator)
        state[f"{layer}.bias"] = torch.randn(shape[0], generator=generator)
    return state


def test_a_torchvision_vgg16_is_read_as_caffes(tmp_path: Path) -> None:
    state = vgg16_checkpoint()
    torch.save(state, tmp_path / "vgg16.pth")
    weights = read_weights(tmp_path / "vgg16.pth")
    assert list(weights)[:3] == ["conv1_1", "conv1_2", "conv2_1"]
    assert list(weights)[-3:] == ["fc6", "fc7", "fc8"]
    assert np.array_equal(weights["fc6"][0], state["classifier.0.weight"].numpy())
    image = torch.rand(
        1, 3, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )  # RGB in 0..1
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)[
        ..., None, None
    ]
    conv = state["features.0.weight"].double(), state["features.0.bias"].double()
    theirs = torch.conv2d((image - mean) / std, *conv, padding=1)
    pixels = 255 * image.flip(1) - torch.tensor([103.53, 116.28, 123.675], dtype=torch.float64)[:, None, None]
    weight, bias = (torch.tensor(blob).double() for blob in weights["conv1_1"])
    ours = torch.conv2d(pixels, weight, bias, padding=1)
    assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max()
    assert "103.53" in weights.notes[0]
    assert "e-08" in weights.notes[0]  # half a unit in the last place is at most 6e-8


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no folder"):
        write_weights(sample(), tmp_path / "no" / "a.npz")
    (tmp_path / "dir.npz").mkdir()
    with pytest.raises(FileError, match="folder"):
        write_weights(sample(), tmp_path / "dir.npz", force=True)
    with pytest.raises(FileError, match="compress it afterwards"):
        write_weights(sample(), tmp_path / "a.caffemodel.gz")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("caffe_weights.safetensors_file.write_array", full)
    with pytest.raises(FileError, match="no space left"):
        write_weights(sample(), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("limit_bytes", [1 << 9, 1 << 15, 1 << 18])
def test_a_file_that_grows_over_the_limit(tmp_path: Path, extension: str, limit_bytes: int) -> None:
    names = [f"layer{i}" for i in range(20)]
    weights = Weights(
        {name: [np.ones((50, 100), np.float32)] for name in names},
        net=NetParameter(layer=[{"name": name, "type": "Any"} for name in names]),
    )
    path, old = tmp_path / f"a.{extension}", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, old[1]))
    try:
        with pytest.raises(FileError) as caught:
            write_weights(weights, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert str(caught.value) == f"{path}: the file grows over the limit of the system or the shell"
    assert list(tmp_path.iterdir()) == []
