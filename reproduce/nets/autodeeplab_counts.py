"""What an Auto-DeepLab holds and costs, counted on the net itself: for its tables and for audits.

The convention that gives the published numbers of parameters: learnable values only, so Scale's gamma and
beta but not BatchNorm's statistics, with 19 classes and the image pooling. The published multiply-adds are
those of TensorFlow's profiler [I]: `full_multiply_adds` counts what it counts on top of the plain number.
The reasoning: dilated convolutions ran as space-to-batch on maps padded to a multiple of the rate; pooling
was a mean over 97 x 97 pixels at every position of a 129 x 257 map; a lone addition counts half.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from caffe_weights.caffe_pb2 import LayerParameter, NetParameter
from reproduce.nets.autodeeplab import slide_image_pooling
from surgery.geometry import pool_window
from surgery.shapes import LayerShapes, infer_shapes
from surgery.summary import MULTIPLY_ADDS, UP_SAMPLING

PARTS = {  # of the published breakdown: how the names of its layers begin
    "stem": ("stem",),
    "cells": ("cell",),
    "aspp": ("aspp",),
    "decoder": ("decoder",),
    "logits": ("score_logits",),
}


@dataclass(frozen=True)
class CellRow:
    """One cell of a deploy net: its place, widths (of a block, the cells before, its output), map, values."""

    cell: int
    stride: int
    block_channels: int
    channels_before_last: int
    channels_last: int
    channels: int
    height: int
    width: int
    learnable: int

    @property
    def level(self) -> int:
        """0 at stride 4, 3 at stride 32."""
        return self.stride.bit_length() - 3


def learnable_values(net: NetParameter, prefixes: tuple[str, ...] = ("",)) -> int:
    """Values that training moves, in all layers whose names begin with one of `prefixes`.

    The published parameters of Auto-DeepLab in a deploy net of 19 classes; no statistics of BatchNorm.
    """
    layers = infer_shapes(net).layers.values()
    return sum(
        prod(shape)
        for layer in layers
        if layer.type != "BatchNorm" and layer.name.startswith(prefixes)
        for shape in layer.params
    )


def breakdown(net: NetParameter) -> dict[str, int]:
    """Learnable values of stem, cells, ASPP, decoder and logits."""
    return {part: learnable_values(net, prefixes) for part, prefixes in PARTS.items()}


def cell_table(net: NetParameter) -> list[CellRow]:
    """A row for each cell of a deploy net, from its shapes."""
    shapes = infer_shapes(net)
    height = shapes.blobs["data"][2]
    rows: list[CellRow] = []
    while (name := f"cell{len(rows)}") in shapes.blobs:
        cell, block = shapes.blobs[name], shapes.blobs[f"{name}_block1"]
        last = shapes.layers[f"{name}_last"].bottoms[0]
        before = shapes.layers[f"{name}_before"].bottoms[0] if f"{name}_before" in shapes.layers else block
        stride = 1 << ((height - 1) // (cell[2] - 1)).bit_length() - 1
        rows.append(
            CellRow(
                len(rows), stride, block[1], before[1], last[1], cell[1], cell[2], cell[3],
                learnable_values(net, (f"{name}_",)),
            )
        )  # fmt: skip
    return rows


def plain_multiply_adds(net: NetParameter) -> int:
    """Of all convolutions of a deploy net as they stand, padded borders included."""
    layers = infer_shapes(net).layers.values()
    return sum(MULTIPLY_ADDS[layer.type](layer) for layer in layers if layer.type in MULTIPLY_ADDS)


def full_multiply_adds(net: NetParameter) -> int:
    """What TensorFlow's profiler counts of a deploy net [I]: the plain number with three things on top.

    Dilated convolutions on maps padded to a multiple of their rate, image pooling by a sliding window with
    the convolution behind it, and sums of blobs. At 1025 x 2049 this is the published number within 0.1 %.
    """
    slid = slide_image_pooling(net)
    shapes = infer_shapes(slid).layers
    return sum(_full(layer, shapes[layer.name]) for layer in slid.layer)


def _full(layer: LayerParameter, found: LayerShapes) -> int:
    if layer.type == "Convolution":
        rate = next(iter(layer.convolution_param.dilation), 1)
        positions = prod(-(-size // rate) * rate for size in found.tops[0][2:])
        return prod(found.tops[0][:2]) * positions * prod(found.params[0][1:])
    if layer.type == "Pooling":
        return prod(pool_window(layer, found.bottoms[0][2:]).kernel) * prod(found.tops[0]) // 2
    if layer.type == "Eltwise":
        return (len(found.bottoms) - 1) * prod(found.tops[0]) // 2
    assert layer.type not in ("InnerProduct", UP_SAMPLING)
    return 0
