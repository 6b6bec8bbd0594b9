"""Segmenting and classifying pictures with nets so small that the answer is seen by eye.

`colours` has a score per channel, equal to the channel: the label of a pixel is its strongest channel, in
BGR order. `mean colour` averages each channel over the picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from caffe_nets import colours_net, save_net

from caffe_weights.errors import InputError, NetError
from caffe_weights.weights import Weights
from reproduce.classify import class_scores, top_predictions
from reproduce.definition import check_blobs, load_definition, pick_output
from reproduce.images import Preprocess
from reproduce.inference import forward, pick_device, picture_net
from reproduce.net import Net
from reproduce.segment import segment

RGB = np.array([[[200, 10, 20], [10, 200, 20]], [[10, 20, 200], [0, 0, 1]]], np.uint8)
PYTHON_DATA = 'type: "Python" top: "data" top: "label" python_param { module: "m" layer: "L" }'
MEAN_COLOUR = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 2 dim: 2 } } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { pool: AVE kernel_size: 2 } }
"""


@pytest.fixture
def colours(tmp_path: Path) -> tuple[Path, Path]:
    return save_net(tmp_path, colours_net())


def test_label_is_the_strongest_channel(colours: tuple[Path, Path]) -> None:
    picture = picture_net(*colours)
    labels, classes = segment(picture.net, picture.input, picture.output, RGB, Preprocess())
    assert labels.tolist() == [[2, 1], [0, 0]]
    assert labels.dtype == np.uint8
    assert classes == 3


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (31, 17)])
def test_any_size_runs_at_the_pictures_own(colours: tuple[Path, Path], size: tuple[int, int]) -> None:
    picture = picture_net(*colours)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    labels, _ = segment(picture.net, picture.input, picture.output, image, Preprocess("rgb"))
    assert (labels == image.argmax(2)).all()


def test_a_score_of_another_size_is_refused(tmp_path: Path) -> None:
    picture = picture_net(*save_net(tmp_path, colours_net(stride=2)))
    with pytest.raises(NetError, match="1 x 3 x 1 x 1; wanted 1 x classes x 2 x 2"):
        segment(picture.net, picture.input, picture.output, RGB, Preprocess())


def test_one_channel_is_no_segmentation(tmp_path: Path) -> None:
    picture = picture_net(*save_net(tmp_path, colours_net(classes=1)))
    with pytest.raises(NetError, match="1 channels"):
        segment(picture.net, picture.input, picture.output, RGB, Preprocess())


def test_train_net_runs_in_its_deploy_form(tmp_path: Path) -> None:
    train = colours_net(data=PYTHON_DATA, loss=True)
    definition = load_definition(save_net(tmp_path, train)[0])
    assert definition.inputs == {"data": None}
    assert not definition.whole
    picture = picture_net(*save_net(tmp_path, train))
    assert (picture.input, picture.output, picture.size) == ("data", "score", None)
    labels, _ = segment(picture.net, picture.input, picture.output, RGB, Preprocess())
    assert labels.tolist() == [[2, 1], [0, 0]]


def test_all_inputs_given_makes_the_net_whole(tmp_path: Path) -> None:
    train = colours_net(data=PYTHON_DATA, loss=True)
    assert load_definition(save_net(tmp_path, train)[0], ["data", "label"]).whole


def test_outputs_are_picked_by_name() -> None:
    assert pick_output(["a"], None, "score") == "a"
    assert pick_output(["a", "score"], None, "score") == "score"
    assert pick_output(["a", "b"], "c", "score") == "c"
    with pytest.raises(InputError, match=r"2 outputs \(a, b\); wanted one; name it with --blob"):
        pick_output(["a", "b"], None, "score")


def test_unknown_blob_names_the_nearest(colours: tuple[Path, Path]) -> None:
    with pytest.raises(NetError, match="no blob 'scores'; wanted score"):
        check_blobs(load_definition(colours[0]), ["scores"])


def test_a_loss_wants_labels(tmp_path: Path) -> None:
    definition = load_definition(save_net(tmp_path, colours_net(data=PYTHON_DATA, loss=True))[0])
    with pytest.raises(NetError, match="blob 'loss' is only made from labels"):
        check_blobs(definition, ["score", "loss"])


def test_class_scores_are_the_mean_colour(tmp_path: Path) -> None:
    (tmp_path / "x.prototxt").write_text(MEAN_COLOUR)
    net = Net.from_prototxt(tmp_path / "x.prototxt")
    scores, positions = class_scores(net, "data", "pool", RGB, Preprocess())
    assert positions == 1
    np.testing.assert_allclose(scores, RGB.reshape(4, 3).mean(0)[::-1])


def test_a_map_of_scores_is_averaged(colours: tuple[Path, Path]) -> None:
    picture = picture_net(*colours)
    scores, positions = class_scores(picture.net, "data", "score", RGB, Preprocess("rgb"))
    assert positions == 4
    np.testing.assert_allclose(scores, RGB.reshape(4, 3).mean(0))


def test_top_predictions_take_the_smaller_label_of_equals() -> None:
    best = top_predictions(np.array([0.2, 0.5, 0.5, 0.1]), 3, ("a", "b"))
    assert [(p.label, p.name, p.score) for p in best] == [(1, "b", 0.5), (2, "", 0.5), (0, "a", 0.2)]


def test_a_device_that_is_not_there() -> None:
    for name in ("nonsense", "cuda:99"):
        with pytest.raises(InputError, match=f"--device {name}") as caught:
            pick_device(name)
        assert "\n" not in str(caught.value)


def test_out_of_memory_is_one_line(colours: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    net = picture_net(*colours).net

    def full(*args: object, **blobs: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(type(net), "forward", full)
    with pytest.raises(InputError, match="data of 1x3x2x2: not enough memory"):
        forward(net, {"data": np.zeros((1, 3, 2, 2), np.float32)})


def test_extra_weights_are_passed_over_as_in_caffe(colours: tuple[Path, Path]) -> None:
    definition = load_definition(colours[0])
    weights = Weights(
        {"score": [np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)], "other": [np.ones(3, np.float32)]}
    )
    assert Net(definition.net, weights).outputs == ["score"]
