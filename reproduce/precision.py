"""In what precision a net computes: float32, TF32, or halves by PyTorch's autocast.

float32 without TF32 is the reference, the default, and untouched by this module. `tf32` lets CUDA cut the
factors of its products to 10 bits of mantissa. `bf16` and `fp16` run convolutions and products in halves,
with parameters, their gradients and the solver in float32; losses and layers that square, exponentiate or
take means are computed in float32 (`EXACT`). fp16 has a short range, so the loss is scaled before the
backward pass and the gradients scaled back before Caffe's clipping; an iteration whose gradients overflow
makes no update, and the scale is halved.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from caffe_weights.errors import InputError
from reproduce.layers.base import Layer
from reproduce.net import Net

DTYPES: dict[str, torch.dtype | None] = {
    "float32": None,
    "tf32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
EXACT = ("Accuracy", "BatchNorm", "Exp", "LRN", "Log", "MVN", "Power", "Reduction", "Softmax")
TF32_CAPABILITY = (8, 0)  # of CUDA devices


class Precision:
    """A precision on a device; `scaler` scales the loss of fp16, else it is None."""

    def __init__(self, name: str = "float32", device: str | torch.device = "cpu") -> None:
        """InputError where the device cannot compute so, or the name is unknown."""
        self.name, self.device = name, torch.device(device)
        check_precision(name, self.device)
        self.dtype = DTYPES[name]
        self.scaler = torch.amp.GradScaler(self.device.type) if name == "fp16" else None

    def prepare(self, net: Net) -> Net:
        """Make a net compute so, inside of `forward()`; the net."""
        net.tf32 = self.name == "tf32"
        if self.dtype is not None:
            for layer in net.layers:
                if layer.definition.type in EXACT or layer.definition.type.endswith("Loss"):
                    layer.forward = _in_float32(layer, self.device.type)  # type: ignore
                    layer.in_place = False  # type: ignore  # `overwrite` would work in halves
        return net

    def inferring(self, net: Net) -> Net:
        """Make each call of a net compute so by itself and give float32, where it only infers; the net."""
        self.prepare(net)
        if self.dtype is not None:
            forward = net.forward

            def run(**given: Any) -> dict[str, Tensor]:
                with self.forward():
                    return {name: blob.float() for name, blob in forward(**given).items()}

            net.forward = run  # type: ignore[method-assign]
        return net

    def forward(self) -> AbstractContextManager[Any]:
        """What the net's call, losses included, has to stand in."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaled(self, loss: Tensor) -> Tensor:
        """What to call backward on."""
        if self.scaler is None:
            return loss
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The update, from the gradients of scaled losses."""
        if self.scaler is None:
            optimizer.step()
            return
        self.scaler.unscale_(optimizer)
        self.scaler.step(optimizer)
        self.scaler.update()


def check_precision(name: str, device: torch.device) -> None:
    """InputError where a device cannot compute in a precision, with one that it can."""
    where = f"--precision {name}"
    if name not in DTYPES:
        raise InputError(where, "unknown", " or ".join(DTYPES))
    if name == "tf32":
        found = _without_tf32(device)
        if found:
            raise InputError(where, found, "a CUDA device of capability 8.0 or more", "use float32")
    dtype = DTYPES[name]
    if dtype is not None:
        reason = _trial(device, dtype)
        if reason:
            raise InputError(where, f"{device} does not compute in it ({reason})",
                             "another precision", "use float32")  # fmt: skip


def _without_tf32(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device}, which has no TF32"
    capability = torch.cuda.get_device_capability(device)
    return "" if capability >= TF32_CAPABILITY else "CUDA capability " + ".".join(map(str, capability))


def _trial(device: torch.device, dtype: torch.dtype) -> str:
    """Why a small convolution, forward and backward, cannot be computed, "" if it can."""
    try:
        with torch.autocast(device.type, dtype):
            x = torch.ones(1, 2, 4, 4, device=device)
            weight = torch.ones(2, 2, 3, 3, device=device, requires_grad=True)
            y = torch.nn.functional.conv2d(x, weight)
        y.float().sum().backward()
    except RuntimeError as error:
        return str(error).split("\n")[0][:80]
    return "" if y.dtype == dtype else "autocast leaves it in float32"


def _in_float32(layer: Layer, device: str) -> Callable[[list[Tensor], list[Tensor]], list[Tensor]]:
    forward = type(layer).forward

    def run(bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        with torch.autocast(device, enabled=False):
            return forward(layer, [bottom.float() for bottom in bottoms], blobs)

    return run
