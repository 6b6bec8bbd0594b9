"""Data sets against what the tests wrote: by file, by the reference's arithmetic in plain loops, by hash."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from made_data import (
    CONTEXT_TASK,
    labels,
    make_camvid,
    make_context,
    make_nyud,
    make_sbd,
    make_siftflow,
    make_voc,
    picture,
    write,
    write_list,
)

from caffe_weights.errors import FormatError, InputError
from reproduce.balance import count_classes
from reproduce.commands.data import KINDS
from reproduce.data import DATASETS, open_data, parse_data
from reproduce.data.nyud import NYUD
from reproduce.data.pascal_context import CLASSES as CONTEXT_CLASSES
from reproduce.data.pascal_context import PASCALContext, label_table
from reproduce.data.sampling import ListOrder, RandomOrder
from reproduce.data.siftflow import SIFTFlow
from reproduce.data.transforms import Augment, moved, picture_blob
from reproduce.data.voc import SEG11VALID, VOC, derive_seg11valid
from reproduce.images import Preprocess
from reproduce.nets import data as nets_data

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
VOC_PICTURE = SHARED / "fcn_demo"
needs_camvid = pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="CamVid is not here")


def reference_blob(image: np.ndarray, mean: tuple[float, ...]) -> np.ndarray:
    """BGR minus mean, pixel by pixel: in double precision, rounded to float32 once."""
    height, width, _ = image.shape
    result = np.zeros((3, height, width), np.float32)
    for channel in range(3):
        for y in range(height):
            for x in range(width):
                result[channel, y, x] = np.float32(float(image[y, x, 2 - channel]) - mean[channel])
    return result


def test_a_picture_becomes_a_blob_as_in_the_reference() -> None:
    image, mean = picture(3), (104.00699, 116.66877, 122.67892)
    blob = picture_blob(image, mean)
    assert blob.dtype == np.float32
    assert blob.flags.c_contiguous
    np.testing.assert_array_equal(blob, reference_blob(image, mean))
    np.testing.assert_array_equal(blob, Preprocess(mean=np.array(mean))(image)[0])


def test_voc(tmp_path: Path) -> None:
    data = VOC(make_voc(tmp_path / "VOC2012").parent, "val")  # found below
    assert data.ids == ("2007_000001", "2007_000002")
    assert data.inputs + data.targets == ("image", "label")
    assert (data.void, data.classes[0], data.classes[20], len(data.classes)) == (
        255, "background", "tvmonitor", 21)  # fmt: skip
    np.testing.assert_array_equal(data.image("2007_000002"), picture(1))
    truth = labels(1, 21)
    truth[0, :2] = 255
    item = data.item("2007_000002")
    np.testing.assert_array_equal(item["label"], truth[np.newaxis])
    assert item["label"].dtype == np.uint8
    np.testing.assert_array_equal(
        item["image"], reference_blob(picture(1), (104.00699, 116.66877, 122.67892))
    )
    assert data.expected("val") is not None
    assert data.expected("val").count == 1449  # type: ignore[union-attr]


def test_sbd(tmp_path: Path) -> None:
    data = open_data("sbd", make_sbd(tmp_path / "benchmark_RELEASE" / "dataset").parents[1])
    assert data.split.name == "train"
    np.testing.assert_array_equal(data.label("2008_000003"), labels(2, 21))
    assert data.mean == (104.00699, 116.66877, 122.67892)


def test_nyud_in_all_modalities(tmp_path: Path) -> None:
    data = NYUD(make_nyud(tmp_path), modalities=("color", "depth", "hha"))
    assert data.parts == ("color", "depth", "hha", "label")
    item = data.item("5002")
    np.testing.assert_array_equal(item["color"], reference_blob(picture(1), (116.190, 97.203, 92.318)))
    np.testing.assert_array_equal(item["hha"], reference_blob(picture(101), (132.431, 94.076, 118.477)))
    depth = np.random.default_rng(1).integers(500, 9000, (5, 7), dtype=np.uint16)
    want = np.log(depth.astype(np.float64)) - 7.844
    assert item["depth"].shape == (1, 5, 7)
    np.testing.assert_allclose(item["depth"][0], want, atol=2e-6, rtol=0)
    raw = labels(1, 41).astype(int)
    np.testing.assert_array_equal(item["label"][0], np.where(raw == 0, 255, raw - 1))
    assert [data.classes[0], data.classes[39], len(data.classes)] == ["wall", "otherprop", 40]


def test_nyud_trainval_is_train_and_then_val(tmp_path: Path) -> None:
    make_nyud(tmp_path, ("5001",), "train")
    data = NYUD(make_nyud(tmp_path, ("6001", "6002"), "val"))
    assert data.ids == ("5001", "6001", "6002")


def test_siftflow_has_two_label_sets(tmp_path: Path) -> None:
    data = SIFTFlow(make_siftflow(tmp_path))
    item = data.item("street_b2")
    assert tuple(item) == ("image", "sem", "geo")
    np.testing.assert_array_equal(item["image"], reference_blob(picture(1), (114.578, 115.294, 108.353)))
    raw = labels(1, 34).astype(int)
    np.testing.assert_array_equal(item["sem"][0], np.where(raw == 0, 255, raw - 1))
    geometric = labels(1, 5).astype(int) - 1  # -1 and 0 are void
    np.testing.assert_array_equal(item["geo"][0], np.where(geometric < 1, 255, geometric - 1))
    np.testing.assert_array_equal(data.label("street_b2", "geo"), item["geo"][0])
    assert (len(data.class_names["sem"]), len(data.class_names["geo"])) == (33, 3)
    assert tuple(SIFTFlow(tmp_path, targets=["geo"]).item("street_b2")) == ("image", "geo")


def test_pascal_context_maps_labels_by_name(tmp_path: Path) -> None:
    data = PASCALContext(make_context(tmp_path))
    raw = labels(1, 61).astype(int)  # 0 unlabelled, 1 air conditioner, 2 wood .. 60 aeroplane
    np.testing.assert_array_equal(data.label("2008_000015"), np.where(raw < 2, 0, 61 - raw))
    assert data.classes == ("background", *CONTEXT_TASK)
    assert data.mean == (104.007, 116.669, 122.679)
    assert data.splits() == ["train"]


def test_pascal_context_finds_voc_where_it_is_given(tmp_path: Path) -> None:
    root = make_context(tmp_path / "context")
    (tmp_path / "elsewhere").mkdir()
    (root / "VOC2010").rename(tmp_path / "elsewhere" / "VOC2010")
    for place in ("elsewhere", "elsewhere/VOC2010"):
        assert PASCALContext(root, voc=tmp_path / place).ids == ("2008_000008", "2008_000015")
    with pytest.raises(InputError, match="no VOC2010 in it or beside it"):
        PASCALContext(root)


def test_the_published_label_lists_hold_all_59_classes() -> None:
    splits = SHARED / "splits"
    if not splits.is_dir():
        pytest.skip("the published lists are not here")
    table = label_table(splits / "pascal_context_400_classes.txt", splits / "pascal_context_59_classes.txt")
    assert sorted(set(table.tolist())) == list(range(60))
    names = dict(line.strip().split(": ") for line in (splits / "pascal_context_400_classes.txt").open())
    assert table[[int(number) for number, name in names.items() if name == "table"]] == [
        CONTEXT_CLASSES.index("diningtable")
    ]


def test_camvid_in_both_layouts(tmp_path: Path) -> None:
    data = open_data("camvid", make_camvid(tmp_path / "flat"), "test")
    raw = np.repeat(np.repeat(labels(8, 12, 2, 2), 6, 0), 8, 1)
    np.testing.assert_array_equal(data.label("test_1"), np.where(raw == 11, 255, raw))
    assert data.palette[3].tolist() == [128, 64, 128]
    segnet = tmp_path / "segnet" / "CamVid"
    write(segnet / "train" / "a.png", picture(0))
    write(segnet / "trainannot" / "a.png", labels(0, 11))
    write_list(segnet / "train.txt", ["/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png"])
    data = open_data("camvid", segnet.parent)
    assert data.ids == ("a",)
    np.testing.assert_array_equal(data.image("a"), picture(0))
    np.testing.assert_array_equal(data.label("a"), labels(0, 11))


def test_the_random_order_is_python_2s() -> None:
    order = RandomOrder(8498)
    assert [order(0), order(1)] == [5249, 4531]  # what the reference trains on first
    assert [order(1), order(0)] == [4531, 5249]  # backwards too
    twister = random.Random(1337)
    drawn = [int(twister.random() * 795) for _ in range(50)]
    assert [RandomOrder(795)(number) for number in (49, 7)] == [drawn[49], drawn[7]]
    # the same from numpy's Mersenne Twister, seeded as CPython seeds it, and 53 bits of it
    other = np.random.RandomState()
    other.seed([1337])
    assert [int(other.random_sample() * 8498) for _ in range(2)] == [5249, 4531]
    assert [ListOrder(3)(number) for number in range(4)] == [0, 1, 2, 0]


def test_seg11valid_is_derived_and_checked_by_its_hash(tmp_path: Path) -> None:
    ids = VOC(make_voc(tmp_path), "seg11valid").ids
    text = "".join(f"{identity}\n" for identity in ids)
    assert len(ids) == 736
    assert hashlib.sha256(text.encode()).hexdigest() == SEG11VALID.sha256
    assert list(ids) == sorted(ids)
    extra = ["2007_000039", "2011_003276"]
    assert derive_seg11valid(sorted([*ids, *extra]), [*extra, "2008_009999"]) == ids
    with pytest.raises(FormatError, match="seg11valid: 737 ids"):
        derive_seg11valid([*ids, extra[0]], [])


def test_the_lists_of_the_package_are_the_published_ones(tmp_path: Path) -> None:
    for kind, root in (("nyud", make_nyud(tmp_path / "n", split="mine")),
                       ("siftflow", make_siftflow(tmp_path / "s", split="mine"))):  # fmt: skip
        data = open_data(kind, root)
        for name in set(data.splits()) - {"mine"}:
            split, expected = data.read_split(name), data.expected(name)
            assert expected is not None
            assert len(set(split.ids)) == expected.count
            assert split.packaged
            assert expected.sha256 in ("", split.sha256)


def test_published_hashes_are_those_of_the_published_files() -> None:
    folder = SHARED / "splits"
    if not folder.is_dir():
        pytest.skip("the published lists are not here")
    for kind, name in (("voc", "seg11valid"), ("nyud", "train"), ("nyud", "val"), ("nyud", "test"),
                       ("siftflow", "trainval"), ("siftflow", "test")):  # fmt: skip
        text = "\n".join((folder / f"{kind}_{name}.txt").read_text().split()) + "\n"
        published = DATASETS[kind].published[name]
        assert published.sha256 == hashlib.sha256(text.encode()).hexdigest()
        assert published.count == len(text.split())


def test_means_and_tops_are_those_of_the_published_nets() -> None:
    assert DATASETS["voc"].means["image"] == DATASETS["sbd"].means["image"] == nets_data.VOC_MEAN
    assert DATASETS["nyud"].means == nets_data.NYUD_MEANS
    assert DATASETS["siftflow"].means["image"] == nets_data.SIFTFLOW.mean["data"]
    assert DATASETS["pascal-context"].means["image"] == nets_data.PASCAL_CONTEXT.mean["data"]
    classes = {"voc": 21, "sbd": 21, "nyud": 40, "siftflow": 33, "pascal-context": 60, "camvid": 11}
    for kind, count in classes.items():
        names = next(iter(DATASETS[kind].class_names.values()))
        assert (len(names), len(set(names))) == (count, count)
    assert tuple(DATASETS) == KINDS


def test_jitter_and_mirror_move_picture_and_labels_alike() -> None:
    blobs: dict[str, np.ndarray] = {
        "data": np.arange(24, dtype=np.float32).reshape(1, 4, 6) + 1,
             "label": np.arange(24, dtype=np.uint8).reshape(1, 4, 6) + 1}  # fmt: skip
    seen = set()
    for number in range(60):
        out = Augment(mirror=True, jitter=2)(blobs, number)
        inside = out["label"] != 255
        np.testing.assert_array_equal(out["data"][inside], out["label"][inside].astype(np.float32))
        assert not out["data"][~inside].any()
        seen.add((bytes(out["label"]), int(inside.sum())))
    assert {24, 8} <= {count for _, count in seen}  # unmoved, and moved by 2 and 2
    again = Augment(mirror=True, jitter=2)(blobs, 5)
    np.testing.assert_array_equal(again["data"], Augment(mirror=True, jitter=2)(blobs, 5)["data"])
    plain = Augment()(blobs, 3)
    np.testing.assert_array_equal(plain["label"], blobs["label"])
    assert (moved(blobs["label"], 9, 0) == 255).all()
    np.testing.assert_array_equal(moved(blobs["data"], 1, -2)[0, 1], [3, 4, 5, 6, 0, 0])


def test_kind_and_folder_of_a_data_option() -> None:
    assert parse_data("camvid:some/where:else") == ("camvid", Path("some/where:else"))
    for bad in ("camvid", "camvid:", "coco:x", ""):
        with pytest.raises(InputError, match="KIND:DIR"):
            parse_data(bad)
    with pytest.raises(InputError, match="data set: 'coco'; wanted voc or sbd"):
        open_data("coco", ".")


@needs_camvid
def test_real_camvid() -> None:
    root = SHARED / "camvid"
    counts = {}
    for split in ("train", "val", "test"):
        data = open_data("camvid", root, split)
        counts[split] = len(data.ids)
        assert data.split.sha256 == data.published[split].sha256
    assert counts == {"train": 367, "val": 101, "test": 233}
    data = open_data("camvid", root, "val")
    pixels, _ = count_classes(data, "label")
    assert pixels.sum() == 17155529
    assert [round(float(part), 3) for part in (pixels / pixels.sum())[[0, 1, 3]]] == [0.093, 0.264, 0.295]
    assert data.item(data.ids[0])["image"].shape == (3, 360, 480)


@pytest.mark.skipif(not VOC_PICTURE.is_dir(), reason="the picture of the FCN demo is not here")
def test_a_real_voc_picture(tmp_path: Path) -> None:
    for folder, name in (("JPEGImages", "2007_000129.jpg"), ("SegmentationClass", "2007_000129.png")):
        (tmp_path / folder).mkdir()
        source = VOC_PICTURE / ("image.jpg" if name.endswith("jpg") else "label.png")
        (tmp_path / folder / name).write_bytes(source.read_bytes())
    data = VOC(tmp_path, "seg11valid")
    assert "2007_000129" in data.ids
    item = data.item("2007_000129")
    assert item["image"].shape[1:] == item["label"].shape[1:]
    found = set(np.unique(item["label"]).tolist())
    assert 255 in found
    assert found - {255} <= set(range(21))
