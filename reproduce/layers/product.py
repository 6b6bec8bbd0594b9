"""A convolution with large weights as a matrix product, on a CPU when no gradient is wanted.

Rows are gathered from the bottom and multiplied with the weights as Caffe stores them. PyTorch's convolution
would first bring the weights into another order, in each call: for fc6 of VGG16 that is 411 MB, and at
256x256 longer work than the sums. The rows are gathered in portions of `ROWS_BYTES`, so that the workspace
does not grow with the image. The sums are the same, in another order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nnf

from surgery.geometry import Window

LARGE_WEIGHTS = 1 << 22  # so many values are not brought into another order in each call
ROWS_BYTES = 1 << 25
LINEAR = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)


def infers(x: Tensor) -> bool:
    """Whether `x` is computed with on a CPU, in float32, without gradients, and no graph is recorded."""
    return (
        x.is_cpu
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
    )


def is_product(weight: Tensor, group: int) -> bool:
    """Whether weights (out, C / group, kh, kw) are so large that they had better stay as they are."""
    return group == 1 and weight.dim() == 4 and weight.numel() >= LARGE_WEIGHTS


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """The convolution of (N, C, H, W) with weights (out, C, kh, kw), channels last."""
    if any(window.pad):
        top, left = window.pad
        x = nnf.pad(x, (left, left, top, top))
    for axis in (0, 1):
        extent, stride, dilation = window.extent[axis], window.stride[axis], window.dilation[axis]
        x = x.unfold(2 + axis, extent, stride)[..., ::dilation]
    x = x.permute(0, 2, 3, 1, 4, 5)  # (N, out h, out w, C, kh, kw)
    matrix = weight.reshape(len(weight), -1)
    y = x.new_empty(*x.shape[:3], len(matrix))
    lines = max(1, ROWS_BYTES // (4 * x.shape[2] * matrix.shape[1]))
    images = max(1, lines // x.shape[1])  # so many at a time: the weights are read once for all of them
    for start in range(0, len(x), images):
        for first in range(0, x.shape[1], lines):
            part = (slice(start, start + images), slice(first, first + lines))
            y[part] = _linear(x[part].reshape(-1, matrix.shape[1]), matrix, bias).view(y[part].shape)
    return y.permute(0, 3, 1, 2)


def _linear(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    if LINEAR is None:
        return nnf.linear(rows, matrix, bias)
    y: Tensor = LINEAR(rows, matrix, bias, "none", [], "")
    return y
