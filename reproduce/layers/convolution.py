"""Layers that multiply by a weight matrix: Convolution, Deconvolution, Im2col, InnerProduct, Embed.

Follows `base_conv_layer.cpp`, `conv_layer.cpp`, `deconv_layer.cpp`, `im2col_layer.cpp`,
`inner_product_layer.cpp` and `embed_layer.cpp` of BVLC/caffe at 9b891540. PyTorch's own kernels compute the
same sums in another order. Departures: at most three spatial axes (Caffe's n-dimensional path has no
bound); an index outside the table of Embed is an error, not a debug check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as nnf

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from reproduce.layers.base import Definition, Filler, Layer, checked_indices, positive_axis
from reproduce.layers.product import is_product, multiply, plain_floats
from surgery.geometry import Shape, Window, conv_size, conv_window

Weighted = caffe_pb2.ConvolutionParameter | caffe_pb2.InnerProductParameter | caffe_pb2.EmbedParameter
Operator = Callable[..., Tensor]

CONVOLVE: dict[int, Operator] = {1: nnf.conv1d, 2: nnf.conv2d, 3: nnf.conv3d}
DECONVOLVE: dict[int, Operator] = {1: nnf.conv_transpose1d, 2: nnf.conv_transpose2d, 3: nnf.conv_transpose3d}


class _Windowed(Layer):
    """What Convolution, Deconvolution and Im2col share: a window, known once the rank of a bottom is."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.param = definition.convolution_param
        self.group = self.param.group
        self.windows: dict[int, tuple[int, Window]] = {}

    def window(self, rank: int) -> tuple[int, Window]:
        """The channel axis and the window for bottoms of this rank."""
        if rank not in self.windows:
            axis = positive_axis(self.param.axis, rank)
            self.windows[rank] = axis, conv_window(self.definition, rank - axis - 1)
        return self.windows[rank]

    def check(self, bottoms: Sequence[Shape]) -> None:
        """NetError unless PyTorch has a kernel for so many spatial axes."""
        axes = len(bottoms[0]) - positive_axis(self.param.axis, len(bottoms[0])) - 1
        if axes not in CONVOLVE:
            raise NetError(self.where(), f"axis {self.param.axis} leaves {axes} spatial axes", "1 to 3")

    def fillers(self) -> list[Filler]:
        return _weight_and_bias(self.param)


class Convolution(_Windowed):
    """Cross-correlation with weights (out, in / group, *kernel); every bottom gets the same weights."""

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [self.convolve(x, blobs) for x in bottoms]

    def convolve(self, x: Tensor, blobs: list[Tensor], pad: Shape | None = None) -> Tensor:
        """The top of one bottom, with the layer's own padding or another."""
        axis, window = self.window(x.dim())
        window = window if pad is None else replace(window, pad=pad)
        lead, size = x.shape[:axis], x.shape[axis + 1 :]
        x = _enlarge(x if axis == 1 else x.reshape(-1, *x.shape[axis:]), size, window)
        convolve = CONVOLVE[len(size)]
        bias = blobs[1] if len(blobs) > 1 else None
        if is_product(blobs[0], self.group) and plain_floats(x):
            y = multiply(x, blobs[0], bias, window)
        else:
            y = convolve(x, blobs[0], bias, window.stride, window.pad, window.dilation, self.group)
        return y if axis == 1 else y.reshape(*lead, *y.shape[1:])


class Deconvolution(_Windowed):
    """The transpose of a convolution, weights (in, out / group, *kernel)."""

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [self.deconvolve(x, blobs) for x in bottoms]

    def deconvolve(self, x: Tensor, blobs: list[Tensor]) -> Tensor:
        """The top of one bottom."""
        axis, window = self.window(x.dim())
        lead = x.shape[:axis]
        deconvolve = DECONVOLVE[x.dim() - axis - 1]
        x = x if axis == 1 else x.reshape(-1, *x.shape[axis:])
        bias = blobs[1] if len(blobs) > 1 else None
        if self.spreads(x, window):
            y = (x.flatten(1) @ blobs[0].flatten(1)).reshape(x.shape[0], -1, *window.kernel)
            y = y if bias is None else y + bias.reshape(-1, *(1,) * len(window.kernel))
        else:
            y = deconvolve(x, blobs[0], bias, window.stride, window.pad, 0, self.group, window.dilation)
        return y if axis == 1 else y.reshape(*lead, *y.shape[1:])

    def spreads(self, x: Tensor, window: Window) -> bool:
        """Whether each item is one value a channel that becomes one whole window: a matrix product.

        PyTorch's kernel takes ninety times as long for DeconvNet's fc6-deconv.
        """
        whole = not any(window.pad) and window.extent == window.kernel
        return self.group == 1 and whole and all(n == 1 for n in x.shape[2:])


class Im2col(_Windowed):
    """Every window of the input as a column: (N, C, H, W) -> (N, C * kh * kw, out h, out w)."""

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return [self.columns(x) for x in bottoms]

    def columns(self, x: Tensor) -> Tensor:
        """The top of one bottom; PyTorch's `unfold` function knows only two axes, its view any number."""
        axis, window = self.window(x.dim())
        lead, channels, size = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
        out = conv_size(tuple(size), window)
        x = _enlarge(x.reshape(-1, *x.shape[axis:]), size, window)
        x = nnf.pad(x, [p for pad in reversed(window.pad) for p in (pad, pad)])
        for i, (extent, stride, dilation) in enumerate(
            zip(window.extent, window.stride, window.dilation, strict=True)
        ):
            x = x.unfold(2 + i, extent, stride)[..., ::dilation]
        n = len(out)
        x = x.permute(0, 1, *range(2 + n, 2 + 2 * n), *range(2, 2 + n))  # (N, C, *kernel, *out)
        return x.reshape(*lead, channels * prod(window.kernel), *out)

    def fillers(self) -> list[Filler]:
        return []


class InnerProduct(Layer):
    """x W^T + b over everything from `axis` on; weights (out, in), or (in, out) with `transpose`."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.param = definition.inner_product_param
        self.axis, self.transpose = self.param.axis, self.param.transpose

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0]
        axis = positive_axis(self.axis, x.dim())
        rows = x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))  # (outer, in)
        weight = blobs[0].t() if self.transpose else blobs[0]
        y = nnf.linear(rows, weight, blobs[1] if len(blobs) > 1 else None)
        return [y.reshape(*x.shape[:axis], weight.shape[0])]

    def fillers(self) -> list[Filler]:
        return _weight_and_bias(self.param)


class Embed(Layer):
    """Row i of the table (input_dim, num_output) for each index i, plus a bias."""

    def __init__(self, definition: Definition, phase: str) -> None:
        super().__init__(definition, phase)
        self.param = definition.embed_param

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        indices = checked_indices(self.where(), bottoms[0], blobs[0].shape[0])
        rows = nnf.embedding(indices, blobs[0])
        return [rows + blobs[1] if len(blobs) > 1 else rows]

    def fillers(self) -> list[Filler]:
        return _weight_and_bias(self.param)


def _weight_and_bias(param: Weighted) -> list[Filler]:
    return [param.weight_filler, param.bias_filler] if param.bias_term else [param.weight_filler]


def _enlarge(x: Tensor, size: torch.Size, window: Window) -> Tensor:
    # a kernel a little larger than its padded input makes one output in Caffe: zeros beyond the edge
    short = [max(0, extent - n - 2 * p) for n, extent, p in zip(size, window.extent, window.pad, strict=True)]
    return nnf.pad(x, [p for more in reversed(short) for p in (0, more)]) if any(short) else x
