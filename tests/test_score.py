"""Scores against the reference's own formula, scikit-learn and fractions; label maps; `fcn score`."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix

from caffe_weights.errors import InputError
from reproduce import cli
from reproduce.label_maps import find_pairs, read_label_map
from reproduce.score import ABSENT_RULES, histogram, score
from reproduce.visualize import write_label_png


def plain_scores(truth: np.ndarray, prediction: np.ndarray, classes: int, rule: str) -> dict[str, float]:
    """The four metrics class by class over masks of pixels, in exact fractions."""
    kept = truth != 255
    truth, prediction = truth[kept], prediction[kept]
    accuracies, ius, weighted = [], [], Fraction(0)
    for label in range(classes):
        is_label, said = truth == label, prediction == label
        both, either = int((is_label & said).sum()), int((is_label | said).sum())
        if is_label.any():
            accuracies.append(Fraction(both, int(is_label.sum())))
            weighted += Fraction(int(is_label.sum()), truth.size) * Fraction(both, either)
        if is_label.any() or (rule == "zero" and either):
            ius.append(Fraction(both, either))
    nan = math.nan
    return {
        "pixel_accuracy": float(np.mean(truth == prediction)) if truth.size else nan,
        "mean_accuracy": float(sum(accuracies) / len(accuracies)) if accuracies else nan,
        "mean_iu": float(sum(ius) / len(ius)) if ius else nan,
        "frequency_weighted_iu": float(weighted) if truth.size else nan,
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from(list(ABSENT_RULES)))
def test_random_maps_in_exact_fractions(classes: int, seed: int, rule: str) -> None:
    draw = np.random.default_rng(seed)
    some = draw.integers(0, classes, max(1, classes // 2))  # so that classes are absent, or only predicted
    truth = draw.choice(np.append(some, 255), (7, 9))
    prediction = np.where(draw.random((7, 9)) < 0.5, truth % classes, draw.integers(0, classes, (7, 9)))
    want = plain_scores(truth, prediction, classes, rule)
    found = score(histogram(truth, prediction, classes), rule).metrics()
    assert found == pytest.approx(want, rel=1e-14, nan_ok=True)


def test_reference_formula() -> None:
    draw = np.random.default_rng(5)
    truth, prediction = draw.integers(0, 6, (50, 60)), draw.integers(0, 7, (50, 60))
    hist = confusion_matrix(truth.ravel(), prediction.ravel(), labels=range(8)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        iu = np.diag(hist) / (hist.sum(1) + hist.sum(0) - np.diag(hist))
        accuracy = np.diag(hist) / hist.sum(1)
    frequency = hist.sum(1) / hist.sum()
    counts = histogram(truth, prediction, 8)
    np.testing.assert_array_equal(counts, hist)
    found = score(counts)
    assert found.pixel_accuracy == pytest.approx(np.diag(hist).sum() / hist.sum(), rel=1e-14)
    assert found.mean_accuracy == pytest.approx(np.nanmean(accuracy), rel=1e-14)
    assert found.mean_iu == pytest.approx(np.nanmean(iu), rel=1e-14)  # class 6 counts 0, class 7 not
    assert found.frequency_weighted_iu == pytest.approx((frequency * iu)[frequency > 0].sum(), rel=1e-14)
    assert score(counts, "skip").mean_iu == pytest.approx(np.mean(iu[:6]), rel=1e-14)


def test_worked_by_hand() -> None:
    # truth: two of class 0, one of class 1; class 2 is only predicted, class 3 nowhere
    counts = histogram(np.array([0, 0, 1, 255]), np.array([0, 2, 1, 3]), 4)
    zero, skip = score(counts), score(counts, "skip")
    assert zero.pixels == 3
    assert zero.pixel_accuracy == 2 / 3
    assert zero.mean_accuracy == (1 / 2 + 1) / 2
    assert zero.mean_iu == (1 / 2 + 1 + 0) / 3
    assert skip.mean_iu == (1 / 2 + 1) / 2
    assert zero.frequency_weighted_iu == skip.frequency_weighted_iu == pytest.approx((2 * 0.5 + 1) / 3)
    assert math.isnan(zero.per_class[2].accuracy) and zero.per_class[2].iu == 0
    assert math.isnan(zero.per_class[3].iu)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32])
def test_tensors_of_any_type(dtype: torch.dtype) -> None:
    draw = np.random.default_rng(1)
    truth, prediction = draw.integers(0, 200, (2, 20, 20)), draw.integers(0, 200, (2, 20, 20))
    truth[0, :5] = 255
    found = histogram(torch.from_numpy(truth).to(dtype), torch.from_numpy(prediction).to(dtype), 200)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), histogram(truth, prediction, 200))
    assert score(found) == score(histogram(truth.astype(np.uint8), prediction.astype(np.uint8), 200))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_the_device() -> None:
    maps = [torch.randint(0, 21, (300, 300)) for _ in range(2)]
    found = histogram(maps[0].cuda(), maps[1].cuda(), 21)
    assert found.is_cuda
    assert found.cpu().equal(histogram(maps[0], maps[1], 21))


def test_histograms_add_up() -> None:
    draw = np.random.default_rng(2)
    maps = draw.integers(0, 5, (2, 4, 30))
    parts = sum(histogram(maps[0, i], maps[1, i], 5) for i in range(4))
    np.testing.assert_array_equal(parts, histogram(maps[0], maps[1], 5))


def test_other_labels_ignored() -> None:
    counts = histogram(np.array([0, 11, 12, 1]), np.array([0, 99, 99, 1]), 2, ignore=(11, 12))
    np.testing.assert_array_equal(counts, np.eye(2))


def test_nothing_counts() -> None:
    found = score(histogram(np.full(3, 255), np.zeros(3, int), 2))
    assert found.pixels == 0
    assert all(math.isnan(value) for value in found.metrics().values())


ZEROS = np.zeros((2, 3), np.int64)


@pytest.mark.parametrize(
    ("truth", "prediction", "classes", "message"),
    [
        (ZEROS, ZEROS.T, 2, "prediction: size 3x2; wanted 2x3, as the truth"),
        (ZEROS, ZEROS, 0, "classes: 0; wanted 1 to 4096"),
        (ZEROS, ZEROS, 10**9, "classes: 1000000000; wanted 1 to 4096"),
        (ZEROS + 0.5, ZEROS, 2, "truth: labels with fractions"),
        ([[0, 0, 0], [0, 0, 7]], ZEROS, 7, "truth at row 1, column 2: label 7; wanted 0 to 6; correct"),
        (ZEROS, [[0, 255, 0], [0, 0, 0]], 7, "prediction at row 0, column 1: label 255; wanted 0 to 6"),
        (ZEROS, ZEROS - 1, 7, "prediction at row 0, column 0: label -1"),
    ],
)
@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_bad_labels(make: Any, truth: Any, prediction: Any, classes: int, message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        histogram(make(truth), make(prediction), classes)


def test_unknown_rule() -> None:
    with pytest.raises(InputError, match="absent: 'none'; wanted zero or skip"):
        score([[1]], "none")


# ---- label maps ----

# The first colours of the VOC development kit, as its documentation lists them.
VOC_COLOURS = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128),
               255: (224, 224, 192)}  # fmt: skip


def test_reads_every_kind_of_map(tmp_path: Path) -> None:
    labels = np.array([list(VOC_COLOURS)] * 2)
    colours = np.array([[VOC_COLOURS[label] for label in row] for row in labels], np.uint8)
    write_label_png(labels, tmp_path / "palette.png")
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "gray.png")
    Image.fromarray(labels.astype(np.uint16) + 300).save(tmp_path / "deep.png")
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    Image.fromarray(colours).convert("RGBA").save(tmp_path / "rgba.png")
    Image.fromarray(labels > 0).save(tmp_path / "bits.png")
    for name in ("palette", "gray", "rgb", "rgba"):
        np.testing.assert_array_equal(read_label_map(tmp_path / f"{name}.png"), labels)
    np.testing.assert_array_equal(read_label_map(tmp_path / "deep.png"), labels + 300)
    np.testing.assert_array_equal(read_label_map(tmp_path / "bits.png"), labels > 0)


def test_bad_maps(tmp_path: Path) -> None:
    colours = np.zeros((3, 4, 3), np.uint8)
    colours[2, 1] = (1, 2, 3)
    Image.fromarray(colours).save(tmp_path / "a.png")
    Image.fromarray(colours).save(tmp_path / "a.jpg")
    Image.new("RGBA", (2, 2), (0, 0, 0, 7)).save(tmp_path / "clear.png")
    Image.new("LA", (2, 2)).save(tmp_path / "la.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    (tmp_path / "text.png").write_text("no picture")
    bad = {"a.png": "row 2, column 1: the colour (1, 2, 3); wanted one of VOC's", "a.jpg": "a JPEG",
           "clear.png": "transparent pixels", "la.png": "kind LA", "cut.png": "not a readable",
           "text.png": "unknown format", "none.png": "no such file"}  # fmt: skip
    for name, message in bad.items():
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            read_label_map(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_pairs(tmp_path: Path) -> None:
    for name in ("p/a.png", "p/b.PNG", "p/c.png", "t/a.png", "t/b.png", "p/.hidden.png", "p/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    p, t = tmp_path / "p", tmp_path / "t"
    with pytest.raises(InputError, match=r"t: no c\.png, the partner of .*p.c\.png; wanted a file for each"):
        find_pairs(p, t)
    assert find_pairs(p, t, ["b", "a"]) == [(p / "b.PNG", t / "b.png"), (p / "a.png", t / "a.png")]
    with pytest.raises(InputError, match=r"p: no x\.png and 1 more"):
        find_pairs(p, t, ["x", "y"])
    with pytest.raises(InputError, match="a folder beside a file"):
        find_pairs(p, t / "a.png")
    with pytest.raises(InputError, match="no such file or folder"):
        find_pairs(p / "z", t)
    (p / "b.png").write_text("")
    with pytest.raises(InputError, match=r"both b.PNG and b.png"):
        find_pairs(p, t)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no .png in it"):
        find_pairs(empty, empty)


# ---- the command ----


def run_fcn(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.cli, [str(item) for item in arguments])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    draw = np.random.default_rng(0)
    for folder in ("p", "t"):
        (tmp_path / folder).mkdir()
        for stem in "ab":
            write_label_png(draw.integers(0, 3, (4, 5)), tmp_path / folder / f"{stem}.png")
    return tmp_path / "p", tmp_path / "t"


def test_command_json(folders: tuple[Path, Path]) -> None:
    maps = [np.stack([read_label_map(folder / f"{stem}.png") for stem in "ab"]) for folder in folders]
    report = json.loads(run_fcn("score", *folders, "--classes", "21", "--json").stdout)
    want = plain_scores(maps[1], maps[0], 21, "zero")
    assert {name: report[name] for name in want} == pytest.approx(want)
    assert (report["images"], report["pixels"], report["absent"]) == (2, 40, "zero")
    assert report["per_class"][1]["name"] == "aeroplane"
    assert report["per_class"][20]["iu"] is None


def test_command_says_the_rule(tmp_path: Path) -> None:
    write_label_png(np.array([[0, 0, 1, 2]]), tmp_path / "p.png")
    write_label_png(np.array([[0, 0, 0, 255]]), tmp_path / "t.png")
    (tmp_path / "names").write_text("sky\nsea\nland\n")
    arguments = ("score", str(tmp_path / "p.png"), str(tmp_path / "t.png"), "--classes", "3")
    done = run_fcn(*arguments, "--names", str(tmp_path / "names"))
    lines = done.stdout.splitlines()
    assert lines[0] == "1 image, 3 pixels"
    assert [line.rsplit(maxsplit=1)[0] for line in lines[1:5]] == [
        "pixel accuracy", "mean accuracy", "mean IU", "frequency weighted IU"]  # fmt: skip
    assert [line.split()[-1] for line in lines[1:5]] == ["66.67%", "66.67%", "33.33%", "66.67%"]
    assert lines[5].endswith(
        "a class absent from the truth but predicted counts with IU 0; by rule skip 66.67%"
    )
    assert "sea" in lines[9]
    assert "mean IU                 66.67%" in run_fcn(*arguments, "--absent", "skip").stdout


def test_command_errors(folders: tuple[Path, Path], tmp_path: Path) -> None:
    p, t = folders
    write_label_png(np.full((4, 5), 255), tmp_path / "void.png")
    write_label_png(np.zeros((5, 5)), tmp_path / "other.png")
    (tmp_path / "names").write_text("one\n")
    for arguments, message in {
        (p, t, "--classes", "2"): "label 2; wanted 0 to 1",
        (p, t, "--classes", "0"): "classes: 0; wanted 1 to 4096",
        (p, t, "--classes", "-5"): "classes: -5; wanted 1 to 4096",
        (
            p,
            t,
            "--classes",
            "3",
            "--names",
            tmp_path / "names",
        ): "names: 1 names; wanted 3, one for each class",
        (p / "a.png", tmp_path / "void.png", "--classes", "3"): "void.png: no pixel that counts",
        (p / "a.png", tmp_path / "other.png", "--classes", "3"): "a.png: size 4x5; wanted 5x5, as the truth",
        (p, t / "a.png", "--classes", "3"): "a folder beside a file",
        (p, t): "missing option '--classes'",
    }.items():
        done = run_fcn("score", *arguments)
        assert done.exit_code == 2
        assert message in done.stderr and done.stderr.count("\n") == 1
