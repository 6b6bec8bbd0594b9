"""Setting a net up for running: the form that can run, its inputs, a device, and words for what goes wrong.

`run`, `segment` and `classify` share it. A train net is run in its deploy form (data and loss layers dropped)
unless arrays are given for all of its inputs, labels too.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import FormatError, InputError, NetError
from caffe_weights.export import read_weights
from caffe_weights.files import PathLike, open_input
from caffe_weights.filtering import filter_net
from caffe_weights.upgrade import load_net
from reproduce.net import Net
from surgery.deploy import deploy_net
from surgery.shapes import SOURCES, declared_shapes

Shape = tuple[int, ...]
UNSEEN_SIZE = (500, 500)  # for a net whose definition gives none: the published nets' size


@dataclass(frozen=True)
class Definition:
    """A net definition filtered for a phase, and the inputs that it will be fed, with shapes where known.

    `whole` says that these are all its inputs, labels too; otherwise its deploy form will run.
    """

    net: NetParameter
    path: str
    phase: str
    inputs: dict[str, Shape | None]
    whole: bool


@dataclass(frozen=True)
class PictureNet:
    """A net that takes one picture: its input and output blobs, channels, and size where it declares one."""

    net: Net
    input: str
    output: str
    channels: int
    size: tuple[int, int] | None


def load_definition(path: PathLike, given: Iterable[str] = (), phase: str = "TEST") -> Definition:
    """Read a prototxt in today's form for a phase; whole where all its inputs are among `given`."""
    net = filter_net(load_net(path), phase)
    inputs = input_shapes(net)
    whole = set(inputs) <= set(given)
    if not whole:
        unknown = dict.fromkeys(
            (name for name, shape in inputs.items() if shape is None), (1, 3, *UNSEEN_SIZE)
        )
        try:
            inputs = input_shapes(deploy_net(net))
        except NetError:  # a data layer that does not tell its shape
            form = input_shapes(deploy_net(net, unknown))
            inputs = {name: None if name in unknown else shape for name, shape in form.items()}
    return Definition(net, os.fspath(path), phase, inputs, whole)


def input_shapes(net: NetParameter) -> dict[str, Shape | None]:
    """The blobs that come from outside, in order, with their shapes where the definition gives them."""
    return {
        top: shape
        for layer in net.layer
        if layer.type in SOURCES
        for top, shape in zip(layer.top, declared_shapes(layer), strict=True)
    }


def only_input(definition: Definition, wanted: str) -> str:
    """The one input of a net; InputError where there are several, with `wanted` saying what to do."""
    if len(definition.inputs) != 1:
        names = ", ".join(definition.inputs) or "none"
        raise InputError(definition.path, f"{len(definition.inputs)} inputs ({names})", "one", wanted)
    return next(iter(definition.inputs))


def build(
    definition: Definition, weights_path: PathLike, shapes: Mapping[str, Shape], crop: str, device: str
) -> Net:
    """The net with its weights on `device`; `shapes` are those of all `definition.inputs`."""
    place = pick_device(device)
    net = definition.net if definition.whole else deploy_net(definition.net, shapes)
    weights = read_weights(weights_path)
    return Net(net, weights, phase=definition.phase, input_shapes=shapes, crop=crop).to(place)


def picture_net(
    net_path: PathLike,
    weights_path: PathLike,
    device: str = "cpu",
    crop: str = "bvlc",
    blob: str | None = None,
    preferred: str = "score",
    color: str | None = None,
    size: tuple[int, int] | None = None,
) -> PictureNet:
    """A net with one picture as its input. InputError where it has several, or its output is not clear.

    Where the definition does not say how large the input is, `color` and `size` do.
    """
    definition = load_definition(net_path)
    name = only_input(definition, "use fcn run, which feeds several")
    shape = definition.inputs[name] or (1, 1 if color == "gray" else 3, *(size or UNSEEN_SIZE))
    if len(shape) != 4:
        raise NetError(
            definition.path, f"input {name!r} of {len(shape)} axes", "N x C x H x W", "use fcn run"
        )
    check_blobs(definition, [blob] if blob else [])
    net = build(definition, weights_path, {name: (1, *shape[1:])}, crop, device)
    declared = (shape[2], shape[3]) if definition.inputs[name] else None
    return PictureNet(net, name, pick_output(net.outputs, blob, preferred), shape[1], declared)


def pick_output(outputs: Sequence[str], blob: str | None, preferred: str) -> str:
    """The blob to read: the one asked for, the only output, or the one called `preferred`."""
    if blob is not None:
        return blob
    if len(outputs) == 1:
        return outputs[0]
    if preferred in outputs:
        return preferred
    raise InputError("net", f"{len(outputs)} outputs ({', '.join(outputs)})", "one", "name it with --blob")


def forward(net: Net, arrays: Mapping[str, np.ndarray], keep: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Run `net` on float32 arrays by input name; its outputs and the blobs in `keep` as arrays."""
    place = next((p.device for p in net.parameters()), torch.device("cpu"))
    inputs = {name: torch.from_numpy(np.ascontiguousarray(a)).to(place) for name, a in arrays.items()}
    with torch.no_grad(), _memory_errors(arrays):
        outputs = net(**inputs, keep=list(keep))
        return {name: blob.cpu().numpy() for name, blob in outputs.items()}


def check_blobs(definition: Definition, names: Iterable[str]) -> None:
    """NetError for a blob that the net has not."""
    known = [top for layer in definition.net.layer for top in layer.top]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, dict.fromkeys(known), n=3)
            raise NetError(definition.path, f"no blob {name!r}", " or ".join(near) or "a blob of the net",
                           "fcn inspect lists them")  # fmt: skip


def pick_device(name: str) -> torch.device:
    """A torch device that is there; InputError otherwise."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split("\n")[0].split())[:100]
        raise InputError(
            f"--device {name}", reason, "a device that torch can use", "cpu always works"
        ) from None
    return device


def read_array(path: PathLike) -> np.ndarray:
    """A .npy of numbers as float32; FormatError for anything else, before memory is taken for it."""
    open_input(path).close()
    name = os.fspath(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise FormatError(name, f"not a readable .npy ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        found = f"values of type {array.dtype}" if isinstance(array, np.ndarray) else "an archive"
        raise FormatError(name, found, "one array of numbers")
    return np.array(array, np.float32)


@contextmanager
def _memory_errors(arrays: Mapping[str, np.ndarray]) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
            sizes = ", ".join(f"{name} of {'x'.join(map(str, a.shape))}" for name, a in arrays.items())
            raise InputError(sizes, "not enough memory to run the net", do="give a smaller input") from None
        raise
