"""Other sides of the parity check: the script for another interpreter, its crashes, OpenCV's and our own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caffe_nets import colours_net, save_net

from caffe_weights.errors import InputError
from reproduce.parity import caffe_worker
from reproduce.parity.case import Request, make_case
from reproduce.parity.check import check
from reproduce.parity.oracles import OracleError, ask_opencv

GLOG = "F1121 03:23:45.123456 42 net.cpp:776] Check failed: target_blobs.size() == 2 (1 vs. 2)"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    net, weights = save_net(tmp_path, colours_net())
    return str(net), str(weights)


def program(folder: Path, lines: str) -> str:
    """An executable that runs these lines of Python instead of the script it is given."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport sys, os, time\n{lines}\n")
    path.chmod(0o755)
    return str(path)


class TestWorker:
    """The script against a stand-in for pycaffe, in another process."""

    @pytest.fixture
    def arrays(self, tmp_path: Path) -> dict[tuple[str, str, Any], np.ndarray]:
        meta = {"phase": "TEST", "backward": True, "weights": "model.caffemodel"}
        data, seed = np.array([[1, -2, 3, -4]], np.float32), np.array([[1, 10, 100, 1000]], np.float32)
        request: Any = {"in/data": data, "seed/sum": seed, "meta": np.array(json.dumps(meta))}
        np.savez(tmp_path / "request.npz", **request)
        (tmp_path / "caffe.py").write_text(Path(__file__).with_name("fake_caffe.py").read_text())
        command = [sys.executable, caffe_worker.__file__, str(tmp_path)]
        environment = {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answer = np.load(tmp_path / "answer.npz")
        self.meta = json.loads(str(answer["meta"]))
        return {(kind, layer, name): answer[m] for m, kind, layer, name in self.meta["arrays"]}

    def test_every_content_of_an_in_place_blob(self, arrays: dict[Any, np.ndarray]) -> None:
        assert arrays["blob", "double", "a"].tolist() == [[2, -4, 6, -8]]
        assert arrays["blob", "relu", "a"].tolist() == [[2, 0, 6, 0]]
        assert arrays["blob", "sum", "sum"].tolist() == [[2.5, -1, 7.5, -2]]
        assert not any(layer == "split" for _, layer, _ in arrays)

    def test_gradients_of_each_content_and_of_parameters(self, arrays: dict[Any, np.ndarray]) -> None:
        assert arrays["gradient", "relu", "a"].tolist() == [[1, 10, 100, 1000]]
        assert arrays["gradient", "double", "a"].tolist() == [[1, 0, 100, 0]]
        assert arrays["gradient", "in", "data"].tolist() == [[2, 0, 200, 0]]
        assert arrays["parameter_gradient", "double", 0].tolist() == [301]

    def test_a_gradient_that_was_not_computed_is_left_out(self, arrays: dict[Any, np.ndarray]) -> None:
        assert ("gradient", "half", "b") not in arrays

    def test_runs_in_old_interpreters(self) -> None:
        """Nothing newer than Python 3.6 in its syntax, nothing but numpy and caffe imported."""
        import ast

        tree = ast.parse(Path(caffe_worker.__file__).read_text(), feature_version=(3, 6))
        names = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        assert names - {"numpy", "caffe"} <= set(sys.stdlib_module_names)


class TestCrashes:
    def refused(self, files: tuple[str, str], python: str, words: str, timeout_s: float = 60) -> None:
        with pytest.raises(OracleError, match=words) as caught:
            check(Request(*files), f"caffe:{python}", timeout_s=timeout_s)
        assert "\n" not in str(caught.value)

    def test_last_words_of_a_failed_check(self, files: tuple[str, str], tmp_path: Path) -> None:
        text = f"{GLOG}\\n*** Check failure stack trace: ***\\n    @ 0x7f1 google::LogMessage::Fail()"
        python = program(
            tmp_path, f"print({text!r}.replace(chr(92) + 'n', chr(10)), file=sys.stderr)\nos.abort()"
        )
        self.refused(files, python, r"SIGABRT.*Check failed: target_blobs.size\(\) == 2 \(1 vs. 2\)")

    def test_last_line_of_a_traceback(self, files: tuple[str, str], tmp_path: Path) -> None:
        python = program(tmp_path, "raise ImportError('No module named caffe')")
        self.refused(files, python, "exit code 1.*No module named caffe")

    def test_silence(self, files: tuple[str, str], tmp_path: Path) -> None:
        self.refused(files, program(tmp_path, "sys.exit(3)"), "exit code 3, its last words: none")

    def test_no_answer(self, files: tuple[str, str], tmp_path: Path) -> None:
        self.refused(files, program(tmp_path, "pass"), "ended without an answer")

    def test_too_long(self, files: tuple[str, str], tmp_path: Path) -> None:
        start = time.monotonic()
        self.refused(files, program(tmp_path, "time.sleep(100)"), "no answer after 0.5 s", timeout_s=0.5)
        assert time.monotonic() - start < 50  # it was ended, not waited for

    def test_no_such_program(self, files: tuple[str, str]) -> None:
        self.refused(files, "no-such-python", "no such program")

    def test_a_command_line_with_arguments(self, files: tuple[str, str], tmp_path: Path) -> None:
        python = program(tmp_path, "sys.exit('given ' + sys.argv[1])")
        self.refused(files, f"{python} -i", "given -i")


class TestOurs:
    @pytest.mark.parametrize("settings", ["", ":threads=1", ":precision=float64", ":device=cpu", ":frame=on"])
    def test_settings_that_change_no_number(self, files: tuple[str, str], settings: str) -> None:
        report = check(Request(*files, backward=True), f"self{settings}")
        assert report.passed
        assert any(row.state == "agree" for row in report.gradients)

    def test_bfloat16_is_measured(self, tmp_path: Path) -> None:
        net = colours_net()
        net.layer[1].blobs[0].data[0] = 1.001  # between two numbers of 8 bits
        paths = save_net(tmp_path, net)
        report = check(Request(str(paths[0]), str(paths[1])), "self:precision=bf16")
        assert not report.passed
        assert report.guilty is not None
        assert report.guilty.suspects == ("score",)
        assert 1e-4 < report.guilty.row.difference.relative < 2**-7  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        "settings", ["speed=1", "precision=int3", "threads=0", "device=nowhere", "frame=x"]
    )
    def test_settings_refused(self, files: tuple[str, str], settings: str) -> None:
        with pytest.raises(InputError):
            check(Request(*files), f"self:{settings}")

    def test_the_shortcut_over_the_border_is_seen_through(self, own_goldens: Path) -> None:
        stem = own_goldens / "nets" / "fcn8s"
        request = Request(f"{stem}.prototxt", f"{stem}.caffemodel.gz", size=(64, 80), backward=True)
        report = check(request, "self:frame=on")
        assert report.passed
        assert sum(row.their_shape is not None for row in report.rows) >= 30


class TestOpenCv:
    @pytest.fixture(autouse=True)
    def opencv(self) -> None:
        pytest.importorskip("cv2", reason="OpenCV is not installed")

    def test_its_contents_are_those_before_fusion(self, own_goldens: Path) -> None:
        stem = own_goldens / "nets" / "fcn32s"
        request = Request(f"{stem}.prototxt", f"{stem}.caffemodel.gz", deploy_only=True)
        blobs = ask_opencv(make_case(request)).blobs
        before, after = blobs["conv1_1", "conv1_1"], blobs["relu1_1", "conv1_1"]
        assert isinstance(before, np.ndarray) and isinstance(after, np.ndarray)
        assert before.min() < 0
        assert np.array_equal(np.maximum(before, 0), after)

    @pytest.mark.parametrize("options", [{"backward": True}, {"phase": "TRAIN"}])
    def test_it_only_infers(self, files: tuple[str, str], options: dict[str, Any]) -> None:
        with pytest.raises(OracleError, match="only infers"):
            check(Request(*files, **options), "opencv")


@pytest.mark.parametrize("against", ["", "caffe", "caffe:", "blobs:", "tensorflow", "opencv:4", "float64:x"])
def test_an_oracle_that_is_none(files: tuple[str, str], against: str) -> None:
    with pytest.raises(InputError, match="--against"):
        check(Request(*files), against)
