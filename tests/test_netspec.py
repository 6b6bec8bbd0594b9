"""The expected texts were printed by pycaffe's own NetSpec (Caffe 1.0), run on the same functions."""

# ruff: noqa: C408 - nets are written here as pycaffe's users write them

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from surgery.netspec import L, NetSpec, P, to_proto

CLASSIFIER = """
layer { name: "data" type: "DummyData" top: "data" top: "label"
        dummy_data_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } shape { dim: 1 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
        convolution_param { num_output: 4 pad: 1 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1/2x2" type: "Pooling" bottom: "conv1" top: "pool1/2x2"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "Dropout1" type: "Dropout" bottom: "pool1/2x2" top: "Dropout1"
        dropout_param { dropout_ratio: 0.25 } }
layer { name: "fc" type: "InnerProduct" bottom: "Dropout1" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" loss_weight: 2
        loss_param { ignore_label: 255 normalize: false } }
layer { name: "acc" type: "Accuracy" bottom: "fc" bottom: "label" top: "acc"
        include { phase: TEST } accuracy_param { top_k: 2 } }
"""

SEGMENTER = """
layer { name: "data" type: "Python" top: "data" top: "sem"
        python_param { module: "voc_layers" layer: "VOCSegDataLayer" param_str: "{'seed': 1337}" } }
layer { name: "conv1_1" type: "Convolution" bottom: "data" top: "conv1_1"
        param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
        convolution_param { num_output: 8 pad: 100 kernel_size: 3 stride: 1 } }
layer { name: "relu1_1" type: "ReLU" bottom: "conv1_1" top: "conv1_1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1_1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "score_fr" type: "Convolution" bottom: "pool1" top: "score_fr"
        convolution_param { num_output: 21 pad: 0 kernel_size: 1 } }
layer { name: "upscore" type: "Deconvolution" bottom: "score_fr" top: "upscore" param { lr_mult: 0 }
        convolution_param { num_output: 21 bias_term: false kernel_size: 4 stride: 2 } }
layer { name: "score" type: "Crop" bottom: "upscore" bottom: "data" top: "score"
        crop_param { axis: 2 offset: 19 } }
layer { name: "fuse" type: "Eltwise" bottom: "score" bottom: "score" top: "fuse"
        eltwise_param { operation: SUM coeff: 0.5 coeff: 0.5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fuse" bottom: "sem" top: "loss"
        loss_param { ignore_label: 255 normalize: false } }
"""

OUT_OF_ORDER = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 } } }
layer { name: "Slice1" type: "Slice" bottom: "data" top: "Slice1" top: "Slice2"
        slice_param { slice_point: 1 axis: 1 } }
layer { name: "ReLU1" type: "ReLU" bottom: "Slice1" top: "ReLU1" }
layer { name: "ReLU2" type: "ReLU" bottom: "Slice1" top: "ReLU2" }
layer { name: "ReLU3" type: "ReLU" bottom: "ReLU2" top: "ReLU3" }
layer { name: "sum" type: "Eltwise" bottom: "ReLU1" bottom: "ReLU3" top: "sum"
        eltwise_param { operation: PROD } }
layer { name: "quiet" type: "Silence" bottom: "Slice2" }
layer { name: "late" type: "Power" bottom: "sum" top: "sum" power_param { scale: 2 } }
layer { name: "other" type: "Sigmoid" bottom: "sum" top: "named" }
"""


def classifier() -> NetSpec:
    n = NetSpec()
    n.data, n.label = L.DummyData(shape=[dict(dim=[1, 3, 8, 8]), dict(dim=[1])], ntop=2)
    n.conv1 = L.Convolution(
        n.data,
        num_output=4,
        kernel_size=3,
        pad=1,
        param=[dict(lr_mult=1, decay_mult=1), dict(lr_mult=2, decay_mult=0)],
        weight_filler=dict(type="xavier"),
    )
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n["pool1/2x2"] = L.Pooling(n.relu1, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    n.fc = L.InnerProduct(L.Dropout(n["pool1/2x2"], dropout_ratio=0.25), num_output=5)
    n.loss = L.SoftmaxWithLoss(
        n.fc, n.label, loss_param=dict(normalize=False, ignore_label=255), loss_weight=2
    )
    n.acc = L.Accuracy(n.fc, n.label, include=dict(phase=1), top_k=2)
    return n


def segmenter() -> NetSpec:
    n = NetSpec()
    n.data, n.sem = L.Python(module="voc_layers", layer="VOCSegDataLayer", ntop=2, param_str="{'seed': 1337}")
    n.conv1_1 = L.Convolution(
        n.data,
        kernel_size=3,
        stride=1,
        num_output=8,
        pad=100,
        param=[dict(lr_mult=1, decay_mult=1), dict(lr_mult=2, decay_mult=0)],
    )
    n.relu1_1 = L.ReLU(n.conv1_1, in_place=True)
    n.pool1 = L.Pooling(n.relu1_1, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    n.score_fr = L.Convolution(n.pool1, num_output=21, kernel_size=1, pad=0)
    n.upscore = L.Deconvolution(
        n.score_fr,
        param=[dict(lr_mult=0)],
        convolution_param=dict(num_output=21, kernel_size=4, stride=2, bias_term=False),
    )
    n.score = L.Crop(n.upscore, n.data, axis=2, offset=19)
    n.fuse = L.Eltwise(n.score, n.score, operation=P.Eltwise.SUM, coeff=[0.5, 0.5])
    n.loss = L.SoftmaxWithLoss(n.fuse, n.sem, loss_param=dict(normalize=False, ignore_label=255))
    return n


def out_of_order() -> NetSpec:
    """Layers made before they are assigned, one without tops, names made up, one layer never used."""
    n = NetSpec()
    data = L.Input(input_param=dict(shape=dict(dim=[2, 4])))
    a, b = L.Slice(data, ntop=2, axis=1, slice_point=1)
    n.sum = L.Eltwise(L.ReLU(a), L.ReLU(L.ReLU(a)), operation=0)
    n.quiet = L.Silence(b, ntop=0)
    n.data = data
    L.TanH(data)
    n.late = L.Power(n.sum, scale=2, in_place=True)
    n.named = L.Sigmoid(n.late, name="other")
    return n


@pytest.mark.parametrize(
    ("build", "text"), [(classifier, CLASSIFIER), (segmenter, SEGMENTER), (out_of_order, OUT_OF_ORDER)]
)
def test_nets_equal_what_pycaffe_builds(build: Callable[[], NetSpec], text: str) -> None:
    assert build().to_proto() == parsed(text)


def test_a_spec_can_go_on_after_it_was_written() -> None:
    n = classifier()
    first = n.to_proto()
    assert n.to_proto() == first
    n.prob = L.Softmax(n.fc)
    assert (
        n.to_proto().layer[-1]
        == parsed('layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }').layer[0]
    )
    assert first == parsed(CLASSIFIER)


def test_shapes_messages_and_names_of_values_may_be_given_plainly() -> None:
    n = NetSpec()
    n.data = L.Input(shape=(1, np.int64(3), 8, 8))
    n.a, n.b = L.DummyData(shape=[[1, 2], [3]], ntop=2, data_filler=caffe_pb2.FillerParameter(value=2))
    n.flat = L.Reshape(n.data, shape=[0, -1])
    n.up = L.Deconvolution(n.data, num_output=2, kernel_size=[4, 6])
    n.pool = L.Pooling(n.data, pool="AVE", global_pooling=True)
    assert n.to_proto() == parsed("""
        layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
        layer { name: "a" type: "DummyData" top: "a" top: "b"
                dummy_data_param { data_filler { value: 2 } shape { dim: 1 dim: 2 } shape { dim: 3 } } }
        layer { name: "flat" type: "Reshape" bottom: "data" top: "flat"
                reshape_param { shape { dim: 0 dim: -1 } } }
        layer { name: "up" type: "Deconvolution" bottom: "data" top: "up"
                convolution_param { num_output: 2 kernel_size: 4 kernel_size: 6 } }
        layer { name: "pool" type: "Pooling" bottom: "data" top: "pool"
                pooling_param { pool: AVE global_pooling: true } }""")


def test_names_are_made_up_without_a_spec() -> None:
    top = L.ReLU(L.Input(shape=[1]))
    want = parsed("""name: "tiny"
        layer { name: "Input1" type: "Input" top: "Input1" input_param { shape { dim: 1 } } }
        layer { name: "ReLU1" type: "ReLU" bottom: "Input1" top: "ReLU1" }""")
    assert top.to_proto(name="tiny") == to_proto(top, name="tiny") == want


def test_deep_nets_do_not_exhaust_the_stack() -> None:
    top = L.Input(shape=[1, 1])
    for _ in range(3000):
        top = L.ReLU(top)
    assert len(to_proto(top).layer) == 3001


def test_a_spec_can_be_asked_what_it_holds() -> None:
    n = classifier()
    assert "conv1" in n
    assert "conv2" not in n
    assert not hasattr(n, "__wrapped__")
    assert copy.copy(n) is not n


def bad_name(n: Any) -> object:
    return n.conv2


def two_names(n: Any) -> object:
    n.alias = n.conv1
    return n.to_proto()


def made_up_name_taken(n: Any) -> object:
    n.Dropout1 = L.ReLU(n.fc)
    return n.to_proto()


ERRORS: list[tuple[Callable[[Any], object], str]] = [
    (
        lambda n: L.Convolution(n.data, kernel=3),
        "layer of type Convolution: no argument kernel; wanted one of num_output, bias_term, pad, ",
    ),
    (lambda n: L.ReLU(n.data, bottom="x"), "layer of type ReLU: no argument bottom"),
    (
        lambda n: L.AbsVal(n.data, slope=1),
        "layer of type AbsVal: no argument slope; wanted one of name, loss_weight",
    ),
    (
        lambda n: L.Convolution(n.data, weight_filler=dict(typ="msra")),
        "layer of type Convolution, weight_filler: no field typ; wanted one of type, value",
    ),
    (
        lambda n: L.Convolution(n.data, weight_filler="msra"),
        "weight_filler: 'msra'; wanted a dict of type, value",
    ),
    (lambda n: L.Convolution(n.data, num_output="many"), "num_output: 'many' does not fit the schema"),
    (lambda n: L.Convolution(n.data, num_output=-1), "num_output: -1 does not fit the schema"),
    (
        lambda n: L.Pooling(n.data, pool="MEAN"),
        "layer of type Pooling, pool: no value MEAN; wanted MAX, AVE, STOCHASTIC",
    ),
    (lambda n: L.ReLU(n.data, param=caffe_pb2.FillerParameter()), "layer of type ReLU, param"),
    (lambda n: L.Convolutoin(n.data), "net spec: no layer type Convolutoin; wanted perhaps Convolution"),
    (lambda n: L.ReLU("data"), "layer of type ReLU: bottom 0 is a str; wanted a top of another layer"),
    (lambda n: L.ReLU(L.Slice(n.data, ntop=2)), "bottom 0 is a tuple; wanted a top of another layer; unpack"),
    (lambda n: L.ReLU(in_place=True), "layer of type ReLU: 1 tops in place of 0 bottoms"),
    (lambda n: P.Poling.MAX, "net spec: no settings P.Poling; wanted perhaps Pooling"),
    (lambda n: P.Pooling.MEAN, "net spec: no value P.Pooling.MEAN; wanted MAX, AVE, STOCHASTIC"),
    (lambda n: setattr(n, "x", 3), "net spec, x: a int is assigned; wanted a layer's top"),
    (bad_name, "net spec: nothing is named conv2; wanted perhaps conv1"),
    (two_names, "net spec: conv1 and alias name one blob; wanted one name"),
    (made_up_name_taken, "layer Dropout1: its top Dropout1 is made by layer Dropout1 too"),
]


@pytest.mark.parametrize(("build", "message"), ERRORS)
def test_mistakes_are_named_where_they_are_written(build: Callable[[Any], object], message: str) -> None:
    with pytest.raises(NetError, match=re.escape(message)):
        build(classifier())


def parsed(text: str) -> caffe_pb2.NetParameter:
    return text_format.Parse(text, caffe_pb2.NetParameter())
