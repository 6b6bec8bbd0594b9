"""A convolution with large weights as a matrix product, on a CPU.

Rows are gathered from the bottom and multiplied with the weights as Caffe stores them, and so are gradients.
PyTorch's convolution would first bring the weights into another order, in each call: for fc6 of VGG16 that is
411 MB, three times in a step of training, and at 256x256 longer work than the sums. The rows are gathered in
portions of `ROWS_BYTES`, so that the workspace does not grow with the image. The sums are the same, in
another order.

Such weights lie near the end of a net, so a backward pass makes their gradients first, while it still has the
blobs of all layers. `weights_last` has them made when those are freed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as nnf

from surgery.geometry import Window

LARGE_WEIGHTS = 1 << 22  # so many values are not brought into another order in each call
ROWS_BYTES = 1 << 25
LINEAR = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)

Waiting = list[tuple[Tensor, Tensor, Tensor, Window]]  # weights, bottom, gradient of the top
_waiting: ContextVar[Waiting | None] = ContextVar("waiting", default=None)


@contextmanager
def weights_last() -> Iterator[None]:
    """Gradients of large weights that `Tensor.backward` makes within are added to `grad` at the end.

    They are the same numbers. Not for `torch.autograd.grad`, which would find no gradient of them.
    """
    waiting: Waiting = []
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)
    with torch.no_grad():
        for weight, x, top, window in waiting:
            grad = _weight_grad(weight, x, top, window)
            weight.grad = grad if weight.grad is None else weight.grad.add_(grad)


def plain_floats(x: Tensor) -> bool:
    """Whether `x` is computed with on a CPU, in float32, and no graph is recorded to be exported."""
    return (
        x.is_cpu
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
    )


def is_product(weight: Tensor, group: int) -> bool:
    """Whether weights (out, C / group, kh, kw) are so large that they had better stay as they are."""
    return group == 1 and weight.dim() == 4 and weight.numel() >= LARGE_WEIGHTS


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """The convolution of (N, C, H, W) with weights (out, C, kh, kw), channels last; with gradients."""
    result: Tensor = _Product.apply(x, weight, bias, window)
    return result


class _Product(torch.autograd.Function):
    """The product, which keeps its bottom for the backward pass and gathers the rows again there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.window = window
        matrix = weight.reshape(len(weight), -1)
        windows = _windows(x, window)
        y = x.new_empty(*windows.shape[:3], len(matrix))
        for place, rows in _portions(windows):
            y[place] = _linear(rows, matrix, bias).view(y[place].shape)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (grad,) = ctx.saved_tensors, grads
        to_x, to_weight, to_bias, _ = ctx.needs_input_grad
        top = grad.permute(0, 2, 3, 1)  # (N, out h, out w, out)
        matrix = weight.reshape(len(weight), -1)
        x_grad = _spread(top, matrix, x, ctx.window) if to_x else None
        waiting = _waiting.get()
        weight_grad = None
        if to_weight and waiting is not None and weight.is_leaf:
            waiting.append((weight, x, top, ctx.window))
        elif to_weight:
            weight_grad = _weight_grad(weight, x, top, ctx.window)
        return x_grad, weight_grad, top.sum((0, 1, 2)) if to_bias else None, None


def _weight_grad(weight: Tensor, x: Tensor, top: Tensor, window: Window) -> Tensor:
    result = None
    for place, rows in _portions(_windows(x, window)):
        part = top[place].reshape(len(rows), -1).t()
        result = part @ rows if result is None else result.addmm_(part, rows)
    assert result is not None
    return result.view(weight.shape)


def _windows(x: Tensor, window: Window) -> Tensor:
    # a view (N, out h, out w, C, kh, kw)
    if any(window.pad):
        top, left = window.pad
        x = nnf.pad(x, (left, left, top, top))
    for axis in (0, 1):
        extent, stride, dilation = window.extent[axis], window.stride[axis], window.dilation[axis]
        x = x.unfold(2 + axis, extent, stride)[..., ::dilation]
    return x.permute(0, 2, 3, 1, 4, 5)


def _portions(windows: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    # lines of an image, or whole images if they are small, so that the weights are read once for all of them;
    # and their rows (places, C kh kw)
    n, height, width, *inner = windows.shape
    lines = max(1, ROWS_BYTES // (4 * width * prod(inner)))
    images = max(1, lines // height)
    for start in range(0, n, images):
        for first in range(0, height, lines):
            place = slice(start, start + images), slice(first, first + lines)
            yield place, windows[place].reshape(-1, prod(inner))


def _spread(top: Tensor, matrix: Tensor, x: Tensor, window: Window) -> Tensor:
    # the gradient of the bottom: that of each window, added up where windows overlap
    rows = _linear(top.reshape(-1, len(matrix)), matrix.t(), None)
    columns = rows.view(len(x), -1, matrix.shape[1]).transpose(1, 2)
    return nnf.fold(columns, x.shape[2:], window.kernel, window.dilation, window.pad, window.stride)


def _linear(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    if LINEAR is None:
        return nnf.linear(rows, matrix, bias)
    y: Tensor = LINEAR(rows, matrix, bias, "none", [], "")
    return y
