"""Composites of real digits: what is drawn, held out by instance, and read back as a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caffe_weights.errors import FileError, FormatError
from reproduce.data import open_data
from reproduce.demo_data import composites
from reproduce.demo_data.composites import CANVASES, Canvas, composite, instances, write_composites
from reproduce.digits import draw_canvas

FULL = np.full((8, 8), 16)
CANVAS = Canvas(96, 1, 2, {"train": 3, "val": 1, "test": 2})


def test_a_canvas_shows_a_digit_in_full_ink_and_its_class() -> None:
    picture, classes = draw_canvas([FULL], [7], [50], 60, np.random.default_rng(0))
    assert picture.shape == classes.shape == (60, 60)
    assert (picture.dtype, classes.dtype) == (np.float32, np.uint8)
    rows, columns = np.nonzero(picture)
    assert (np.ptp(rows), np.ptp(columns)) == (49, 49)  # 8 x 8 made 50 x 50
    assert ((classes == 8) == (picture > 0.3)).all()
    assert set(np.unique(classes)) == {0, 8}


def test_digits_do_not_touch_and_one_without_a_place_is_left_out() -> None:
    rng = np.random.default_rng(1)
    _, classes = draw_canvas([FULL, FULL], [0, 1], [50, 50], 60, rng)
    assert set(np.unique(classes)) == {0, 1}  # no place for the second
    _, classes = draw_canvas([FULL] * 3, [0, 1, 2], [20, 20, 20], 200, rng)
    assert [int((classes == 1 + digit).sum()) for digit in range(3)] == [400, 400, 400]


def test_faint_ink_is_ground() -> None:
    image = np.full((8, 8), 16)
    image[:, 4:] = 3  # of 16: below 0.3
    picture, classes = draw_canvas([image], [4], [40], 40, np.random.default_rng(0))
    assert picture[20, 35] > 0
    assert classes[20, 35] == 0
    assert classes[20, 5] == 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    folder = tmp_path_factory.mktemp("digits")
    write_composites(folder, CANVAS)
    return folder


def test_the_data_set_reads_what_was_written(made: Path) -> None:
    data = open_data("digits", made)
    assert data.ids == ("train_0000", "train_0001", "train_0002")
    assert data.classes == ("ground", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    item = data.item("train_0001")
    stored = np.asarray(Image.open(made / "images/train_0001.png"))
    assert (item["image"] == stored.astype(np.float32)).all()  # in three channels, nothing taken off
    assert item["image"].shape == (3, 96, 96)
    assert (item["label"][0] == np.asarray(Image.open(made / "labels/train_0001.png"))).all()
    assert len(open_data("digits", made, "test").ids) == 2
    assert [open_data("digits", made, "").split.name, data.score_split] == ["test", "test"]


def test_ground_is_black_and_ink_of_a_class_is_bright(made: Path) -> None:
    data = open_data("digits", made)
    for identity in data.ids:
        pixels, label = data.image(identity)[:, :, 0], data.label(identity)
        assert (pixels[label > 0] >= round(0.3 * 255)).all()
        assert (pixels[label == 0] <= round(0.3 * 255)).all()
        assert 0.02 < (label > 0).mean() < 0.9


def test_the_same_seed_writes_the_same_pictures(made: Path, tmp_path: Path) -> None:
    write_composites(tmp_path, CANVAS)
    for path in sorted(made.rglob("*.png")):
        assert path.read_bytes() == (tmp_path / path.relative_to(made)).read_bytes()


def test_splits_share_no_digit_and_test_is_the_demos() -> None:
    pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    from reproduce.demo_data import train

    parts = instances()
    assert {name: len(part) for name, part in parts.items()} == {"train": 1297, "val": 200, "test": 300}
    together = np.concatenate(list(parts.values()))
    assert len(set(together)) == len(together) == 1797
    assert set(parts["test"]) == set(train.split()[2][: train.HELD_OUT])
    shipped = np.load(str(Path(composites.__file__).parent / "held_out.npz"))["index"]
    assert set(shipped) <= set(parts["test"])


def test_a_canvas_has_as_many_digits_as_it_says() -> None:
    images = np.stack([FULL] * 4)
    for name, (fewest, most) in {"single": (1, 1), "canvases": (3, 6)}.items():
        canvas, counts = CANVASES[name], set()
        for seed in range(20):
            rng = np.random.default_rng(seed)
            _, classes = composite(canvas, images, np.arange(4), rng)
            assert classes.shape == (canvas.size, canvas.size)
            counts.add(len(np.unique(classes)) - 1)
        assert max(counts) <= most
        assert min(counts) >= 1
        assert fewest == canvas.fewest


def test_what_is_missing_or_wrong_is_named(made: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no images in it; wanted the layout images/<id>.png"):
        open_data("digits", tmp_path)
    with pytest.raises(FileError, match="no list of split gone; wanted test or train or val"):
        open_data("digits", made, "gone")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "train.txt").write_text("a\n")
    data = open_data("digits", tmp_path)
    with pytest.raises(FileError, match=r"images/a.png: no such file, but .*train.txt line 1"):
        data.image("a")
    Image.fromarray(np.full((2, 2), 11, np.uint8)).save(tmp_path / "labels/a.png")
    with pytest.raises(FormatError, match="label 11; wanted 0 to 10"):
        data.label("a")
