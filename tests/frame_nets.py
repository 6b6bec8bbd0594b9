"""Random nets with a wide padding: all layers that `reproduce.frame` follows, and some that it does not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from caffe_weights import caffe_pb2
from surgery.netspec import L, NetSpec, P

NOISE = {"type": "gaussian", "std": 0.5}
CHANNELS = 4


def random_net(seed: int) -> caffe_pb2.NetParameter:
    """A net of 4 to 9 layers behind one that pads the image widely, on data of (2, 3, 20, 24) or so."""
    draw = random.Random(seed)
    n = NetSpec()
    n.data = L.Input(shape=[draw.choice([1, 2]), 3, draw.randint(1, 24), draw.randint(1, 24)])
    n.first = _first(draw, n.data)
    top = n.first
    for i in range(draw.randint(3, 8)):
        make = draw.choice(STEPS)
        top = n[f"layer{i}"] = make(draw, top)
    n.head = L.Convolution(top, num_output=2, kernel_size=1, weight_filler=NOISE)
    return n.to_proto()


def _first(draw: random.Random, bottom: Any) -> Any:
    wide = [draw.randint(12, 30), draw.randint(12, 30)]
    if draw.random() < 0.25:
        wide[draw.randint(0, 1)] = draw.randint(0, 2)  # one axis only
    return L.Convolution(
        bottom, num_output=CHANNELS, pad_h=wide[0], pad_w=wide[1], kernel_h=draw.randint(2, 5),
        kernel_w=draw.randint(2, 5), stride_h=draw.randint(1, 3), stride_w=draw.randint(1, 2),
        dilation=[draw.randint(1, 2)], weight_filler=NOISE, bias_filler=NOISE)  # fmt: skip


def _convolution(draw: random.Random, bottom: Any) -> Any:
    return L.Convolution(
        bottom, num_output=CHANNELS, kernel_size=[draw.randint(1, 4), draw.randint(1, 4)],
        pad=[draw.randint(0, 3), draw.randint(0, 3)], stride=[draw.choice([1, 1, 2]), draw.choice([1, 1, 3])],
        dilation=[draw.randint(1, 2)], group=draw.choice([1, 2]), bias_term=draw.random() < 0.8,
        weight_filler=NOISE, bias_filler=NOISE)  # fmt: skip


def _pooling(draw: random.Random, bottom: Any) -> Any:
    kernel = draw.randint(2, 4)
    return L.Pooling(
        bottom, pool=draw.choice([P.Pooling.MAX, P.Pooling.AVE]), kernel_size=kernel,
        stride=draw.randint(1, kernel), pad=draw.randint(0, kernel - 1),
        round_mode=draw.choice([P.Pooling.CEIL, P.Pooling.FLOOR]))  # fmt: skip


def _normalize(draw: random.Random, bottom: Any) -> Any:
    region = draw.choice([P.LRN.ACROSS_CHANNELS, P.LRN.WITHIN_CHANNEL])
    return L.LRN(bottom, local_size=draw.choice([1, 3, 5]), alpha=0.5, norm_region=region)


def _join(draw: random.Random, bottom: Any) -> Any:
    # two ways of other reach, met again
    wide = L.Convolution(
        bottom, num_output=CHANNELS, kernel_size=3, pad=1, weight_filler=NOISE, bias_filler=NOISE
    )
    if draw.random() < 0.5:
        return L.Concat(bottom, wide)
    operation = draw.choice([P.Eltwise.SUM, P.Eltwise.PROD, P.Eltwise.MAX])
    return L.Eltwise(bottom, wide, operation=operation)


def _pointwise(draw: random.Random, bottom: Any) -> Any:
    kind = draw.choice(("AbsVal", "BNLL", "ELU", "PReLU", "ReLU", "Sigmoid", "Swish", "TanH", "Dropout"))
    return getattr(L, kind)(bottom)


def _affine(draw: random.Random, bottom: Any) -> Any:
    scale = L.Scale(bottom, bias_term=True, filler=NOISE, bias_filler=NOISE)
    return draw.choice([scale, L.Bias(bottom, filler=NOISE), L.BatchNorm(bottom), L.Power(bottom, shift=0.3)])


def _unfollowed(draw: random.Random, bottom: Any) -> Any:
    return draw.choice([L.Softmax(bottom), L.MVN(bottom, eps=1.0)])


def _relu(draw: random.Random, bottom: Any) -> Any:
    return L.ReLU(bottom, in_place=True)


STEPS: tuple[Callable[[random.Random, Any], Any], ...] = (
    _convolution, _convolution, _pooling, _pooling, _normalize, _join, _pointwise, _affine, _relu,
    _unfollowed,
)  # fmt: skip
