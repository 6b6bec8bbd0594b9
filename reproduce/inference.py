"""Building a net from files and running it on arrays, with words for what goes wrong.

`run`, `segment` and `classify` share it; what can be known without torch stands in `definition.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caffe_weights.errors import InputError, NetError, in_net
from caffe_weights.export import read_weights
from caffe_weights.files import PathLike
from reproduce.definition import (
    UNSEEN_SIZE,
    Definition,
    Shape,
    check_blobs,
    load_definition,
    only_input,
    pick_output,
)
from reproduce.gpu import arrange, bound_workspace, send
from reproduce.net import Net
from reproduce.precision import Precision
from surgery.deploy import deploy_net


@dataclass(frozen=True)
class PictureNet:
    """A net that takes one picture: its input and output blobs, channels, and size where it declares one."""

    net: Net
    input: str
    output: str
    channels: int
    size: tuple[int, int] | None


def build(
    definition: Definition,
    weights_path: PathLike,
    shapes: Mapping[str, Shape],
    crop: str,
    device: str,
    frame: bool | None = None,
    precision: str = "float32",
) -> Net:
    """The net with its weights on `device`, to infer in a precision; `crop` and `frame` as in Net.

    `shapes` serve the inputs whose shape the definition leaves open.
    """
    place = pick_device(device)
    how = Precision(precision, place)
    shapes = {name: declared or shapes[name] for name, declared in definition.inputs.items()}
    weights = read_weights(weights_path)
    with in_net(definition.path):
        net = definition.net if definition.whole else deploy_net(definition.net, shapes)
        made = Net(net, weights, definition.phase, input_shapes=shapes, crop=crop, frame=frame)
    return how.inferring(arrange(made.to(place), place, precision))


def picture_net(
    net_path: PathLike | Definition,
    weights_path: PathLike,
    device: str = "cpu",
    crop: str = "bvlc",
    blob: str | None = None,
    preferred: str = "score",
    color: str | None = None,
    size: tuple[int, int] | None = None,
    frame: bool | None = None,
    precision: str = "float32",
) -> PictureNet:
    """A net with one picture as its input. InputError where it has several, or its output is not clear.

    Where the definition does not say how large the input is, `color` and `size` do.
    """
    definition = net_path if isinstance(net_path, Definition) else load_definition(net_path)
    name = only_input(definition, "use fcn run, which feeds several")
    shape = definition.inputs[name] or (1, 1 if color == "gray" else 3, *(size or UNSEEN_SIZE))
    if len(shape) != 4:
        raise NetError(
            definition.path, f"input {name!r} of {len(shape)} axes", "N x C x H x W", "use fcn run"
        )
    check_blobs(definition, [blob] if blob else [])
    net = build(definition, weights_path, {name: (1, *shape[1:])}, crop, device, frame, precision)
    declared = (shape[2], shape[3]) if definition.inputs[name] else None
    return PictureNet(net, name, pick_output(net.outputs, blob, preferred), shape[1], declared)


def forward(net: Net, arrays: Mapping[str, np.ndarray], keep: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Run `net` on float32 arrays by input name; its outputs and the blobs in `keep` as arrays."""
    inputs = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    return {name: blob.cpu().numpy() for name, blob in compute(net, inputs, keep).items()}


def compute(net: Net, inputs: Mapping[str, Tensor], keep: Sequence[str] = ()) -> dict[str, Tensor]:
    """As `forward`, from tensors; the results stay on the net's device. InputError without the memory."""
    place = device_of(net)
    with torch.no_grad(), _memory_errors(inputs):
        found: dict[str, Tensor] = net(
            **{name: send(x, place) for name, x in inputs.items()}, keep=list(keep)
        )
        return found


def device_of(net: Net) -> torch.device:
    """Where a net computes."""
    return next((p.device for p in net.parameters()), torch.device("cpu"))


def pick_device(name: str) -> torch.device:
    """A torch device that is there; InputError otherwise."""
    try:
        device = torch.device(name)
        if device.type == "cuda":
            bound_workspace()
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split("\n")[0].split())[:100]
        raise InputError(
            f"--device {name}", reason, "a device that torch can use", "cpu always works"
        ) from None
    return device


@contextmanager
def _memory_errors(arrays: Mapping[str, Tensor]) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
            sizes = ", ".join(f"{name} of {'x'.join(map(str, a.shape))}" for name, a in arrays.items())
            raise InputError(sizes, "not enough memory to run the net", do="give a smaller input") from None
        raise
