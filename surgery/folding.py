"""Folding BN: batch statistics into its scale and shift, and these into the convolution before it.

The first is step 3 of DeconvNet's training (BN_make_INFERENCE_script.py of HyeonwooNoh/DeconvNet at
87dd133), after which BN in mode INFERENCE needs no batch. That script means to multiply the variance by m /
(m - 1), m being the values of a channel in a batch, but divides whole numbers in Python 2: the released
model has no such correction, and here it is made on request. Departure: sums are in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from caffe_weights.caffe_pb2 import BNParameter, LayerParameter, NetParameter
from caffe_weights.errors import NetError, WeightsError
from caffe_weights.weights import Weights

EPS = 1e-9  # BN's own
WINDOWS = ("Convolution", "Deconvolution")


@dataclass(frozen=True)
class Statistics:
    """Of one BN: mean and biased variance, (C,) in float64, over batches of `count` values a channel."""

    mean: np.ndarray
    variance: np.ndarray
    count: int


def learning_layers(net: NetParameter) -> list[LayerParameter]:
    """The BN layers that take the batch's statistics, in the net's order."""
    return [x for x in net.layer if x.type == "BN" and x.bn_param.bn_mode == BNParameter.LEARN]


def statistics_net(net: NetParameter) -> NetParameter:
    """The net with tops `<layer>-mean` and `<layer>-var` at each BN that takes the batch's statistics."""
    result = _copy(net)
    for layer in learning_layers(result):
        del layer.top[1:]
        layer.top.extend(statistics_tops(layer.name))
    return result


def statistics_tops(layer: str) -> tuple[str, str]:
    """The blobs of a BN's mean and variance in `statistics_net`, and in DeconvNet's own."""
    return f"{layer}-mean", f"{layer}-var"


def inference_net(net: NetParameter) -> NetParameter:
    """The net with every BN in mode INFERENCE and with one top."""
    result = _copy(net)
    for layer in result.layer:
        if layer.type == "BN":
            layer.bn_param.bn_mode = BNParameter.INFERENCE
            del layer.top[1:]
    return result


def fold_statistics(weights: Weights, statistics: Mapping[str, Statistics], bessel: bool = False) -> Weights:
    """Weights whose BN layers, those in `statistics`, have them folded in; other arrays are the same.

    `bessel` corrects the variance to that of what the batch was drawn from, as was meant. WeightsError where
    a layer has no scale and shift of that size, or a single value a channel cannot be corrected.
    """
    result = weights.copy()
    for name, found in statistics.items():
        scale, shift = _parameters(weights, name, found.mean.size)
        if bessel and found.count < 2:
            raise WeightsError(f"layer {name}", "one value a channel in a batch", "two or more to correct by",
                               "give larger batches")  # fmt: skip
        variance = found.variance * (found.count / (found.count - 1) if bessel else 1)
        factor = scale.astype(np.float64).reshape(-1) / np.sqrt(variance + EPS)
        moved = shift.astype(np.float64).reshape(-1) - factor * found.mean
        result[name] = [values.reshape(old.shape).astype(old.dtype)
                        for values, old in ((factor, scale), (moved, shift))]  # fmt: skip
    return result


@dataclass(frozen=True)
class Merged:
    """A net and weights without the BN layers that went into convolutions: `into` names which into which."""

    net: NetParameter
    weights: Weights
    into: dict[str, str]
    kept: dict[str, str]  # BN layer -> why it stayed


def fold_into_convolutions(net: NetParameter, weights: Weights) -> Merged:
    """Take each BN in mode INFERENCE into the Convolution or Deconvolution that it alone reads.

    A convolution without a bias gets one. WeightsError where the weights are not the net's.
    """
    new, blobs = _copy(net), weights.copy()
    into: dict[str, str] = {}
    kept: dict[str, str] = {}
    for layer in [layer for layer in new.layer if layer.type == "BN"]:
        found = _before(new, layer)
        if isinstance(found, str):
            kept[layer.name] = found
            continue
        scale, shift = (v.astype(np.float64).reshape(-1) for v in _parameters(blobs, layer.name))
        blobs[found.name] = _scaled(found, blobs.get(found.name, []), scale, shift)
        _add_bias(found)
        into[layer.name] = found.name
        _remove(new, layer, found)
        if layer.name in blobs:
            del blobs[layer.name]
    return Merged(new, blobs, into, kept)


def _before(net: NetParameter, layer: LayerParameter) -> LayerParameter | str:
    """The convolution that a BN can go into, or why there is none."""
    if layer.bn_param.bn_mode != BNParameter.INFERENCE:
        return "it takes the batch's statistics"
    place = list(net.layer).index(layer)
    writers = [i for i in range(place) if layer.bottom[0] in net.layer[i].top]
    last = net.layer[writers[-1]]
    if last.type not in WINDOWS:
        return f"it reads {last.name}, a {last.type}"
    if len(last.top) > 1:
        return f"{last.name} has further tops"
    if any(spec.name for spec in last.param):
        return f"{last.name} shares its parameters"
    for i, other in enumerate(net.layer):
        if i > writers[-1] and i != place and layer.bottom[0] in other.bottom:
            if i > place and layer.top[0] == layer.bottom[0]:
                continue  # it reads what the BN wrote
            return f"{other.name} reads {last.name} too"
    return last


def _scaled(
    layer: LayerParameter, blobs: list[np.ndarray], scale: np.ndarray, shift: np.ndarray
) -> list[np.ndarray]:
    p = layer.convolution_param
    if len(blobs) != 1 + p.bias_term:
        raise WeightsError(f"layer {layer.name}", f"{len(blobs)} blobs", str(1 + p.bias_term))
    weight = blobs[0].astype(np.float64)
    if layer.type == "Convolution":
        weight *= scale.reshape(-1, *(1,) * (weight.ndim - 1))
    else:  # (in, out / group, ...)
        grouped = weight.reshape(p.group, -1, *weight.shape[1:])
        grouped *= scale.reshape(p.group, 1, -1, *(1,) * (weight.ndim - 2))
    bias = shift + (scale * blobs[1].astype(np.float64).reshape(-1) if p.bias_term else 0)
    dtype = blobs[0].dtype
    return [weight.astype(dtype), bias.reshape(blobs[1].shape if p.bias_term else -1).astype(dtype)]


def _add_bias(layer: LayerParameter) -> None:
    if not layer.convolution_param.bias_term:
        layer.convolution_param.ClearField("bias_term")
        if len(layer.param) == 1:
            layer.param.add().CopyFrom(layer.param[0])


def _remove(net: NetParameter, layer: LayerParameter, before: LayerParameter) -> None:
    place = list(net.layer).index(layer)
    old, new = layer.top[0], before.top[0]
    net.layer.remove(layer)
    if old == new:
        return
    for later in list(net.layer)[place:]:
        later.bottom[:] = [new if name == old else name for name in later.bottom]
        later.top[:] = [new if name == old else name for name in later.top]


def _parameters(weights: Weights, layer: str, channels: int | None = None) -> list[np.ndarray]:
    blobs = weights.get(layer, [])
    if len(blobs) != 2 or len({blob.size for blob in blobs} | ({channels} if channels else set())) != 1:
        found = ", ".join("x".join(map(str, blob.shape)) for blob in blobs) or "no blobs"
        wanted = f"a scale and a shift of {channels} channels" if channels else "a scale and a shift"
        raise WeightsError(f"{weights.source or 'weights'}: layer {layer}", found, wanted,
                           "give the weights of this net")  # fmt: skip
    return blobs


def _copy(net: NetParameter) -> NetParameter:
    if net.layers or net.input:
        raise NetError(
            "net", "an old form (layers or input fields)", "a net of today's form", "upgrade it first"
        )
    result = NetParameter()
    result.CopyFrom(net)
    return result
