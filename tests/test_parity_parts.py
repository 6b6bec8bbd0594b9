"""Parts of the parity check: measures by hand, blame on paper, stored files, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from caffe_nets import colours_net, save_net
from google.protobuf import text_format

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import InputError
from reproduce.parity.blame import backward_cells, find_faults, forward_cells, versions
from reproduce.parity.case import Request, make_case
from reproduce.parity.check import check
from reproduce.parity.measure import Probe, flips, measure

IN_PLACE = """
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: [1, 2] } } }
layer { name: "conv" type: "TanH" bottom: "data" top: "a" }
layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "left" type: "AbsVal" bottom: "a" top: "b" }
layer { name: "right" type: "Sigmoid" bottom: "a" top: "c" }
layer { name: "sum" type: "Eltwise" bottom: "b" bottom: "c" top: "d" }
"""


def f32(*values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def parse(text: str) -> NetParameter:
    return text_format.Parse(text, NetParameter())


class TestMeasure:
    def test_worst_absolute_and_relative_by_hand(self) -> None:
        found = measure(f32([1.0, 2.5], [4.0, 0.5]), f32([1.0, 2.0], [5.0, 0.5]), 0.15)
        assert (found.absolute, found.absolute_at, found.absolute_values) == (1.0, (1, 0), (4.0, 5.0))
        assert (found.relative, found.relative_at) == (0.2, (1, 0))
        assert (found.of_largest, found.share, found.elements) == (0.2, 0.25, 4)

    def test_a_small_channel_counts_by_its_own_size(self) -> None:
        want = np.stack([np.full((2, 2), 1000.0), np.full((2, 2), 0.5)]).astype(np.float32)[None]
        got = want.copy()
        got[0, 1, 0, 1] += 0.25
        assert measure(got, want, 1e-5).relative == 0.5
        assert measure(got, want, 1e-5, channels=False).relative == 0.00025

    def test_one_step_of_float32_is_one_ulp(self) -> None:
        want = f32(1.5, -3.0, 1024.0)
        got = np.nextafter(want, np.float32(np.inf))
        found = measure(got, want, 1e-5)
        assert found.ulp == 1.0
        assert found.ulp_of_largest == 1.0

    def test_a_number_against_a_nan_is_infinitely_far(self) -> None:
        nan = np.nan
        assert measure(f32(1.0, nan), f32(1.0, nan), 1e-5).relative == 0
        found = measure(f32(1.0, nan), f32(1.0, 2.0), 1e-5)
        assert (found.relative, found.relative_at) == (np.inf, (1,))

    def test_a_probe_compares_its_values_and_the_norm_of_all(self) -> None:
        got = f32(3.0, 4.0, 0.0, 0.0)
        same = Probe((4,), np.array([0, 2]), f32(3.0, 0.0), 7.0, 5.0)
        assert measure(got, same, 1e-5).relative == 0
        off = Probe((4,), np.array([0, 2]), f32(3.0, 1.0), 7.0, 5.0)
        assert (measure(got, off, 1e-5).relative, measure(got, off, 1e-5).relative_at) == (0.25, (2,))
        elsewhere = Probe((4,), np.array([0, 2]), f32(3.0, 0.0), 7.0, 10.0)
        assert measure(got, elsewhere, 1e-5).relative == 0.5

    def test_flipped_labels_and_how_near_the_ties_were(self) -> None:
        want = np.array([[[4.0, 1.0, 8.0]], [[3.0, 1.0 - 1e-7, 2.0]]], np.float32).transpose(1, 0, 2)
        got = want[:, ::-1].copy()
        got[0, :, 2] = want[0, :, 2]
        found = flips(got, want, 1e-5)
        assert found is not None
        assert (found.labels, found.flipped, found.clear) == (3, 2, 1)
        assert (found.gap, found.at) == (0.125, (0, 0))
        assert flips(f32([1.0]), f32([2.0]), 1e-5) is None


class TestBlame:
    story = versions(parse(IN_PLACE))
    cells = forward_cells(story)

    def fault(self, **states: Any) -> tuple[tuple[str, ...], bool]:
        named: Any = {v.key: states[v.layer] for v in self.story if v.layer in states}
        first = find_faults(self.cells, named)[0]
        return first.suspects, first.inputs_agreed

    def test_contents_of_an_in_place_blob_are_told_apart(self) -> None:
        assert [v.words for v in self.story] == ["data", "a after conv", "a after relu", "b", "c", "d"]
        assert [v.final for v in self.story] == [True, False, True, True, True, True]

    def test_the_layer_whose_inputs_agree_is_guilty(self) -> None:
        agree = {"in": "agree", "conv": "agree", "relu": "agree", "left": "agree"}
        assert self.fault(**agree, right="differ", sum="differ") == (("right",), True)

    def test_layers_between_which_nothing_is_known_are_all_suspect(self) -> None:
        states = {"in": "agree", "relu": "differ", "left": "differ", "right": "differ", "sum": "differ"}
        assert self.fault(**states) == (("conv", "relu"), True)

    def test_unknown_branches_are_suspect_too(self) -> None:
        states = {"in": "agree", "conv": "agree", "relu": "agree", "sum": "differ"}
        assert self.fault(**states) == (("left", "right", "sum"), True)

    def test_a_successor_is_no_fault_of_its_own(self) -> None:
        states = {"in": "agree", "conv": "differ", "relu": "differ"}
        named: Any = {v.key: states[v.layer] for v in self.story if v.layer in states}
        faults = find_faults(self.cells, named)
        assert [fault.inputs_agreed for fault in faults] == [True, False]

    def test_backward_a_gradient_comes_from_all_readers(self) -> None:
        cells = backward_cells(self.story, [("conv", 0)])
        agree = {("gradient", "sum", "d"), ("gradient", "left", "b"), ("gradient", "right", "c")}
        states: Any = {**dict.fromkeys(agree, "agree"), ("gradient", "relu", "a"): "differ"}
        assert find_faults(cells, states)[0].suspects == ("left", "right")
        states[("gradient", "relu", "a")] = states[("gradient", "conv", "a")] = "agree"
        states[("parameter", "conv", "0")] = "differ"
        assert find_faults(cells, states)[0].suspects == ("conv",)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """colours_net: scores are the three channels of a 2 x 2 picture."""
    net, weights = save_net(tmp_path, colours_net())
    return str(net), str(weights)


PICTURE = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)


def save(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


class TestStored:
    def passed(self, files: tuple[str, str], path: Path, **options: Any) -> bool:
        return check(Request(*files, **options), f"blobs:{path}").passed

    def test_names_as_fcn_run_and_goldens_have_them(self, files: tuple[str, str], tmp_path: Path) -> None:
        for key in ("score", "out/score", "blob/score", "score@score"):
            save(tmp_path / "x.npz", {"in/data": PICTURE, key: PICTURE})
            assert self.passed(files, tmp_path / "x.npz")
            save(tmp_path / "x.npz", {"in/data": PICTURE, key: PICTURE + 1})
            assert not self.passed(files, tmp_path / "x.npz")

    def test_no_input_is_made_up_beside_blobs(self, files: tuple[str, str], tmp_path: Path) -> None:
        save(tmp_path / "x.npz", {"score": PICTURE})  # as fcn run leaves them
        np.save(tmp_path / "in.npy", PICTURE)
        with pytest.raises(InputError, match=r"x\.npz: no input .* beside its blobs; .* --input"):
            self.passed(files, tmp_path / "x.npz")
        assert self.passed(files, tmp_path / "x.npz", inputs=[str(tmp_path / "in.npy")])

    def test_hdf5(self, files: tuple[str, str], tmp_path: Path) -> None:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["in/data"], file["out/score"] = PICTURE, PICTURE
        assert self.passed(files, tmp_path / "x.h5")

    def test_another_shape_is_no_agreement(self, files: tuple[str, str], tmp_path: Path) -> None:
        save(tmp_path / "x.npz", {"in/data": PICTURE, "score": PICTURE[..., :1]})
        report = check(Request(*files), f"blobs:{tmp_path}/x.npz")
        assert [row.state for row in report.rows] == ["agree", "shape"]
        assert report.guilty is not None
        assert report.guilty.suspects == ("score",)

    def test_keys_of_other_things_are_named(self, files: tuple[str, str], tmp_path: Path) -> None:
        save(tmp_path / "x.npz", {"in/data": PICTURE, "score": PICTURE, "out/score_sub8": PICTURE})
        report = check(Request(*files), f"blobs:{tmp_path}/x.npz")
        assert any("out/score_sub8" in note for note in report.notes)

    @pytest.mark.parametrize(
        ("arrays", "words"),
        [
            ({"other": PICTURE}, "blobs of the net"),
            ({"score": np.array(["x"])}, "numbers"),
            ({"in/data": PICTURE}, "no blob in common"),
            (
                {"probe/score/idx": np.array([99]), "probe/score/val": f32(1.0), "probe/score/sum": f32(1.0),
                 "probe/score/norm": f32(1.0), "probe/score/shape": np.array([1, 3, 2, 2])},
                "do not fit its shape",
            ),
        ],
    )  # fmt: skip
    def test_refused(
        self, files: tuple[str, str], tmp_path: Path, arrays: dict[str, np.ndarray], words: str
    ) -> None:
        save(tmp_path / "x.npz", arrays)
        with pytest.raises(InputError, match=words):
            self.passed(files, tmp_path / "x.npz")

    @pytest.mark.parametrize(
        "content", [b"", b"no archive", b"\x93NUMPY\x01\x00", b"PK\x03\x04broken", b"\x89HDF\r\n\x1a\nbroken"]
    )
    def test_no_file_of_blobs(self, files: tuple[str, str], tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(InputError, match="no file of blobs") as caught:
            self.passed(files, tmp_path / "x.npz")
        assert "pickle" not in str(caught.value) and "attribute" not in str(caught.value)

    def test_another_input_than_the_stored_is_refused(self, files: tuple[str, str], tmp_path: Path) -> None:
        save(tmp_path / "x.npz", {"in/data": PICTURE, "score": PICTURE})
        np.save(tmp_path / "same.npy", PICTURE)
        np.save(tmp_path / "other.npy", PICTURE + 1)
        assert self.passed(files, tmp_path / "x.npz", inputs=[f"{tmp_path}/same.npy"])
        with pytest.raises(InputError, match="stored"):
            self.passed(files, tmp_path / "x.npz", inputs=[f"{tmp_path}/other.npy"])


class TestCase:
    @pytest.mark.parametrize("deploy_only", [False, True])  # True: against OpenCV
    def test_random_inputs_are_the_same_for_one_seed(self, files: tuple[str, str], deploy_only: bool) -> None:
        first, again, other = (
            make_case(Request(*files, inputs=[f"random:{seed}"], size=(4, 5), deploy_only=deploy_only))
            for seed in (7, 7, 8)
        )
        assert first.inputs["data"].shape == (1, 3, 4, 5)
        assert first.digests() == again.digests() != other.digests()

    def test_labels_are_drawn_where_gradients_are_asked_for(self, tmp_path: Path) -> None:
        net = colours_net(loss=True)
        net.layer[0].top.append("label")
        net.layer[0].input_param.shape.add(dim=[1, 1, 2, 2])
        paths = save_net(tmp_path, net)
        request = Request(str(paths[0]), str(paths[1]))
        assert set(make_case(request).inputs) == {"data"}
        assert set(make_case(replace(request, inputs=["random:7"])).inputs) == {"data"}  # no labels named
        whole = make_case(Request(str(paths[0]), str(paths[1]), backward=True))
        assert set(whole.inputs) == {"data", "label"}
        assert set(whole.inputs["label"].ravel()) <= {0.0, 1.0, 2.0}

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"inputs": ["random:x"]}, "whole number"),
            ({"inputs": ["nothing=random"]}, "one of data"),
            ({"inputs": ["data=random", "random", "random"]}, "two values"),
            ({"inputs": ["absent.npy"]}, "absent.npy"),
        ],
    )
    def test_refused(self, files: tuple[str, str], options: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            make_case(Request(*files, **options))

    def test_chance_is_refused(self, tmp_path: Path) -> None:
        net = colours_net()
        net.layer.add(name="drop", type="Dropout", bottom=["score"], top=["score"])
        paths = save_net(tmp_path, net)
        request = Request(str(paths[0]), str(paths[1]), phase="TRAIN")
        with pytest.raises(InputError, match="drop .*random"):
            make_case(request)

    def test_a_net_without_a_loss_is_given_random_gradients(self, files: tuple[str, str]) -> None:
        report = check(Request(*files, backward=True), "float64")
        assert report.passed
        assert [row.words for row in report.gradients] == ["d score", "d score parameter 0", "d data"]
        assert all(row.state == "agree" for row in report.gradients)
