"""ImageData, Data and their transforms, on small files made here, against OpenCV."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from source_nets import READER, net_of

from caffe_weights.caffe_pb2 import BlobProto, Datum
from caffe_weights.errors import FileError, FormatError, InputError, NetError
from caffe_weights.prototxt import parse_net
from reproduce.net import Net

lmdb = pytest.importorskip("lmdb", reason="the Data layer needs the optional package lmdb")


# ---- ImageData ----


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Three pictures `one of K.png` of 6 x 8, labels 5, 6, 7, and their BGR planes."""
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (3, 3, 6, 8), np.uint8)
    lines = []
    for i, picture in enumerate(planes):
        cv2.imwrite(str(tmp_path / f"one of {i}.png"), picture.transpose(1, 2, 0))
        lines.append(f"one of {i}.png {i + 5}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    return tmp_path, planes


def image_net(folder: Path, more: str = "", transform: str = "", phase: str = "TEST") -> Net:
    param = f'source: "{folder}/list.txt" root_folder: "{folder}/" {more}'
    return net_of(
        "ImageData", f"image_data_param {{ {param} }} transform_param {{ {transform} }}", phase=phase
    )


def test_pictures_come_as_bgr_planes_in_order(pictures: tuple[Path, np.ndarray]) -> None:
    folder, planes = pictures
    net = image_net(folder, "batch_size: 2")
    assert net.shapes().blobs == {"data": (2, 3, 6, 8), "label": (2,)}
    first, second = net(), net()
    np.testing.assert_array_equal(first["data"].numpy(), planes[:2].astype(np.float32))
    np.testing.assert_array_equal(second["data"].numpy(), planes[[2, 0]].astype(np.float32))
    assert first["label"].tolist() == [5, 6] and second["label"].tolist() == [7, 5]


@pytest.mark.parametrize("size", [(3, 4), (9, 13), (6, 5)])
def test_resized_pictures_are_opencv_s_within_a_level(
    pictures: tuple[Path, np.ndarray], size: tuple[int, int]
) -> None:
    folder, planes = pictures
    got = image_net(folder, f"new_height: {size[0]} new_width: {size[1]}")()["data"].numpy()[0]
    want = cv2.resize(planes[0].transpose(1, 2, 0), size[::-1]).transpose(2, 0, 1)
    assert np.abs(got - want).max() <= 1 and np.array_equal(got, np.rint(got))


def test_gray_pictures_are_opencv_s_within_a_level(pictures: tuple[Path, np.ndarray]) -> None:
    folder, _ = pictures
    got = image_net(folder, "is_color: false")()["data"].numpy()
    want = cv2.imread(str(folder / "one of 0.png"), cv2.IMREAD_GRAYSCALE)
    assert want is not None and got.shape == (1, 1, 6, 8) and np.abs(got[0, 0] - want).max() <= 1


def test_shuffle_and_rand_skip(pictures: tuple[Path, np.ndarray]) -> None:
    folder, _ = pictures
    orders = set()
    for seed in range(12):
        torch.manual_seed(seed)
        net = image_net(folder, "shuffle: true")
        order = [float(net()["label"]) for _ in range(6)]
        assert sorted(order[:3]) == sorted(order[3:]) == [5, 6, 7]
        orders.add(tuple(order))
    assert len(orders) > 3
    firsts = {float(image_net(folder, "rand_skip: 3")()["label"]) for _ in range(40)}
    assert firsts == {5, 6, 7}


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("a.png\n", "", r"list.txt:1: 'a.png'; wanted a path, a space and a whole number"),
        ("a.png x\n", "", r"list.txt:1: 'a.png x'; wanted"),
        ("gone.png 1\n", "", r"gone.png: no such file"),
        ("list.txt 1\n", "", r"list.txt: not a readable picture"),
        ("", "", "no picture in this list"),
        (None, "new_height: 4", r"new_height 4 and new_width 0; wanted both, or neither"),
        (None, "batch_size: 0", "batch_size 0; wanted at least 1"),
    ],
)
def test_bad_image_data_is_refused(
    pictures: tuple[Path, np.ndarray], text: str | None, more: str, message: str
) -> None:
    folder, _ = pictures
    if text is not None:
        (folder / "list.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        image_net(folder, more)


def test_pictures_of_unlike_sizes_do_not_make_a_batch(pictures: tuple[Path, np.ndarray]) -> None:
    folder, _ = pictures
    cv2.imwrite(str(folder / "one of 1.png"), np.zeros((5, 8, 3), np.uint8))
    with pytest.raises(FormatError, match=r"one of 1.png: a picture of 3x5x8 in a batch; wanted 3x6x8"):
        image_net(folder, "batch_size: 2")()
    assert image_net(folder, "batch_size: 2", "crop_size: 4")()["data"].shape == (2, 3, 4, 4)


# ---- transform_param ----


def test_crop_mean_values_and_scale(pictures: tuple[Path, np.ndarray]) -> None:
    """In TEST the crop is central: (6 - 3) / 2 = 1 and (8 - 3) / 2 = 2."""
    folder, planes = pictures
    fields = "crop_size: 3 scale: 0.5 mean_value: 10 mean_value: 20 mean_value: 30"
    got = image_net(folder, "", fields)()["data"].numpy()[0]
    mean = np.array([10, 20, 30], np.float32).reshape(3, 1, 1)
    np.testing.assert_array_equal(got, (planes[0, :, 1:4, 2:5] - mean) * 0.5)


def test_a_mean_image_is_cropped_with_the_item(pictures: tuple[Path, np.ndarray]) -> None:
    folder, planes = pictures
    mean = np.arange(3 * 6 * 8, dtype=np.float32).reshape(3, 6, 8)
    save_mean(folder / "mean.binaryproto", mean)
    got = image_net(folder, "", f'crop_size: 4 mean_file: "{folder}/mean.binaryproto"')()["data"].numpy()[0]
    np.testing.assert_array_equal(got, (planes[0] - mean)[:, 1:5, 2:6])


def test_random_crops_and_mirrors_cover_every_place(pictures: tuple[Path, np.ndarray]) -> None:
    folder, planes = pictures
    net = image_net(folder, "batch_size: 3", "crop_size: 5 mirror: true", phase="TRAIN")
    first = planes[0].astype(np.float32)
    places = {
        first[:, r : r + 5, c : c + 5][:, :, ::step].tobytes(): (r, c, step)
        for r in range(2) for c in range(4) for step in (1, -1)
    }  # fmt: skip
    seen = {places[net()["data"][0].numpy().tobytes()] for _ in range(150)}
    assert len(seen) == 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("crop_size: 7", "crop_size 7 of 6x8; wanted at most the item's size"),
        ("mean_value: 1 mean_value: 2", "2 values of mean_value; wanted 1 or 3"),
        ('mean_value: 1 mean_file: "m"', "both mean_file and mean_value; wanted one of them"),
        ('mean_file: "M"', r"a mean image of 3x6x7 in .*; wanted 3x6x8, as the items are before cropping"),
    ],
)
def test_bad_transforms_are_refused(pictures: tuple[Path, np.ndarray], fields: str, message: str) -> None:
    folder, _ = pictures
    save_mean(folder / "m.binaryproto", np.zeros((3, 6, 7), np.float32))
    with pytest.raises(NetError, match=rf"layer d \(ImageData\): {message}"):
        image_net(folder, "", fields.replace('"M"', f'"{folder}/m.binaryproto"'))


# ---- Data ----


def write_lmdb(path: Path, records: list[bytes]) -> None:
    with lmdb.open(str(path), map_size=1 << 20) as base, base.begin(write=True) as transaction:
        for i, record in enumerate(records):
            transaction.put(f"{i:08d}".encode(), record)


def datum(values: np.ndarray, label: int, **fields: Any) -> bytes:
    c, h, w = values.shape
    return Datum(
        channels=c, height=h, width=w, data=values.tobytes(), label=label, **fields
    ).SerializeToString()


def data_net(path: Path, more: str = "", transform: str = "", **options: str) -> Net:
    param = f'data_param {{ source: "{path}" batch_size: 2 backend: LMDB {more} }}'
    return net_of("Data", f"{param} transform_param {{ {transform} }}", **options)


def test_raw_records_come_by_key_and_begin_again(tmp_path: Path) -> None:
    items = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 5), np.uint8)
    write_lmdb(tmp_path / "db", [datum(item, i + 1) for i, item in enumerate(items)])
    net = data_net(tmp_path / "db", transform="scale: 0.5")
    assert net.shapes().blobs == {"data": (2, 2, 4, 5), "label": (2,)}
    other = data_net(tmp_path / "db")  # a second net reads the same database
    for wanted in ([0, 1], [2, 0], [1, 2]):
        out = net()
        np.testing.assert_array_equal(out["data"].numpy(), items[wanted] * np.float32(0.5))
        assert out["label"].tolist() == [w + 1 for w in wanted]
        assert other()["label"].tolist() == out["label"].tolist()
    assert pickle.loads(pickle.dumps(net))()["label"].tolist() == [1, 2]
    assert list(data_net(tmp_path / "db", tops='top: "data"')()) == ["data"]


def test_floats_and_encoded_pictures(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32) / 8
    floats = Datum(channels=3, height=2, width=2, float_data=values.tolist(), label=4)
    write_lmdb(tmp_path / "f", [floats.SerializeToString()])
    np.testing.assert_array_equal(data_net(tmp_path / "f")()["data"][1].numpy().ravel(), values)
    picture = np.random.default_rng(1).integers(0, 256, (4, 5, 3), np.uint8)
    encoded = cv2.imencode(".png", picture)[1].tobytes()
    write_lmdb(tmp_path / "e", [Datum(data=encoded, label=1, encoded=True).SerializeToString()])
    for fields in ("", "force_color: true"):
        got = data_net(tmp_path / "e", transform=fields)()["data"][0].numpy()
        np.testing.assert_array_equal(got, picture.transpose(2, 0, 1))
    gray = data_net(tmp_path / "e", transform="force_gray: true")()["data"][0].numpy()
    assert np.abs(gray[0] - cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)).max() <= 1
    native = cv2.imencode(".png", picture[:, :, 0])[1].tobytes()
    write_lmdb(tmp_path / "g", [Datum(data=native, label=1, encoded=True).SerializeToString()])
    assert data_net(tmp_path / "g")()["data"].shape == (2, 1, 4, 5)
    assert data_net(tmp_path / "g", transform="force_color: true")()["data"].shape == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"\xff\xff", r"db: b'00000000': no Datum record"),
        (
            Datum(channels=1, height=2, width=2, data=b"123").SerializeToString(),
            "3 values for 1x2x2; wanted as",
        ),
        (Datum(label=3).SerializeToString(), "0 values for 0x0x0"),
        (Datum(encoded=True, data=b"no picture").SerializeToString(), "not a readable picture"),
    ],
)
def test_a_bad_record_is_refused(tmp_path: Path, record: bytes, message: str) -> None:
    write_lmdb(tmp_path / "db", [record])
    with pytest.raises(FormatError, match=message):
        data_net(tmp_path / "db")


def test_bad_databases_and_settings_are_refused(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "empty", [])
    with pytest.raises(FormatError, match="an empty database; wanted Datum records"):
        data_net(tmp_path / "empty")
    (tmp_path / "level").mkdir()
    with pytest.raises(FileError, match=r"data.mdb: no such file"):
        data_net(tmp_path / "level")
    (tmp_path / "level" / "data.mdb").write_bytes(bytes(8192))
    with pytest.raises(FormatError, match="no LMDB by its first bytes"):
        data_net(tmp_path / "level")
    write_lmdb(
        tmp_path / "two", [datum(np.zeros((1, 2, 2), np.uint8), 0), datum(np.zeros((1, 2, 3), np.uint8), 0)]
    )
    with pytest.raises(FormatError, match=r"an item of 1x2x3 in a batch; wanted 1x2x2, as the first one"):
        data_net(tmp_path / "two")()
    with pytest.raises(NetError, match="both force_color and force_gray"):
        data_net(tmp_path / "two", transform="force_color: true force_gray: true")


def test_a_leveldb_is_an_input_and_the_reason_is_said() -> None:
    text = 'layer { name: "d" type: "Data" top: "x" data_param { source: "db" batch_size: 1 } }'
    net = Net(parse_net(text + READER), input_shapes={"x": (1, 2)})
    assert net(x=[[1, 2]])["p"].tolist() == [[1, 2]]
    with pytest.raises(NetError, match="its backend is LEVELDB, which is not read here"):
        net()


def test_without_the_package_the_layer_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lmdb(tmp_path / "db", [datum(np.zeros((1, 2, 2), np.uint8), 0)])
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(FileError, match="Data layer: the package lmdb is not installed; .*pip install"):
        data_net(tmp_path / "db")


def save_mean(path: Path, mean: np.ndarray) -> None:
    blob = BlobProto(data=mean.ravel().tolist())
    blob.shape.dim.extend(mean.shape)
    path.write_bytes(blob.SerializeToString())
