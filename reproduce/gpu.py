"""What a CUDA device is given besides the net, so that it does not wait; on other devices nothing changes.

* Inputs go through pinned memory and label maps come back so, both while the device computes.
* cuDNN times its algorithms for a size only when that size comes again: a search costs more than one call.
* Its workspace is bounded: 512 input channels of 7 x 7 for fc6 make some algorithms ask for gigabytes.
* tf32, bf16 and fp16 run on tensor cores, which read channels last; float32 does not and keeps its order.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from reproduce.net import Net

WORKSPACE_VARIABLE = "CUDNN_CONV_WSCAP_DBG"  # read by cuDNN itself, in MiB
WORKSPACE_MIB = 1024
CHANNELS_LAST = ("tf32", "bf16", "fp16")


def bound_workspace() -> None:
    """Bound cuDNN's workspace, unless the environment does; before the process first convolves."""
    os.environ.setdefault(WORKSPACE_VARIABLE, str(WORKSPACE_MIB))


def arrange(net: Net, device: torch.device, precision: str) -> Net:
    """The net with its weights in the order that `device` reads fastest in a precision."""
    if device.type == "cuda" and precision in CHANNELS_LAST:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def pin(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in memory that `device` can copy from by itself."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; from pinned memory the copy runs while the host goes on."""
    return tensor.to(device, non_blocking=tensor.device.type == "cpu" and device.type == "cuda")


class Coming:
    """A tensor on its way to the host; `array()` waits for it. `seconds`, then: since `begun`."""

    def __init__(self, tensor: Tensor, begun: float) -> None:
        self._begun, self.seconds = begun, time.perf_counter() - begun
        self._event: torch.cuda.Event | None = None
        self._lock = threading.Lock()
        if tensor.is_cuda:
            there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            there.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
            tensor = there
        self._tensor = tensor

    def array(self) -> np.ndarray:
        """The values."""
        with self._lock:
            if self._event is not None:
                self._event.synchronize()
                self._event, self.seconds = None, time.perf_counter() - self._begun
        return self._tensor.numpy()


class Autotuning:
    """Lets cuDNN time its algorithms for inputs of a kind that was seen before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seen: set[Hashable] = set()

    @contextmanager
    def __call__(self, kind: Hashable) -> Iterator[None]:
        """Context of one call of a net with inputs of this kind, such as their shape."""
        if self.device.type != "cuda":
            yield
            return
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = kind in self._seen
        self._seen.add(kind)
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before
