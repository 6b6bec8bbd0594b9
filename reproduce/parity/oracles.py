"""The other side: who can say what a net's blobs should be.

opencv        OpenCV 4's dnn and its importer of Caffe nets, in this process, layer fusion off so that every
              layer's result can be had. Inference only, in deploy form.
caffe:PYTHON  an interpreter that can import caffe, as another process (`reproduce.parity.caffe_worker`).
blobs:FILE    blobs stored in an .npz or HDF5 file (`reproduce.parity.stored`).
float64       our own net in double precision.
self:SETTINGS our own net with another device, precision or number of threads, or with the shortcut over the
              constant border (frame=on), of which only final contents can be seen.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from caffe_weights.errors import InputError
from caffe_weights.export import write_weights
from caffe_weights.prototxt import format_net
from reproduce.gpu import arrange
from reproduce.inference import device_of, pick_device
from reproduce.parity import caffe_worker
from reproduce.parity.case import Case, Side
from reproduce.parity.measure import Content
from reproduce.parity.ours import Answer, answer, build, final_answer
from reproduce.precision import Precision

LAST_WORDS = 4  # lines of a crashed interpreter's standard error that are shown
NATIVE = (".caffemodel", ".h5")  # what Caffe reads itself
PRECISIONS = ("float32", "float64", "tf32", "bf16", "fp16")
K = TypeVar("K")


class OracleError(InputError):
    """The other side could not answer."""


class Archive(Mapping[K, Content]):
    """Arrays of an .npz by keys of ours, each read when it is asked for."""

    def __init__(self, file: Any, members: Mapping[K, str]) -> None:
        self.file, self.members = file, dict(members)

    def __getitem__(self, key: K) -> np.ndarray:
        value: np.ndarray = self.file[self.members[key]]
        return value

    def __iter__(self) -> Iterator[K]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


def ask_float64(case: Case) -> Answer:
    """Our own net in double precision."""
    net = build(case.theirs, case.phase).double()
    return answer(net, case.their_inputs, case.backward, case.their_seeds, "our net in float64")


def ask_self(case: Case, settings: str) -> Answer:
    """Our own net with `settings`: KEY=VALUE, comma between; see SETTINGS.

    All precisions but float64 are those of `reproduce.precision`: what `--precision` does is measured.
    """
    chosen = dict(_setting(item) for item in settings.split(",") if item)
    threads = torch.get_num_threads()
    name = f"our net with {settings}" if chosen else "our net again"
    frame, precision = chosen.pop("frame", "off") == "on", chosen.pop("precision", "float32")
    try:
        net = build(case.theirs, case.phase, frame)
        for key, value in chosen.items():
            net = SETTINGS[key](net, value)
        ask = final_answer if frame else answer
        with _computing(net, precision):
            return ask(net, case.their_inputs, case.backward, case.their_seeds, name)
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:120]
        raise OracleError(f"self:{settings}", reason, "settings that can run this net") from None
    finally:
        torch.set_num_threads(threads)


def ask_opencv(case: Case) -> Answer:
    """OpenCV's importer on the same text and weights. OracleError without OpenCV 4, or where it refuses."""
    cv2 = _opencv()
    if case.backward or case.phase == "TRAIN":
        raise OracleError("opencv", "it only infers", "no --backward, and --phase TEST")
    text = np.frombuffer(format_net(case.theirs.net).encode(), np.uint8)
    model = np.frombuffer(_caffemodel_bytes(case.theirs), np.uint8)
    try:
        net = cv2.dnn.readNetFromCaffe(text, model)
        net.enableFusion(False)
        for name, value in case.their_inputs.items():
            net.setInput(value, name)
        made = {layer.name: layer for layer in case.theirs.net.layer if layer.type != "Input"}
        names = [name for name in net.getLayerNames() if name in made]
        results = net.forwardAndRetrieve(names)
    except cv2.error as error:
        raise OracleError("opencv", _one_line(str(error)), "a net that OpenCV's importer can run") from None
    blobs: dict[tuple[str, str], Content] = {}
    for name, tops in zip(names, results, strict=True):
        blobs.update({(name, top): a for top, a in zip(made[name].top, tops, strict=False)})
    absent = [name for name in made if name not in set(names)]
    notes = ["OpenCV ran with layer fusion off, so that every layer's result can be compared"]
    notes += [f"OpenCV has no result of layer {name}" for name in absent]
    return Answer(f"OpenCV {cv2.__version__} (dnn)", blobs, notes=notes)


def ask_caffe(case: Case, python: str, timeout_s: float) -> Answer:
    """Real Caffe in another interpreter. OracleError with its last words where it fails.

    `python` is a program or a command line; everything it needs lies in one temporary folder (TMPDIR says
    where), so that a wrapper around a container has one folder to mount.
    """
    command = [python] if shutil.which(python) else shlex.split(python)
    if not command or not shutil.which(command[0]):
        raise OracleError(f"caffe:{python}", "no such program", "an interpreter that can import caffe")
    with tempfile.TemporaryDirectory(prefix="fcn-parity-") as name:
        folder = Path(name)
        _write_request(case, folder)
        _run([*command, str(folder / "caffe_worker.py"), str(folder)], python, timeout_s)
        try:
            file = np.load(folder / "answer.npz")  # stays readable after its name is gone
            meta = json.loads(str(file["meta"]))
        except (OSError, ValueError, KeyError):
            raise OracleError(f"caffe:{python}", "it ended without an answer", "answer.npz") from None
    kinds: dict[str, dict[Any, str]] = {"blob": {}, "gradient": {}, "parameter_gradient": {}}
    for member, kind, layer, part in meta["arrays"]:
        kinds[kind][layer, part] = member
    blobs, gradients, parameters = (Archive(file, members) for members in kinds.values())
    title = f"Caffe {meta['caffe']} in Python {meta['python']}"
    return Answer(title, blobs, gradients=gradients, parameter_gradients=parameters,
                  parameters=meta["parameters"])  # fmt: skip


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise OracleError(
            "opencv", "OpenCV is not installed", "", "pip install 'opencv-python-headless<5'"
        ) from None
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise OracleError("opencv", f"OpenCV {cv2.__version__} has no importer of Caffe nets", "OpenCV 4")
    return cv2


def _caffemodel_bytes(side: Side) -> bytes:
    with tempfile.TemporaryDirectory(prefix="fcn-parity-") as folder:
        return _caffe_weights(side, Path(folder), (".caffemodel",)).read_bytes()


def _caffe_weights(side: Side, folder: Path, native: tuple[str, ...]) -> Path:
    """The weights in `folder` in a form that Caffe reads: the file itself where it is one already."""
    suffix = Path(side.weights_path).suffix.lower()
    if suffix in native:
        target = folder / f"model{suffix}"
        try:
            os.link(side.weights_path, target)
        except OSError:
            shutil.copyfile(side.weights_path, target)
        return target
    target = folder / "model.caffemodel"
    write_weights(side.weights, target, net=side.net)
    return target


def _write_request(case: Case, folder: Path) -> None:
    side = case.theirs
    definition = type(side.net)()
    definition.CopyFrom(side.net)
    if case.backward and case.seeds:
        definition.force_backward = True  # without a loss Caffe would compute no gradient at all
    (folder / "net.prototxt").write_text(format_net(definition))
    shutil.copyfile(caffe_worker.__file__, folder / "caffe_worker.py")
    weights = _caffe_weights(side, folder, NATIVE)
    meta = {"phase": case.phase, "backward": case.backward, "weights": weights.name}
    arrays = {f"in/{name}": a for name, a in case.their_inputs.items()}
    arrays |= {f"seed/{name}": a for name, a in case.their_seeds.items()}
    np.savez(folder / "request.npz", meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]


def _run(command: list[str], python: str, timeout_s: float) -> None:
    """Run the worker to its end; OracleError for an unhappy one. A wrapper's children end with it."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    except OSError as error:
        raise OracleError(f"caffe:{python}", (error.strerror or str(error)).lower(), "a program") from None
    try:
        _, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _end(process)
        raise OracleError(
            f"caffe:{python}", f"no answer after {timeout_s:g} s", "", "raise --timeout"
        ) from None
    except BaseException:
        _end(process)
        raise
    if process.returncode:
        code = process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise OracleError(f"caffe:{python}", f"it ended with {how}, its last words: {_last_words(errors)}",
                          "a run to the end")  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.communicate()


def _last_words(errors: bytes) -> str:
    """What it died of: a failed check if there is one, else the last lines."""
    lines = [line.strip() for line in errors.decode(errors="replace").splitlines() if line.strip()]
    checks = [i for i, line in enumerate(lines) if "Check failed" in line or line.startswith("F0")]
    if checks:
        lines = lines[checks[0] : checks[0] + 2]
    return (
        _one_line(" | ".join(line for line in lines[-LAST_WORDS:] if not line.startswith("*** "))) or "none"
    )


def _one_line(text: str, most: int = 400) -> str:
    words = " ".join(text.split())
    return words if len(words) <= most else "..." + words[-most:]


def _setting(item: str) -> tuple[str, str]:
    key, _, value = item.partition("=")
    if key in CHOICES and value in CHOICES[key]:
        return key, value
    if key in CHOICES:
        raise InputError("--against self", repr(item), " or ".join(f"{key}={name}" for name in CHOICES[key]))
    if key not in SETTINGS or not value:
        known = " or ".join(f"{name}=..." for name in (*SETTINGS, *CHOICES))
        raise InputError("--against self", repr(item), known)
    return key, value


def _computing(net: Any, precision: str) -> AbstractContextManager[Any]:
    """The context in which a net computes in a precision, for which it is made ready. InputError."""
    if precision == "float64":
        net.double()
        return nullcontext()
    device = device_of(net)
    try:
        how = Precision(precision, device)
    except InputError as error:
        raise InputError(
            f"--against self:precision={precision}", error.found, error.wanted, error.do
        ) from None
    how.prepare(arrange(net, device, precision))
    return how.forward()


def _set_device(net: Any, value: str) -> Any:
    return net.to(pick_device(value))


def _set_threads(net: Any, value: str) -> Any:
    if not value.isdecimal() or not 0 < int(value) <= 1024:
        raise InputError("--against self", f"threads {value!r}", "a number of threads")
    torch.set_num_threads(int(value))
    return net


CHOICES = {"precision": PRECISIONS, "frame": ("on", "off")}
SETTINGS: dict[str, Callable[[Any, str], Any]] = {
    "device": _set_device,
    "threads": _set_threads,
}
