"""DeconvNet's training data: lists made from small trees, read back by the fork's two layers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from made_data import make_camvid, make_sbd, make_voc, write, write_mat
from PIL import Image

from caffe_weights.caffe_pb2 import ImageDataParameter, LayerParameter
from caffe_weights.errors import FileError, FormatError, InputError, NetError
from reproduce.data import open_data
from reproduce.data.voc import VOC
from reproduce.deconvnet.seg_data import (
    IMAGE,
    WINDOW,
    CropMirror,
    Permutations,
    SegList,
    resize_labels,
    resize_picture,
    seg_feed,
)
from reproduce.deconvnet.stages import (
    Line,
    instances,
    make_stage_1,
    make_stage_2,
    overlaps,
    repeated,
)

ID = "2007_000001"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One picture of 30 x 40 with two objects of class 5, one of class 9, and void."""
    labels, objects = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    for index, (label, rows, columns) in enumerate(
        [(5, (2, 12), (3, 13)), (5, (4, 14), (20, 30)), (9, (20, 30), (30, 40))], 1
    ):
        labels[slice(*rows), slice(*columns)] = label
        objects[slice(*rows), slice(*columns)] = index
    labels[0], objects[0] = 255, 255
    random = np.random.default_rng(0)
    root = tmp_path / "voc"
    write(root / f"JPEGImages/{ID}.jpg", random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    write(root / f"SegmentationClass/{ID}.png", labels, palette=True)
    write(root / f"SegmentationObject/{ID}.png", objects, palette=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text(f"{ID}\n")
    return root


def test_objects_of_voc_and_their_boxes(tree: Path) -> None:
    data = VOC(tree, "train")
    found = instances(data, ID, data.label(ID))
    assert [(item.label, item.box) for item in found] == [
        (5, (3, 2, 12, 11)), (5, (20, 4, 29, 13)), (9, (30, 20, 39, 29))]  # fmt: skip


def test_objects_of_sbd_and_of_connected_regions(tmp_path: Path) -> None:
    root = make_sbd(tmp_path / "sbd", [ID])
    objects = np.zeros((5, 7), np.uint8)
    objects[1:3, 2:5], objects[4, 6] = 1, 2
    write_mat(root / f"inst/{ID}.mat",
              GTinst={"Segmentation": objects, "Categories": np.array([[7], [3]], np.uint8)})  # fmt: skip
    data = open_data("sbd", root, "train")
    assert [(i.label, i.box) for i in instances(data, ID, objects)] == [(7, (2, 1, 4, 2)), (3, (6, 4, 6, 4))]
    write_mat(root / f"inst/{ID}.mat", GTinst={"Segmentation": objects, "Categories": np.array([[7]])})
    with pytest.raises(FormatError, match="no class of object 2"):
        instances(data, ID, objects)
    camvid = open_data("camvid", make_camvid(tmp_path / "camvid"), "train")
    regions = np.array([[1, 0, 1], [0, 1, 0], [2, 255, 1]], np.uint8)
    found = instances(camvid, "x", regions)
    assert [(i.label, i.box) for i in found] == [(1, (0, 0, 2, 2)), (2, (0, 2, 0, 2))]


def test_stage_1_crops_each_object(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert make_stage_1(VOC(tree, "train"), out) == 3
    lines = (out / "stage_1_train_imgset/train.txt").read_text().splitlines()
    assert lines[0] == f"/crops/{ID}_0.jpg /crop_labels/{ID}_0.png"
    with Image.open(f"{out}{lines[0].split()[1]}") as image:
        label = np.asarray(image)
    # 10 x 10 at row 2, column 3, enlarged to 12 x 12 at row 1, column 2
    want = np.zeros((12, 12), np.uint8)
    want[1:11, 1:11] = 5
    np.testing.assert_array_equal(label, want)
    with Image.open(f"{out}{lines[1].split()[1]}") as image:
        second = np.asarray(image)  # rows 3 to 14: class 5 alone, without class 9
    assert set(np.unique(second)) == {0, 5}
    with Image.open(f"{out}{lines[2].split()[1]}") as image:
        corner = np.asarray(image)  # reaches one row and column beyond the picture
    assert (corner[-1] == 255).all() and (corner[:, -1] == 255).all()
    assert (corner[1:-1, 1:-1] == 9).all() and (corner[0, :-1] == 0).all()
    with Image.open(f"{out}{lines[2].split()[0]}") as image:
        assert image.format == "JPEG" and image.size == (12, 12)


def test_stage_2_keeps_the_proposals_on_objects(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("2,1,13,12\n0,0,39,29\n29,19,40,30\n14,14,19,19\n")
    assert make_stage_2(VOC(tree, "train"), out, boxes) == 2
    start = f"/images/{ID}.jpg /labels/{ID}.png"
    lines = (out / "stage_2_train_imgset/train.txt").read_text().splitlines()
    assert lines == [f"{start} 2 1 13 12", f"{start} 29 19 40 30"]
    assert (out / f"images/{ID}.jpg").samefile(tree / f"JPEGImages/{ID}.jpg")
    assert make_stage_2(VOC(tree, "train"), out, boxes, overlap=0.1) == 3  # the whole picture, too


def test_overlap_by_hand() -> None:
    boxes, others = np.array([[0, 0, 9, 9], [5, 5, 14, 14]]), np.array([[0, 0, 9, 9], [20, 20, 30, 30]])
    np.testing.assert_allclose(overlaps(boxes, others), np.array([[1, 0], [25 / 175, 0]]))


def test_rare_classes_are_repeated() -> None:
    lines = [Line("a", frozenset({1})), Line("b", frozenset({1})), Line("c", frozenset({1, 2})),
             Line("d", frozenset())]  # fmt: skip
    assert repeated(lines, 10) == ["a", "b", "c", "c", "c", "d"]
    assert repeated(lines, 2) == ["a", "b", "c", "c", "d"]
    assert repeated(lines, 1) == ["a", "b", "c", "d"]


def test_what_has_no_background_or_no_objects_is_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="class 0 is Sky"):
        make_stage_1(open_data("camvid", make_camvid(tmp_path / "camvid"), "train"), tmp_path / "out")
    with pytest.raises(InputError, match="no proposal"):
        make_stage_2(VOC(tree, "train"), tmp_path / "out", "windows", overlap=1.0)
    with pytest.raises(InputError, match="overlap"):
        make_stage_2(VOC(tree, "train"), tmp_path / "out", "windows", overlap=0.0)
    (tree / f"SegmentationObject/{ID}.png").unlink()
    with pytest.raises(FileError, match="SegmentationObject"):
        make_stage_1(VOC(tree, "train"), tmp_path / "out")


@pytest.mark.parametrize(("old", "new"), [((30, 40), (25, 25)), ((7, 50), (33, 20)), ((11, 13), (11, 13))])
def test_resizing_is_opencvs(old: tuple[int, int], new: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (*old, 3), dtype=np.uint8)
    want = cv2.resize(picture, new[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(resize_picture(picture, new).astype(int) - want).max() <= 1
    labels = random.integers(0, 21, old, dtype=np.uint8)
    nearest = cv2.resize(labels, new[::-1], interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(resize_labels(labels, new), nearest)


def opencv_item(tree: Path, window: tuple[int, ...] | None, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The layer's work by OpenCV: pad, crop, resize."""
    image = cv2.imread(str(tree / f"JPEGImages/{ID}.jpg"), cv2.IMREAD_COLOR)
    label = np.array(Image.open(tree / f"SegmentationClass/{ID}.png"))
    assert image is not None
    if window:
        left, top, right, bottom = window
        pad = (max(0, -top), max(0, bottom - 29), max(0, -left), max(0, right - 39))
        image = cv2.copyMakeBorder(image, *pad, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        label = cv2.copyMakeBorder(label, *pad, cv2.BORDER_CONSTANT, value=(255,))
        rows = slice(top + pad[0], bottom + pad[0] + 1)
        columns = slice(left + pad[2], right + pad[2] + 1)
        image, label = image[rows, columns], label[rows, columns]
    shape = (size, size)
    return (cv2.resize(image, shape, interpolation=cv2.INTER_LINEAR),
            cv2.resize(label, shape, interpolation=cv2.INTER_NEAREST))  # fmt: skip


def seg_layer(kind: str, root: Path, source: str, **changes: int | bool) -> LayerParameter:
    layer = LayerParameter(name="data", type=kind, top=["data", "seg-label"])
    p = layer.image_data_param
    p.root_folder, p.source, p.label_type, p.batch_size = str(root), source, ImageDataParameter.PIXEL, 2
    p.new_height = p.new_width = int(changes.get("size", 25))
    layer.transform_param.mean_value.extend([10, 20, 30])
    layer.transform_param.crop_size = int(changes.get("crop", 0))
    layer.transform_param.mirror = bool(changes.get("mirror", False))
    return layer


@pytest.mark.parametrize("window", [None, (3, 2, 20, 28), (-6, -4, 50, 41), (0, 0, 39, 29)])
def test_items_are_the_forks(tree: Path, tmp_path: Path, window: tuple[int, ...] | None) -> None:
    words = [f"/JPEGImages/{ID}.jpg", f"/SegmentationClass/{ID}.png", *map(str, window or ())]
    (tmp_path / "list.txt").write_text(" ".join(words) + "\n")
    layer = seg_layer(WINDOW if window else IMAGE, tree, "list.txt")
    batch = seg_feed(layer, tmp_path)(0)
    image, label = opencv_item(tree, window, 25)
    assert batch["data"].shape == (2, 3, 25, 25) and batch["seg-label"].shape == (2, 1, 25, 25)
    want = image.transpose(2, 0, 1) - np.array([10.0, 20, 30])[:, None, None]
    assert np.abs(batch["data"][1].numpy() - want).max() <= 1
    np.testing.assert_array_equal(batch["seg-label"][1, 0].numpy(), label)


def test_crops_in_training_and_from_the_middle() -> None:
    blobs: dict[str, np.ndarray] = {"data": np.arange(3 * 9 * 8, dtype=np.float32).reshape(3, 9, 8),
             "label": np.arange(72, dtype=np.uint8).reshape(1, 9, 8)}  # fmt: skip
    middle = CropMirror(5, middle=True)(blobs, 7)
    np.testing.assert_array_equal(middle["data"], blobs["data"][:, 2:7, 1:6])
    starts, flips = set(), 0
    for number in range(200):
        found = CropMirror(5, mirror=True)(blobs, number)
        label = found["label"][0]
        flipped = label[0, 1] < label[0, 0]
        flips += flipped
        label = label[:, ::-1] if flipped else label
        top, left = divmod(int(label[0, 0]), 8)
        starts.add((top, left))
        data = found["data"][:, :, ::-1] if flipped else found["data"]
        np.testing.assert_array_equal(label, blobs["label"][0, top : top + 5, left : left + 5])
        np.testing.assert_array_equal(data, blobs["data"][:, top : top + 5, left : left + 5])
    assert starts == {(top, left) for top in range(5) for left in range(4)}
    assert 70 < flips < 130
    wide = CropMirror(12, middle=True)(blobs, 0)
    np.testing.assert_array_equal(wide["data"][:, :9, :8], blobs["data"])
    assert (wide["data"][:, 9:] == 0).all() and (wide["label"][:, :, 8:] == 255).all()


def test_a_batch_follows_from_its_number(tree: Path, tmp_path: Path) -> None:
    root = make_voc(tmp_path / "other", [f"2007_{i:06}" for i in range(5)], "train")
    lines = [f"/JPEGImages/2007_{i:06}.jpg /SegmentationClass/2007_{i:06}.png" for i in range(5)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    layer = seg_layer(IMAGE, root, str(tmp_path / "list.txt"), crop=16, size=20, mirror=True)
    layer.image_data_param.shuffle = True
    here, there = (seg_feed(layer, tmp_path, workers=workers) for workers in (0, 1))
    for number in (3, 4, 5):
        for name, blob in here(number).items():
            assert (blob == there(number)[name]).all()
    there.close()
    order = Permutations(5, 3)
    assert sorted(order(i) for i in range(5)) == list(range(5)) == sorted(order(i) for i in range(5, 10))
    assert [order(i) for i in range(10)] == [Permutations(5, 3)(i) for i in range(10)]


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [("/a.jpg", IMAGE, "line 1: 1 words"), ("/a.jpg /a.png 1 2 3", WINDOW, "5 words"),
     ("/a.jpg /a.png 1 2 3 x", WINDOW, "whole numbers"), ("/a.jpg /a.png 5 2 3 4", WINDOW, "x1 <= x2"),
     ("", IMAGE, "empty list")],
)  # fmt: skip
def test_broken_lists(tmp_path: Path, text: str, kind: str, words: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(FormatError, match=words):
        SegList(tmp_path / "list.txt", "", kind, None)


def test_what_a_layer_cannot_have(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"/JPEGImages/{ID}.jpg /SegmentationClass/none.png\n")
    with pytest.raises(FileError, match="none.png"):
        seg_feed(seg_layer(IMAGE, tree, "list.txt"), tmp_path)(0)
    with pytest.raises(FileError, match="no such file"):
        seg_feed(seg_layer(IMAGE, tree, "other.txt"), tmp_path)
    layer = seg_layer(IMAGE, tree, "list.txt")
    layer.image_data_param.label_type = ImageDataParameter.IMAGE
    with pytest.raises(NetError, match="PIXEL"):
        seg_feed(layer, tmp_path)
    layer = seg_layer(IMAGE, tree, "list.txt")
    layer.top.append("data_dim")
    with pytest.raises(NetError, match="3 tops"):
        seg_feed(layer, tmp_path)
    layer = seg_layer(IMAGE, tree, "list.txt")
    layer.transform_param.scale = 2
    with pytest.raises(NetError, match="scale"):
        seg_feed(layer, tmp_path)
