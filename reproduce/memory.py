"""What memory a run takes, what is free, and what can be known before anything is allocated.

The estimate is a lower bound, from the net description: parameters are there already; of the blobs those
count that live at the same time, cut to what the shortcut over the border computes, without what kernels need
besides. For a backward pass all blobs count that a layer reads, and the gradients of the parameters.
Measured at 500x500, FCN-8s takes 1.7 times its blobs.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path

import torch

from caffe_weights.errors import NetError
from reproduce.dataflow import Plan
from reproduce.frame import Piece
from surgery.geometry import Shape, dims
from surgery.shapes import LayerShapes

MEMINFO = Path("/proc/meminfo")
CGROUPS = (  # limit and use of a container, of either version of cgroups
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
M_MMAP_THRESHOLD = -3  # malloc.h of glibc
LARGE_BYTES = 1 << 22
TO_DO = (
    "give a smaller image, or halve it with --precision bf16; tiles would give other scores at their edges"
)


def peak_bytes(device: torch.device | str = "cpu") -> int:
    """The greatest memory so far: resident of this process, or allocated by PyTorch on a CUDA device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    greatest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return greatest if sys.platform == "darwin" else greatest * 1024


def available_bytes(device: torch.device | str = "cpu") -> int | None:
    """Free memory of a device, within the limit of a container; None where the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    found = [_meminfo(), *(_left(*pair) for pair in CGROUPS)] if device.type == "cpu" else []
    known = [value for value in found if value is not None]
    return min(known) if known else None


def needed_bytes(
    plan: Plan,
    found: Mapping[str, LayerShapes],
    pieces: Mapping[str, Piece],
    item_bytes: int,
    backward: bool,
) -> int:
    """The least memory that the blobs of a plan take at once; for a `backward` pass they are kept."""
    held: dict[int, int] = {}
    most = 0
    for run in plan.runs:
        layer = run.step.layer
        sizes = [item_bytes * size for size in _sizes(found[layer.name].tops, pieces.get(layer.name))]
        if run.overwrites:
            held.pop(run.step.bottoms[0], None)  # the top takes its place, with gradients before long
        held.update(zip(run.step.tops, sizes, strict=True))
        most = max(most, sum(held.values()))
        if not backward:
            for version in run.last_use:
                held.pop(version, None)
    return most


def check_memory(inputs: Mapping[str, Shape], needed: int, device: torch.device) -> None:
    """NetError where a run needs more memory than is free."""
    free = available_bytes(device)
    if free is None or needed <= free:
        return
    where = ", ".join(f"input {name} of {dims(shape)}" for name, shape in inputs.items()) or "net"
    found = f"the blobs need at least {_words(needed)} of memory"
    raise NetError(where, found, f"at most {_words(free)}, which are free", TO_DO)


def return_freed_memory() -> None:
    """Have malloc give large blocks back to the system as soon as they are freed (glibc).

    Otherwise it keeps those below 32 MB, and a step of training ends with hundreds of megabytes of them.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def _sizes(tops: tuple[Shape, ...], piece: Piece | None) -> list[int]:
    if piece is None:
        return [prod(shape) for shape in tops]
    region = prod(end - start for start, end in piece.layout.region)
    return [prod(shape[:2]) * region for shape in tops]


def _meminfo() -> int | None:
    with suppress(OSError, ValueError):
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _left(limit: Path, used: Path) -> int | None:
    with suppress(OSError, ValueError):  # "max" is no limit
        return max(0, int(limit.read_text()) - int(used.read_text()))
    return None


def _words(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
