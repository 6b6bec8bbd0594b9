"""The demo's model, data and reading; the training script's promises are checked against scikit-learn."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reproduce import demo
from reproduce.demo import NONE, find_digits, next_commands, report, run_demo
from reproduce.demo_segmentation import MODELS, segment_canvases
from reproduce.digits import draw_digit, draw_strip, field_centres
from reproduce.recognition import recognize
from surgery.interpolation import bilinear_weights

DATA = files("reproduce") / "demo_data"
BLOCK = np.zeros((8, 8))
BLOCK[:, 2:6] = 16


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[demo.DemoResult, Path]:
    folder = tmp_path_factory.mktemp("demo")
    return run_demo(folder), folder


def test_demo_checks_hold_and_it_reads(finished: tuple[demo.DemoResult, Path]) -> None:
    result, _ = finished
    assert result.bits_equal
    assert result.worst_difference <= 1e-5
    assert result.passed
    assert result.alone_right >= 0.95 * result.alone_count
    assert result.digits_right >= 0.95 * result.digits_count
    assert result.strips_right >= 0.8 * result.strips_count
    assert len(result.truth) == demo.DIGITS


def test_demo_leaves_what_it_says(finished: tuple[demo.DemoResult, Path]) -> None:
    result, folder = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "digits.caffemodel", "digits.prototxt", "digits.safetensors", "digits-again.caffemodel",
        "digits-conv.prototxt", "digits-conv.safetensors", "digit.png", "strip-input.png", "strip.png",
        "report.md", "canvas.png", "digits-fcn8s.caffemodel", "segmentation.png",
    }  # fmt: skip
    assert Image.open(folder / "strip.png").width > 800
    assert Image.open(folder / "strip-input.png").height == 28
    assert "\n".join(report(result)) + "\n" == (folder / "report.md").read_text()
    for line in next_commands(str(folder))[:4]:
        for word in line.split():
            if str(folder) in word and "scores" not in word and "segmented" not in word:
                assert Path(word).exists()


def test_demo_can_be_run_again(finished: tuple[demo.DemoResult, Path]) -> None:
    result, folder = finished
    assert run_demo(folder).read == result.read


def test_a_failed_check_is_no_pass(finished: tuple[demo.DemoResult, Path]) -> None:
    from dataclasses import replace

    assert not replace(finished[0], bits_equal=False).passed
    assert not replace(finished[0], worst_difference=1.0).passed


def test_shipped_digits_are_real_and_held_out() -> None:
    sklearn = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    from reproduce.demo_data import train

    real = sklearn.load_digits()
    held = np.load(str(DATA / "held_out.npz"))
    assert (held["images"] == real.images[held["index"]]).all()
    assert (held["labels"] == real.target[held["index"]]).all()
    trained_on = train.split()[2][train.HELD_OUT :]
    assert not set(held["index"]) & set(trained_on)
    assert len(held["index"]) == train.SHIPPED


def test_shipped_data_is_small() -> None:
    assert sum(len(item.read_bytes()) for item in DATA.iterdir() if item.is_file()) < 3_200_000
    assert len((DATA / "digits-fcn8s.caffemodel").read_bytes()) < 3_000_000


def test_the_finer_the_stride_the_better(finished: tuple[demo.DemoResult, Path]) -> None:
    result, folder = finished
    found = {stride: scores["mean_iu"] for stride, scores in result.segmentation.items()}
    assert list(found) == ["32s", "16s", "8s"]
    assert found["32s"] < found["16s"] < found["8s"]
    picture = Image.open(folder / "segmentation.png")
    assert picture.width > 800
    assert Image.open(folder / "canvas.png").size == (192, 192)


def test_the_scores_are_those_of_the_label_maps() -> None:
    with np.load(str(DATA / "held_out.npz")) as held:
        segmented = segment_canvases(held["images"], held["labels"], count=2)
    assert segmented.truth.shape == (2, 192, 192)
    for stride, labels in segmented.labels.items():
        right = sum(int((labels[i] == segmented.truth[i]).sum()) for i in range(2))
        assert segmented.scores[stride]["pixel_accuracy"] == pytest.approx(right / labels.size)


def test_the_shipped_fcns_are_the_published_nets_made_narrow() -> None:
    from caffe_weights.export import read_weights

    for name, file in MODELS.values():
        weights = read_weights(str(DATA / file))
        told = recognize(weights)
        widths = {layer.name: layer.convolution_param.num_output for layer in told.net.layer}
        assert (told.name, told.classes) == (name, 11)
        assert (widths["conv1_1"], widths["conv5_3"], widths["fc6"]) == (64 // 12, 512 // 12, 64)
        up = [layer for layer in weights if layer.startswith("upscore")]
        for layer in up:
            kernel = weights[layer][0]
            assert np.array_equal(kernel, bilinear_weights(kernel.shape))
        assert (
            b"reproduce.data" not in DATA.joinpath(file).read_bytes()
        )  # no data layer, no folder of its run


def test_find_digits_splits_at_none_and_takes_the_greatest_sum() -> None:
    says = [NONE, 3, 3, NONE, NONE, 3, 8, 8, NONE, 1]
    prob = np.zeros((11, len(says)))
    prob[says, range(len(says))] = 0.9
    prob[3, 6] = 0.05
    assert find_digits(prob) == [(3, 1, 2), (8, 5, 7), (1, 9, 9)]


def test_find_digits_in_nothing() -> None:
    prob = np.zeros((11, 4))
    prob[NONE] = 1
    assert find_digits(prob) == []


def test_a_digit_is_20_high_centred_and_white_on_black() -> None:
    drawn = draw_digit(BLOCK)
    assert drawn.shape == (28, 28)
    assert drawn.dtype == np.float32
    rows, columns = np.nonzero(drawn)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 23, 9, 18)
    assert drawn.max() == 1
    assert drawn.min() == 0


def test_strip_has_the_gaps_asked_for() -> None:
    strip, centres = draw_strip([BLOCK, BLOCK], [20, 6, 31])
    inked = np.nonzero(strip.max(0))[0]
    assert inked.tolist() == [*range(20, 30), *range(36, 46)]
    assert centres == [24, 40]  # the middle, 24.5, to the even side
    assert strip.shape[1] == 80
    assert (strip.shape[1] - 28) % 4 == 0
    assert strip.shape[1] >= 20 + 10 + 6 + 10 + 31


def test_field_centres() -> None:
    assert field_centres(28).tolist() == [14]
    assert field_centres(140).tolist() == list(range(14, 127, 4))


def test_training_fields_carry_the_class_of_the_digit_in_their_middle() -> None:
    pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    from reproduce.demo_data import train

    images = np.stack([BLOCK] * 3)
    x, y = train.fields(images, np.array([7, 7, 7]), 2, np.random.default_rng(0))
    assert x.shape == (len(y), 1, 28, 28)
    assert set(y.tolist()) == {7, NONE}
    middle = x[:, 0, :, 13:15].max((1, 2))
    assert (middle[y == 7] > 0.9).all()


def test_the_classifier_is_trained_by_fcn_train_on_its_own_layers(tmp_path: Path) -> None:
    from reproduce.demo_data import train

    rng = np.random.default_rng(0)
    images = np.stack([BLOCK] * 3)
    x, y = train.fields(images, np.array([7, 7, 7]), 20, rng)
    weights = train.train(tmp_path, x, y, steps=3)
    assert {name: [blob.shape for blob in blobs] for name, blobs in weights.items()} == {
        "conv1": [(12, 1, 5, 5), (12,)], "conv2": [(24, 12, 5, 5), (24,)],
        "ip1": [(96, 384), (96,)], "ip2": [(11, 96), (11,)],
    }  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert rows[0]["lr"] == pytest.approx(train.RATE)
    assert 0 <= train.score(weights, x, y) <= 1
