"""Folders of pictures: the same labels as one by one, in order, whatever the batch; what breaks is named.

`colours` labels a pixel by its strongest channel, so the truth is numpy's argmax of the picture.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caffe_nets import colours_net, save_net
from cli_helpers import Fcn, refused, run_in
from made_weights import made_weights
from PIL import Image

from caffe_weights.errors import FileError
from caffe_weights.export import read_weights, write_weights
from reproduce.commands import segment as segment_command
from reproduce.images import VOC_MEAN_BGR, Preprocess, read_image
from reproduce.inference import picture_net
from reproduce.nets import Form, make_net
from reproduce.recognition import published_net
from reproduce.segment import scores_of
from reproduce.tolerances import NET

NET_FILES = ("--net", "net.prototxt", "--weights", "net.caffemodel", "--mean", "0,0,0")
SIZES = [(3, 4), (5, 2), (3, 4), (3, 4), (5, 2), (2, 2), (3, 4)]


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    torch.set_num_threads(1)
    save_net(tmp_path, colours_net())
    make_pictures(tmp_path / "in")
    return run_in(tmp_path, monkeypatch)


def test_an_empty_name_is_not_this_folder(fcn: Fcn) -> None:
    refused(fcn("segment", "", *NET_FILES, "--out", "out"), "no such file")


def make_pictures(folder: Path) -> list[np.ndarray]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("nor this")
    (folder / "deeper.png").mkdir()
    return pictures


def truth(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "in" / name))[:, :, ::-1].argmax(2)


@pytest.mark.parametrize(
    "options", [(), ("--batch", "3"), ("--batch", "3", "--workers", "1"), ("--overlay",)]
)
def test_a_folder(fcn: Fcn, tmp_path: Path, options: tuple[str, ...]) -> None:
    done = fcn("segment", "in", *NET_FILES, "--out", "out", "--json", *options)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["image"] for row in report["images"]] == [f"in/{i}.png" for i in range(len(SIZES))]
    for row in report["images"]:
        labels = np.asarray(Image.open(row["labels"]))
        np.testing.assert_array_equal(labels, truth(tmp_path, Path(row["image"]).name))
        assert (row["height"], row["width"]) == labels.shape
    assert report["failed"] == report["skipped"] == [] and report["images_per_second"] > 0
    kinds = 2 if "--overlay" in options else 1
    assert len(list((tmp_path / "out").iterdir())) == kinds * len(SIZES)


def test_a_folder_in_words(fcn: Fcn) -> None:
    done = fcn("segment", "in", *NET_FILES, "--out", "out")
    lines = done.stdout.splitlines()
    assert lines[:-1:2] == [line for line in lines[:-1] if line.startswith("in/")]
    assert lines[-1].startswith("7 pictures, ") and lines[-1].endswith(" images/s")


def test_many_batches_are_those_of_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow FCN-8s: labels may differ only where the two best scores of a pixel are nearly equal."""
    form = Form(16, 16)
    write_weights(
        made_weights("voc-fcn8s", form), tmp_path / "w.caffemodel", net=make_net("voc-fcn8s", form=form)
    )
    rng = np.random.default_rng(1)
    (tmp_path / "in").mkdir()
    for i, size in enumerate([(40, 56), (48, 33), (40, 56), (40, 56), (48, 33)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"in/{i}.png")
    fcn = run_in(tmp_path, monkeypatch)
    for batch in ("1", "2"):
        done = fcn("segment", "in", "--weights", "w.caffemodel", "--out", batch, "--batch", batch)
        assert done.exit_code == 0, done.stderr
    known = published_net(read_weights(tmp_path / "w.caffemodel"))
    net = picture_net(known.definition, tmp_path / "w.caffemodel", preferred=known.score, frame=False)
    for i in range(5):
        preprocess = Preprocess("bgr", np.array(VOC_MEAN_BGR))
        scores = scores_of(net.net, net.input, net.output, read_image(tmp_path / f"in/{i}.png"), preprocess)
        best = np.sort(scores, 0)[-2:]
        sure = best[1] - best[0] > 2 * NET * np.abs(scores).max()
        assert sure.mean() > 0.99
        for batch in ("1", "2"):
            labels = np.asarray(Image.open(tmp_path / batch / f"{i}.png"))
            assert (labels == scores.argmax(0))[sure].all()


def test_broken_pictures_keep_no_other_from_its_labels(fcn: Fcn, tmp_path: Path) -> None:
    (tmp_path / "in/2.png").write_text("no picture")
    done = fcn("segment", "in", *NET_FILES, "--out", "out", "--batch", "2", "--json")
    assert done.exit_code == 2
    assert done.stderr == (
        "error: 1 of 7 pictures not labelled: in/2.png: not a readable picture (unknown format); wanted PNG,"
        " JPEG, ...; the other 6 are written\n"
    )
    report = json.loads(done.stdout)
    assert [item["image"] for item in report["failed"]] == ["in/2.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{i}.png" for i in (0, 1, 3, 4, 5, 6)
    ]
    for i in range(7):
        (tmp_path / f"in/{i}.png").write_text("no picture")
    refused(fcn("segment", "in", *NET_FILES, "--out", "o"), "7 of 7", "in/0.png", "in/4.png", "and 2 more")
    assert not (tmp_path / "o").exists()


def test_an_error_in_writing_ends_the_run(fcn: Fcn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = segment_command.write_label_png
    written: list[Path] = []

    def full(labels: np.ndarray, path: Path, force: bool) -> None:
        if len(written) == 2:
            raise FileError(str(path), "no space left on the disk")
        written.append(path)
        write(labels, path, force)

    monkeypatch.setattr(segment_command, "write_label_png", full)
    refused(fcn("segment", "in", *NET_FILES, "--out", "out", "--workers", "1"), "out/2.png", "no space left")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png"]


def test_nothing_is_left_half_written(fcn: Fcn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Image.Image.save

    def broken(self: Image.Image, target: Any, *arguments: Any) -> None:
        Path(target).write_bytes(b"half")
        if "3" in Path(target).name:
            raise OSError(28, "No space left on device")
        save(self, target, *arguments)

    monkeypatch.setattr(Image.Image, "save", broken)
    monkeypatch.setattr("os.urandom", lambda n: b"\0" * n)  # names of temporary files without a 3
    refused(fcn("segment", "in", *NET_FILES, "--out", "out"), "out/3.png", "no space left")
    for path in (tmp_path / "out").iterdir():
        assert np.asarray(Image.open(path)).size and path.stem in "012456"


def test_what_exists_is_skipped(fcn: Fcn, tmp_path: Path) -> None:
    assert fcn("segment", "in/1.png", "in/4.png", *NET_FILES, "--out", "out").exit_code == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    refused(fcn("segment", "in", *NET_FILES, "--out", "out"), "out/1.png", "the file exists")
    done = fcn("segment", "in", *NET_FILES, "--out", "out", "--skip-existing", "--json")
    report = json.loads(done.stdout)
    assert report["skipped"] == ["in/1.png", "in/4.png"] and len(report["images"]) == 5
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert before.items() <= after.items() and len(after) == 7
    done = fcn("segment", "in", *NET_FILES, "--out", "out", "--skip-existing")
    assert (done.exit_code, done.stdout) == (0, "skipped 7 that exist\n")
    done = fcn("segment", "in", *NET_FILES, "--out", "out", "--skip-existing", "--overlay", "--json")
    assert len(json.loads(done.stdout)["images"]) == 7  # an overlay is missing: both are written


def test_folders_that_are_refused(fcn: Fcn, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(fcn("segment", "empty", *NET_FILES, "--out", "out"), "empty: no pictures in this folder")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "in/1.jpg")
    refused(fcn("segment", "in", *NET_FILES, "--out", "out"), "in/1.jpg and in/1.png would both")
    (tmp_path / "in/1.jpg").unlink()
    refused(fcn("segment", "in", *NET_FILES, "--out", "in", "--skip-existing"), "the picture itself")
    refused(fcn("segment", "none.png", *NET_FILES, "--out", "in", "--force"), "none.png: no such file")


def test_threads_end(fcn: Fcn) -> None:
    before = set(threading.enumerate())  # those of other tests
    fcn("segment", "in", *NET_FILES, "--out", "out", "--workers", "4")
    assert not [thread for thread in set(threading.enumerate()) - before if "ThreadPool" in thread.name]
