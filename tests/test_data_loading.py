"""Feeding nets: order, batches, workers, the reference's Python layers, every error, and `fcn data check`."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import Fcn, refused, run_in
from made_data import (
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
    write_mat,
)

from caffe_weights.errors import FileError, FormatError, InputError, NetError
from reproduce.data import open_data
from reproduce.data.loading import Feed
from reproduce.data.python_layers import layer_data
from reproduce.data.sampling import ListOrder, RandomOrder
from reproduce.data.transforms import Augment
from reproduce.nets import NETS, make_net


def test_a_feed_gives_the_references_pictures(tmp_path: Path) -> None:
    data = open_data("sbd", make_sbd(tmp_path))
    feed = Feed(data, ("data", "label"), RandomOrder(3))
    twister = random.Random(1337)
    for number in range(5):
        identity = data.ids[int(twister.random() * 3)]
        assert feed.ids(number) == [identity]
        batch = feed(number)
        assert tuple(batch) == ("data", "label")
        assert batch["data"].shape == (1, 3, 5, 7)
        np.testing.assert_array_equal(batch["label"][0, 0].numpy(), labels(data.ids.index(identity), 21))


def test_workers_batches_and_jumps_change_nothing(tmp_path: Path) -> None:
    data = open_data("camvid", make_camvid(tmp_path, {"train": 5}))

    def make(workers: int) -> Feed:
        return Feed(data, ("data", "label"), RandomOrder(5), 2, workers, Augment(True, 4))

    plain, ahead = make(0), make(2)
    for number in (0, 1, 2, 7, 8, 3):
        one, other = plain(number), ahead(number)
        assert one["data"].shape == (2, 3, 12, 16)
        assert all(torch.equal(one[name], other[name]) for name in one)
    ahead.close()


def test_each_of_several_processes_decodes_its_own_part(tmp_path: Path) -> None:
    data = open_data("camvid", make_camvid(tmp_path, {"train": 5}))
    asked: list[int] = []

    def odd(start: int) -> itertools.count[int]:
        asked.append(start)
        return itertools.count(start, 2)

    feed = Feed(data, ("data", "label"), ListOrder(5), workers=1, numbers=odd)
    for number in (1, 3, 5, 7):
        np.testing.assert_array_equal(feed(number)["label"][0], data.item(data.ids[number % 5])["label"])
    assert set(asked) == {1}  # never started anew
    feed.close()


def test_pictures_of_other_sizes_make_no_batch(tmp_path: Path) -> None:
    root = make_sbd(tmp_path)
    write(root / "img/2008_000002.jpg", picture(1, 9, 9))
    write_mat(root / "cls/2008_000002.mat", GTcls={"Segmentation": labels(1, 21, 9, 9)})
    feed = Feed(open_data("sbd", root), ("data", "label"), ListOrder(3), batch=2)
    with pytest.raises(FormatError, match=r"picture 2008_000002: 9x9 pixels; wanted 5x7.*iter_size"):
        feed(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_keeps_its_words_in_a_worker(tmp_path: Path, workers: int) -> None:
    root = make_sbd(tmp_path)
    (root / "img/2008_000002.jpg").unlink()
    feed = Feed(open_data("sbd", root), ("data", "label"), ListOrder(3), workers=workers)
    feed(0)
    words = (
        r"img/2008_000002.jpg: no such file, but .*train.txt line 2 asks for it; wanted the layout img/<id>"
    )
    with pytest.raises(FileError, match=words):
        feed(1)
    assert feed(2)["data"].shape == (1, 3, 5, 7)


PLACES = {
    "voc_dir": ("../data/pascal/VOC2011", make_voc),
    "sbdd_dir": ("../data/sbdd/dataset", make_sbd),
    "nyud_dir": ("../data/nyud", make_nyud),
    "siftflow_dir": ("../data/sift-flow", make_siftflow),
}


@pytest.mark.parametrize("name", [name for name, entry in NETS.items() if entry.published and entry.data])
def test_the_published_nets_find_their_data(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "net" / "below"  # nets with ../../data lie one folder deeper
    folder.mkdir(parents=True)
    for place, make in PLACES.values():
        make(tmp_path / place[3:])
    context = make_context(tmp_path / "data/pascal-context")
    (context / "VOC2010").rename(tmp_path / "data/pascal/VOC2010")
    split = NETS[name].splits[0]
    net = make_net(name, split)
    deeper = "../../data" in net.layer[0].python_param.param_str
    found = layer_data(net.layer[0], folder if deeper else folder.parent)
    assert isinstance(found.order, RandomOrder)
    assert found.order.seed == 1337
    batch = Feed(found.dataset, found.blobs, found.order)(0)
    assert tuple(batch) == tuple(net.layer[0].top)
    channels = {"depth": 1, "label": 1, "sem": 1, "geo": 1}
    assert [blob.shape[1] for blob in batch.values()] == [channels.get(top, 3) for top in batch]


def test_evaluation_layers_go_through_the_list(tmp_path: Path) -> None:
    make_voc(tmp_path / "data/pascal/VOC2011", ("2007_000033", "2007_000042"), "seg11valid")
    (tmp_path / "net").mkdir()
    layer = make_net("voc-fcn32s", "val").layer[0]
    found = layer_data(layer, tmp_path / "net")
    assert isinstance(found.order, ListOrder)
    assert found.dataset.mean == (104.00699, 116.66877, 122.67892)


@pytest.mark.parametrize(
    ("param", "words"),
    [
        (
            "{'sbdd_dir': 'd', 'split': 'train', 'mean': (1, 2)}",
            r"layer data: param_str: mean \(1, 2\); wanted",
        ),
        ("{'sbdd_dir': 'd', 'split': 'train', 'sede': 1}", "the setting 'sede'; wanted .*seed"),
        ("{'split': 'train'}", "no sbdd_dir"),
        ("{'sbdd_dir': 'd', 'split': 'train', 'seed': '1'}", "seed '1'; wanted"),
        ("{'sbdd_dir': 3, 'split': 'train'}", "sbdd_dir 3; wanted the name of a folder"),
        ("__import__('os')", "wanted the literal of a Python dict"),
        ("{'sbdd_dir': 'nowhere', 'split': 'train'}", "nowhere: no such folder; wanted the folder of sbd"),
    ],
)
def test_a_bad_param_str(tmp_path: Path, param: str, words: str) -> None:
    make_sbd(tmp_path / "d")
    layer = make_net("voc-fcn32s", "train").layer[0]
    layer.python_param.param_str = param
    with pytest.raises(InputError, match=words):
        layer_data(layer, tmp_path)


def test_an_unknown_python_layer_and_wrong_tops(tmp_path: Path) -> None:
    layer = make_net("voc-fcn32s", "train").layer[0]
    layer.python_param.param_str = "{'sbdd_dir': 'd', 'split': 'train'}"
    make_sbd(tmp_path / "d")
    layer.top.append("third")
    with pytest.raises(NetError, match="layer data: 3 tops; wanted 2: image, label"):
        layer_data(layer, tmp_path)
    layer.python_param.layer = "Other"
    with pytest.raises(NetError, match=r"the Python layer voc_layers.Other; wanted one of voc_layers.VOCSeg"):
        layer_data(layer, tmp_path)


def test_missing_folders_lists_and_broken_lists(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such folder; wanted the folder of voc: JPEGImages"):
        open_data("voc", tmp_path / "none")
    with pytest.raises(FileError, match="no JPEGImages in it; wanted the layout JPEGImages/<id>.jpg"):
        open_data("voc", tmp_path)
    root = make_voc(tmp_path / "v")
    with pytest.raises(FileError, match=r"no list of split tset; wanted seg11valid or val; add the list"):
        open_data("voc", root, "tset")
    path = root / "ImageSets/Segmentation/val.txt"
    for content, words in (
        (b"", "val.txt: no ids"),
        (b"2007_000001\n\n../../etc\n", r"val.txt line 3: '../../etc'; wanted an id"),
        (b"2007_000001 1\n", r"val.txt line 1: '2007_000001 1'"),
        (b"\xff\xfe", "val.txt: no text"),
    ):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=words):
            open_data("voc", root, "val")


def test_broken_files(tmp_path: Path) -> None:
    root = make_sbd(tmp_path)
    data = open_data("sbd", root)
    path = root / "cls/2008_000001.mat"
    for write_it, words in (
        (lambda: path.write_bytes(b"junk"), "000001.mat: not a readable matlab file"),
        (lambda: path.write_bytes(path.read_bytes()[:100]), "not a readable matlab file"),
        (lambda: write_mat(path, labels=labels(0, 3)), "variables labels; wanted GTcls.Segmentation"),
        (lambda: write_mat(path, GTcls=labels(0, 3)), "GTcls without a field Segmentation"),
        (lambda: write_mat(path, GTcls={"Segmentation": np.zeros((2, 3, 4))}), "of shape .2, 3"),
        (lambda: write_mat(path, GTcls={"Segmentation": np.full((5, 7), 0.5)}), "row 0, column 0: label 0.5"),
        (lambda: write_mat(path, GTcls={"Segmentation": np.full((5, 7), 21)}), "label 21; wanted 0 to 20"),
        (lambda: write_mat(path, GTcls={"Segmentation": np.zeros((5, 8))}), "5x8 pixels; wanted 5x7, as"),
    ):  # fmt: skip
        write_it()
        with pytest.raises(FormatError, match=f"(?i){words}"):
            data.item("2008_000001")
    (root / "img/2008_000002.jpg").write_bytes(b"\xff\xd8 no jpeg")
    with pytest.raises(FormatError, match=r"img/2008_000002.jpg: not a readable picture"):
        data.item("2008_000002")
    nyud = open_data("nyud", make_nyud(tmp_path / "n"), modalities=["depth"])
    write(tmp_path / "n/data/depth/img_5001.png", np.zeros((5, 7), np.uint16))
    with pytest.raises(FormatError, match="row 0, column 0: depth 0; wanted above 0"):
        nyud.item("5001")
    with pytest.raises(InputError, match="modalities: 'colour'; wanted color or depth or hha"):
        open_data("nyud", tmp_path / "n", modalities=["colour"])


def test_broken_label_lists_of_pascal_context(tmp_path: Path) -> None:
    root = make_context(tmp_path)
    path = root / "labels.txt"
    text = path.read_text()
    for content, words in (
        (text.replace("wood", "wodo"), "no label wood; wanted one for class 59"),
        (text.replace("1:", "one"), "labels.txt line 1: .*wanted number: name"),
    ):
        path.write_text(content)
        with pytest.raises(FormatError, match=words):
            open_data("pascal-context", root)


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    return run_in(tmp_path, monkeypatch)


def test_data_check_counts(fcn: Fcn, tmp_path: Path) -> None:
    make_siftflow(tmp_path / "s")
    done = fcn("data", "check", "siftflow", "s", "--split", "trainval", "--json")
    assert done.exit_code == 1  # 2 ids are not the published 2,486
    result = json.loads(done.stdout)
    (row,) = result["splits"]
    assert (row["count"], row["expected_count"], row["is_published"]) == (2, 2486, False)
    assert row["remarks"] == ["2 ids, the published list has 2486"]
    assert row["sizes"] == {"5x7": 2}
    raw = np.concatenate([labels(seed, 34).reshape(-1) for seed in (0, 1)])
    sem = row["classes"]["sem"]
    assert sem["void_pixels"] == int((raw == 0).sum())
    assert [item["pixels"] for item in sem["per_class"]] == np.bincount(raw, minlength=34)[1:].tolist()
    assert sum(item["frequency"] for item in sem["per_class"]) == pytest.approx(1)
    assert row["missing"] == {}
    assert row["broken"] == []


def test_data_check_names_what_is_missing_and_broken(fcn: Fcn, tmp_path: Path) -> None:
    root = make_voc(tmp_path / "v")
    (root / "JPEGImages/2007_000001.jpg").unlink()
    (root / "SegmentationClass/2007_000002.png").write_bytes(b"")
    done = fcn("data", "check", "voc", "v", "--split", "val")
    assert done.exit_code == 1
    assert "missing  1 of image: v/JPEGImages/2007_000001.jpg" in done.stdout
    assert "broken   v/SegmentationClass/2007_000002.png: not a readable picture" in done.stdout
    quick = fcn("data", "check", "voc", "v", "--split", "val", "--quick")
    assert "broken" not in quick.stdout
    write_list(root / "ImageSets/Segmentation/twice.txt", ["2007_000002", "2007_000002"])
    twice = fcn("data", "check", "voc", "v", "--split", "twice", "--quick")
    assert "1 ids more than once, as 2007_000002" in twice.stdout


def test_data_check_of_a_good_set_and_all_kinds(fcn: Fcn, tmp_path: Path) -> None:
    make_sbd(tmp_path / "b")
    make_nyud(tmp_path / "n", split="mine")
    make_context(tmp_path / "c")
    (tmp_path / "n/data/hha").rename(tmp_path / "n/data/gone")
    done = fcn("data", "check", "nyud", "n", "--split", "mine", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["inputs"] == ["color", "depth"]
    assert "2 ids, the published list" not in fcn("data", "check", "nyud", "n", "--split", "mine").stdout
    assert "3 ids, the published list has 8498" in fcn("data", "check", "sbd", "b").stdout
    assert "background" in fcn("data", "check", "pascal-context", "c", "--voc", "c").stdout


def test_data_check_derives_seg11valid(fcn: Fcn, tmp_path: Path) -> None:
    root, sbd = make_voc(tmp_path / "v"), make_sbd(tmp_path / "b")
    ids = open_data("voc", root, "seg11valid").ids
    write_list(root / "ImageSets/Segmentation/val.txt", sorted([*ids, "2008_000002"]))
    result = json.loads(fcn("data", "check", "voc", "v", "--quick", "--sbd", "b", "--json").stdout)
    assert result["seg11valid"]["count"] == 736
    write_list(sbd / "train.txt", ["2008_000001"])
    refused(fcn("data", "check", "voc", "v", "--sbd", "b"), "seg11valid: 737 ids", "val list of VOC 2011")


def test_data_check_refuses(fcn: Fcn, tmp_path: Path) -> None:
    make_sbd(tmp_path / "b")
    refused(fcn("data", "check", "coco", "b"), "coco")
    refused(fcn("data", "check", "sbd", "none"), "none: no such folder")
    refused(fcn("data", "check", "sbd", "b", "--split", "x"), "no list of split x")
    refused(fcn("data", "check", "sbd", "b", "--modalities", "hha"), "--modalities: given for sbd")
    refused(fcn("data", "check", "sbd", "b", "--sbd", "b"), "--sbd: given for sbd")
