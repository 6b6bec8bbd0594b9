"""Reading and writing caffemodels, against bytes made by hand and against the protobuf library."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from wire_bytes import blob, field, floats, layer, number, shape, varint

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.caffemodel import read_caffemodel
from caffe_weights.errors import FileError, FormatError, InputError, WeightsError
from caffe_weights.export import read_weights, write_weights
from caffe_weights.weights import Weights

SMALL = (
    field(1, b"small")
    + layer("data", "Input")
    + layer("ip", "InnerProduct", blob((2, 3), *range(6)), blob((2,), 7, 8))
)


def write(tmp_path: Path, data: bytes, name: str = "a.caffemodel") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def v1_layer(name: str, kind: int, *blobs: bytes) -> bytes:
    """A V1 layer: name (4), type (5), blobs (6)."""
    return field(2, field(4, name.encode()) + number(5, kind) + b"".join(field(6, b) for b in blobs))


def legacy(sizes: tuple[int, int, int, int], *values: float) -> bytes:
    """A BlobProto of 2013: num, channels, height, width (1 to 4), data (5)."""
    return b"".join(number(i + 1, size) for i, size in enumerate(sizes)) + field(5, floats(*values))


def test_names_shapes_and_values_are_read(tmp_path: Path) -> None:
    weights = read_weights(write(tmp_path, SMALL))
    assert list(weights) == ["ip"]
    assert [blob.tolist() for blob in weights["ip"]] == [[[0, 1, 2], [3, 4, 5]], [7, 8]]
    assert [blob.dtype for blob in weights["ip"]] == [np.float32, np.float32]
    assert weights.net is not None
    assert [(entry.name, entry.type) for entry in weights.net.layer] == [
        ("data", "Input"),
        ("ip", "InnerProduct"),
    ]


def test_blobs_are_read_only_views(tmp_path: Path) -> None:
    array = read_weights(write(tmp_path, SMALL))["ip"][0]
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_gzip_is_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path, gzip.compress(SMALL), "a.caffemodel.gz")
    assert read_weights(path)["ip"][1].tolist() == [7, 8]


def test_double_data_wins_over_data(tmp_path: Path) -> None:
    both = (
        field(5, floats(1, 2))
        + shape(2)
        + field(9, struct.pack("<d", 5))
        + field(8, struct.pack("<2d", 0.1, 0.2))
    )
    array = read_weights(write(tmp_path, layer("ip", "Bias", both)))["ip"][0]
    assert array.dtype == np.float64
    assert array.tolist() == [0.1, 0.2]


def test_a_blob_without_sizes_holds_one_value(tmp_path: Path) -> None:
    array = read_weights(write(tmp_path, layer("s", "Scale", field(5, floats(3)))))["s"][0]
    assert array.shape == ()
    assert array == 3


@pytest.mark.parametrize(
    ("kind", "sizes", "natural"),
    [
        (4, [(1, 1, 1, 2), (1, 1, 1, 2)], [(1, 1, 1, 2), (2,)]),  # CONVOLUTION of one output and input
        (14, [(1, 1, 2, 3), (1, 1, 1, 2)], [(2, 3), (2,)]),  # INNER_PRODUCT
        (39, [(2, 1, 1, 1)], [(2, 1, 1, 1)]),  # DECONVOLUTION
        (18, [(1, 1, 1, 2)], [(1, 1, 1, 2)]),  # RELU has no blobs, so nothing is known
        (14, [(2, 1, 1, 3)], [(2, 1, 1, 3)]),  # would lose an axis that is not 1
    ],
)
def test_legacy_blobs_take_the_rank_of_their_layer(
    tmp_path: Path, kind: int, sizes: list[tuple[int, int, int, int]], natural: list[tuple[int, ...]]
) -> None:
    blobs = [legacy(size, *range(int(np.prod(size)))) for size in sizes]
    weights = read_weights(write(tmp_path, v1_layer("a", kind, *blobs)))
    assert [array.shape for array in weights["a"]] == natural


def test_v0_layers_hold_their_blobs_one_level_down(tmp_path: Path) -> None:
    v0 = field(1, field(1, b"old") + field(2, b"innerproduct") + field(50, legacy((1, 1, 2, 1), 1, 2)))
    weights = read_weights(write(tmp_path, field(2, v0 + field(2, b"bottom"))))
    assert [array.tolist() for array in weights["old"]] == [[[1], [2]]]


IDENTICAL = {
    "plain": SMALL,
    "V1 with an unknown layer enum": v1_layer("x", 999, blob((1,), 1)) + v1_layer("y", 14, blob((1,), 2)),
    "unpacked floats": layer("u", "Bias", shape(3) + b"".join(b"\x2d" + floats(v) for v in (1, 2, 3))),
    "fields out of order": field(
        100, field(7, shape(1) + field(5, floats(4))) + field(2, b"Bias") + field(1, b"o")
    )
    + field(1, b"name last"),
    "unknown fields": field(999, b"?") + layer("a", "Bias", blob((1,), 1) + number(77, 5)) + number(888, 1),
    "lengths not in shortest form": b"\x0a\x84\x00abcd" + layer("a", "Bias", blob((1,), 1)),
    "with gradients": layer("a", "Bias", blob((1,), 1) + field(6, floats(9))),
}


@pytest.mark.parametrize("case", IDENTICAL)
def test_an_unchanged_model_is_written_byte_for_byte(tmp_path: Path, case: str) -> None:
    path = write(tmp_path, IDENTICAL[case])
    write_weights(read_weights(path), tmp_path / "b.caffemodel")
    assert (tmp_path / "b.caffemodel").read_bytes() == IDENTICAL[case]


def test_a_changed_layer_is_written_anew_and_the_others_are_kept(tmp_path: Path) -> None:
    odd = field(100, field(2, b"Bias") + field(1, b"odd") + field(7, blob((1,), 1)))
    weights = read_weights(write(tmp_path, odd + layer("ip", "InnerProduct", blob((1, 1), 1), blob((1,), 2))))
    weights["ip"][1] = np.array([5], np.float32)
    write_weights(weights, tmp_path / "b.caffemodel")
    wanted = odd + layer("ip", "InnerProduct", blob((1, 1), 1), blob((1,), 5))
    assert (tmp_path / "b.caffemodel").read_bytes() == wanted


def test_a_dropped_layer_loses_its_blobs(tmp_path: Path) -> None:
    weights = read_weights(write(tmp_path, SMALL + layer("b", "Bias", blob((1,), 1))))
    del weights["ip"]
    write_weights(weights, tmp_path / "b.caffemodel")
    assert list(read_weights(tmp_path / "b.caffemodel")) == ["b"]


def test_a_new_file_has_the_bytes_caffe_would_write(tmp_path: Path) -> None:
    net = NetParameter(name="small")
    net.layer.add(name="data", type="Input")
    net.layer.add(name="ip", type="InnerProduct", param=[{"lr_mult": 2.0}], phase="TEST")
    weights = Weights(
        {"ip": [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7, 8], np.float32)]}, net=net
    )
    write_weights(weights, tmp_path / "b.caffemodel")
    spec = field(6, b"\x1d" + floats(2))  # param { lr_mult: 2 }, before the blobs (7); phase (10) after
    inner = field(1, b"ip") + field(2, b"InnerProduct") + spec
    blobs = field(7, blob((2, 3), *range(6))) + field(7, blob((2,), 7, 8))
    wanted = field(1, b"small") + layer("data", "Input") + field(100, inner + blobs + number(10, 1))
    assert (tmp_path / "b.caffemodel").read_bytes() == wanted


def test_float64_is_written_as_double_data(tmp_path: Path) -> None:
    net = NetParameter(layer=[{"name": "a", "type": "Bias"}])
    write_weights(Weights({"a": [np.array([0.1, 0.2])]}, net=net), tmp_path / "b.caffemodel")
    read = NetParameter.FromString((tmp_path / "b.caffemodel").read_bytes())
    assert list(read.layer[0].blobs[0].double_data) == [0.1, 0.2]
    assert list(read.layer[0].blobs[0].shape.dim) == [2]


def test_a_v0_layer_is_written_anew_as_protobuf_reads_it(tmp_path: Path) -> None:
    v0 = field(1, field(1, b"old") + field(2, b"ip") + field(50, blob((1,), 1)) + field(51, floats(2)))
    weights = read_weights(write(tmp_path, field(2, v0 + field(2, b"bottom"))))
    weights["old"][0] = np.array([3, 4], np.float32)
    write_weights(weights, tmp_path / "b.caffemodel")
    read = NetParameter.FromString((tmp_path / "b.caffemodel").read_bytes()).layers[0]
    assert (list(read.layer.blobs[0].data), list(read.bottom)) == ([3, 4], ["bottom"])
    assert (read.layer.name, list(read.layer.blobs_lr)) == ("old", [2])


BAD = {
    "empty": (b"", "an empty file"),
    "cut inside a field": (SMALL[:-5], "cut off or damaged"),
    "no layers": (field(1, b"only a name"), "no layers"),
    "no parameters": (layer("data", "Input"), "no parameters"),
    "more values than the shape": (layer("a", "Bias", blob((2,), 1, 2, 3)), "shape 2 with 3 values"),
    "fewer values than the shape": (
        layer("a", "Bias", blob((2, 2), 1)),
        "blob 0 of layer 'a': shape 2 x 2 with 1",
    ),
    "a length of 2^60": (layer("a", "Bias", b"\x2a" + varint(2**60)), "bytes, but 0 are left"),
    "a negative size": (layer("a", "Bias", blob((2**64 - 1,), 1)), "shape -1"),
    "a giant shape": (layer("a", "Bias", blob((2**40, 2**40))), "sizes Caffe can hold"),
    "many axes": (layer("a", "Bias", blob((1,) * 33, 1)), "a blob of 33 axes"),
    "both generations": (SMALL + v1_layer("a", 14, blob((1,), 1)), "both generations"),
    "two layers of one name": (layer("a", "Bias", blob((1,), 1)) * 2, "two layers of this name"),
    "wrong magic": (b"\x00\x01\x02\x03" * 10, "field number 0"),
    "a name that is no text": (
        field(100, field(1, b"\xff\xfe") + field(7, blob((1,), 1))),
        "a name that is no text",
    ),
    "a prototxt": (b'layer { name: "a" type: "Input" }\n', "a text file, perhaps a prototxt"),
    "broken gzip": (gzip.compress(SMALL)[:-9], "broken gzip data"),
    "wrong check of a gzip": (gzip.compress(SMALL)[:-8] + bytes(8), "broken gzip data .*check failed"),
    "more behind a gzip": (gzip.compress(SMALL) + b"xx", "broken gzip data"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        read_weights(write(tmp_path, data))
    assert "a.caffemodel" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cut_at_a_field_boundary_is_a_smaller_model(tmp_path: Path) -> None:
    whole = SMALL + layer("b", "Bias", blob((1,), 1))
    assert list(read_weights(write(tmp_path, whole[: len(SMALL)]))) == ["ip"]


def test_a_large_gzip_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_weights.mapped.spool.__defaults__", (1 << 20,))
    path = write(tmp_path, gzip.compress(bytes(1 << 21)), "a.caffemodel.gz")
    with pytest.raises(FormatError, match="more than 1048576 bytes when unpacked"):
        read_caffemodel(path)


def test_a_caffemodel_caffe_could_not_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffe_weights.export.CAFFE_MOST_BYTES", 1 << 20)
    weights = read_weights(write(tmp_path, SMALL))
    with pytest.raises(WeightsError, match="choose another format"):
        write_weights(weights, tmp_path / "b.caffemodel")
    assert [path.name for path in tmp_path.iterdir()] == ["a.caffemodel"]


def test_a_missing_file_and_an_existing_output(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        read_weights(tmp_path / "no.caffemodel")
    path = write(tmp_path, SMALL)
    with pytest.raises(FileError, match="--force"):
        write_weights(read_weights(path), path)
    assert path.read_bytes() == SMALL


def as_protobuf_reads(data: bytes) -> list[tuple[str, list[np.ndarray]]] | None:
    """What Caffe makes of the bytes: the library's parse, then Blob::FromProto; None if refused."""
    try:
        net = NetParameter.FromString(data)
    except Exception:
        return None
    result = []
    for entry in net.layer:
        arrays = []
        for proto in entry.blobs:
            old = any(proto.HasField(name) for name in ("num", "channels", "height", "width"))
            sizes = [proto.num, proto.channels, proto.height, proto.width] if old else list(proto.shape.dim)
            values = np.array(proto.double_data) if proto.double_data else np.array(proto.data, np.float32)
            if min(sizes, default=1) < 0 or int(np.prod([float(s) for s in sizes])) != values.size:
                return None
            arrays.append(values.reshape(sizes))
        result.append((entry.name, arrays))
    return result


def check_against_protobuf(path: Path, data: bytes) -> bool:
    """Our reader refuses the bytes with an InputError, or reads what protobuf reads: then True."""
    path.write_bytes(data)
    try:
        weights = read_weights(path)
    except InputError:
        return False
    wanted = as_protobuf_reads(data)
    assert wanted is not None, data.hex()
    wanted = [(name, arrays) for name, arrays in wanted if arrays]
    assert [name for name, _ in wanted] == list(weights)
    for name, arrays in wanted:
        for got, want in zip(weights[name], arrays, strict=True):
            assert got.size == want.size
            assert got.ravel().tobytes() == want.ravel().tobytes()
    return True


TINY = (
    field(1, b"t")
    + layer("ip", "InnerProduct", blob((2, 2), 1, 2, 3, 4), blob((2,), 5, 6))
    + layer("r", "ReLU")
)


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    read = [
        size for size in range(len(TINY)) if check_against_protobuf(tmp_path / "a.caffemodel", TINY[:size])
    ]
    boundary = len(TINY) - len(layer("r", "ReLU"))
    assert read == [boundary]


def test_flipped_bits_are_an_error_or_what_protobuf_reads(tmp_path: Path) -> None:
    read = 0
    for position in range(len(TINY)):
        for bit in range(8):
            data = bytearray(TINY)
            data[position] ^= 1 << bit
            read += check_against_protobuf(tmp_path / "a.caffemodel", bytes(data))
    assert read > len(TINY)  # many flips only change a value or a letter


def test_random_bytes_are_an_error_or_what_protobuf_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        data = bytearray(TINY)
        for position in rng.integers(0, len(TINY), 3):
            data[position] = rng.integers(256)
        check_against_protobuf(tmp_path / "a.caffemodel", bytes(data))
    assert check_against_protobuf(tmp_path / "a.caffemodel", TINY)


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    weights = read_weights(write(tmp_path, SMALL))
    for extension in ("caffemodel", "safetensors", "npz", "pt", "h5"):
        for name in "xy":
            write_weights(weights, tmp_path / f"{name}.{extension}", net=weights.net)
        assert (tmp_path / f"x.{extension}").read_bytes() == (tmp_path / f"y.{extension}").read_bytes()
        assert io.BytesIO((tmp_path / f"x.{extension}").read_bytes()).getbuffer().nbytes
