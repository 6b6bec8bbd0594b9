"""What can be known of a net before it is built, and without torch: its inputs, its blobs, arrays to feed it.

A train net runs in its deploy form (data and loss layers dropped) unless arrays are given for all of its
inputs, labels too.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import FormatError, InputError, NetError, in_net
from caffe_weights.files import PathLike, open_input
from caffe_weights.filtering import filter_net
from caffe_weights.upgrade import load_net
from surgery.deploy import deploy_net
from surgery.shapes import declared_shapes, is_source

Shape = tuple[int, ...]
NUMPY_MAGIC = b"\x93NUMPY"
UNSEEN_SIZE = (500, 500)  # for a net whose definition gives none: the published nets' size


@dataclass(frozen=True)
class Definition:
    """A net definition filtered for a phase, and the inputs that it will be fed, with shapes where known.

    `whole` says that these are all its inputs, labels too; otherwise its deploy form will run, which makes
    `blobs`.
    """

    net: NetParameter
    path: str
    phase: str
    inputs: dict[str, Shape | None]
    whole: bool
    blobs: frozenset[str]


def load_definition(path: PathLike, given: Iterable[str] = (), phase: str = "TEST") -> Definition:
    """Read a prototxt in today's form for a phase; whole where all its inputs are among `given`."""
    with in_net(path):
        net = filter_net(load_net(path), phase)
        inputs = input_shapes(net)
        if set(inputs) <= set(given):
            return Definition(net, os.fspath(path), phase, inputs, True, _tops(net))
        form, inputs = _deploy_form(net, inputs)
    return Definition(net, os.fspath(path), phase, inputs, False, _tops(form))


def _deploy_form(
    net: NetParameter, inputs: dict[str, Shape | None]
) -> tuple[NetParameter, dict[str, Shape | None]]:
    """What is left without data and loss layers, and its inputs, with shapes where the net tells them."""
    try:
        form = deploy_net(net)
        return form, input_shapes(form)
    except NetError:  # a data layer that does not tell its shape
        unknown = [name for name, shape in inputs.items() if shape is None]
        form = deploy_net(net, dict.fromkeys(unknown, (1, 3, *UNSEEN_SIZE)))
        return form, {name: None if name in unknown else shape for name, shape in input_shapes(form).items()}


def input_shapes(net: NetParameter) -> dict[str, Shape | None]:
    """The blobs that come from outside, in order, with their shapes where the definition gives them."""
    return {
        top: shape
        for layer in net.layer
        if is_source(layer)
        for top, shape in zip(layer.top, declared_shapes(layer), strict=True)
    }


def only_input(definition: Definition, wanted: str) -> str:
    """The one input of a net; InputError where there are several, with `wanted` saying what to do."""
    if len(definition.inputs) != 1:
        names = ", ".join(definition.inputs) or "none"
        raise InputError(definition.path, f"{len(definition.inputs)} inputs ({names})", "one", wanted)
    return next(iter(definition.inputs))


def check_blobs(definition: Definition, names: Iterable[str]) -> None:
    """NetError for a blob that the net has not, or not in the form that will run."""
    known = {top for layer in definition.net.layer for top in layer.top}
    for name in names:
        if name in known and name not in definition.blobs:
            raise NetError(definition.path, f"blob {name!r} is only made from labels", "labels",
                           "give the labels with fcn run --input NAME=FILE")  # fmt: skip
        if name not in known:
            near = difflib.get_close_matches(name, sorted(definition.blobs), n=3)
            raise NetError(definition.path, f"no blob {name!r}", " or ".join(near) or "a blob of the net",
                           "fcn inspect lists them")  # fmt: skip


def pick_output(outputs: Sequence[str], blob: str | None, preferred: str) -> str:
    """The blob to read: the one asked for, the only output, or the one called `preferred`."""
    if blob is not None:
        return blob
    if len(outputs) == 1:
        return outputs[0]
    if preferred in outputs:
        return preferred
    raise InputError("net", f"{len(outputs)} outputs ({', '.join(outputs)})", "one", "name it with --blob")


def read_array(path: PathLike) -> np.ndarray:
    """A .npy of numbers as float32; FormatError for anything else, before memory is taken for it."""
    return np.array(map_array(path), np.float32)


def map_array(path: PathLike) -> np.ndarray:
    """A .npy of numbers as it lies in the file; FormatError for anything else."""
    name = os.fspath(path)
    with open_input(path) as stream:
        if not stream.read(8).startswith(NUMPY_MAGIC):  # numpy would call it a pickle to be trusted
            raise FormatError(name, "not a readable .npy (wrong first bytes)", "what np.save writes")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise FormatError(name, f"not a readable .npy ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        found = f"values of type {array.dtype}" if isinstance(array, np.ndarray) else "an archive"
        raise FormatError(name, found, "one array of numbers")
    return array


def _tops(net: NetParameter) -> frozenset[str]:
    return frozenset(top for layer in net.layer for top in layer.top)
