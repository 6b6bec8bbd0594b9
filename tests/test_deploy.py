"""Deploy forms: what goes, what stays, how inputs are declared.

Sources: the habits of the deploy nets that were published beside their train nets (inputs declared, no
dropout, prob in the place of the loss), and the rule that no remaining blob or parameter may change.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from surgery.deploy import deploy_net
from surgery.shapes import infer_shapes

LENET = """
layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TRAIN }
        transform_param { scale: 0.1 } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { lr_mult: 1 }
        param { lr_mult: 2 } convolution_param { num_output: 2 kernel_size: 5 } }
layer { name: "ip2" type: "InnerProduct" bottom: "conv1" top: "ip2" inner_product_param { num_output: 10 } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss"
        softmax_param { axis: 1 } }
"""
DROPOUTS = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 } } }
layer { name: "d1" type: "Dropout" bottom: "data" top: "a" }
layer { name: "r" type: "ReLU" bottom: "a" top: "b" }
layer { name: "d2" type: "Dropout" bottom: "b" top: "b" }
layer { name: "d3" type: "Dropout" bottom: "b" top: "c" }
layer { name: "s" type: "Sigmoid" bottom: "c" top: "c" }
layer { name: "e" type: "Eltwise" bottom: "c" bottom: "a" top: "e" }
"""


def parse(text: str) -> caffe_pb2.NetParameter:
    return text_format.Parse(text, caffe_pb2.NetParameter())


def names(net: caffe_pb2.NetParameter) -> list[str]:
    return [layer.name for layer in net.layer]


def test_a_train_net_becomes_inputs_and_answers() -> None:
    net = parse(LENET)
    before = net.SerializeToString()
    deployed = deploy_net(net, {"data": (1, 1, 28, 28)})
    assert names(deployed) == ["input", "conv1", "ip2"]
    assert (
        deployed.layer[0]
        == parse(
            'layer { name: "input" type: "Input" top: "data" input_param { shape { dim: [1, 1, 28, 28] } } }'
        ).layer[0]
    )
    assert list(deployed.layer[1:]) == [layer for layer in net.layer if layer.name in ("conv1", "ip2")]
    assert net.SerializeToString() == before


def test_a_lone_softmax_loss_becomes_prob_on_request() -> None:
    deployed = deploy_net(parse(LENET), {"data": (1, 1, 28, 28)}, loss_to_softmax=True)
    assert names(deployed) == ["input", "conv1", "ip2", "prob"]
    assert (
        deployed.layer[-1]
        == parse(
            'layer { name: "prob" type: "Softmax" bottom: "ip2" top: "prob" softmax_param { axis: 1 } }'
        ).layer[0]
    )
    assert infer_shapes(deployed).blobs["prob"] == (1, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LENET.replace("SoftmaxWithLoss", "HingeLoss"), "0 SoftmaxWithLoss layers"),
        (LENET + 'layer { name: "x" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" }', "2 SoftmaxW"),
        (LENET + 'layer { name: "prob" type: "Softmax" bottom: "ip2" top: "p" }', "a prob already"),
    ],
)
def test_a_softmax_is_refused_where_it_is_not_clear(text: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        deploy_net(parse(text), {"data": (1, 1, 28, 28)}, loss_to_softmax=True)


def test_what_only_feeds_labels_goes_and_what_is_an_answer_stays() -> None:
    net = parse("""
        layer { name: "d" type: "Python" top: "color" top: "depth" top: "sem" python_param { module: "m" } }
        layer { name: "both" type: "Concat" bottom: "color" bottom: "depth" top: "both" }
        layer { name: "labels" type: "Slice" bottom: "sem" top: "sem1" top: "geo1" }
        layer { name: "score" type: "Convolution" bottom: "both" top: "score" convolution_param {
                num_output: 3 kernel_size: 1 } }
        layer { name: "geo" type: "Convolution" bottom: "both" top: "geo" convolution_param {
                num_output: 2 kernel_size: 1 } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "sem1" top: "loss" }
        layer { name: "loss_geo" type: "SoftmaxWithLoss" bottom: "geo" bottom: "geo1" top: "loss_geo" }
        layer { name: "sum" type: "Eltwise" bottom: "loss" bottom: "loss_geo" top: "sum" }
        layer { name: "quiet" type: "Silence" bottom: "sum" }""")
    deployed = deploy_net(net, {"color": (1, 3, 8, 9), "depth": (1, 1, 8, 9)})
    assert names(deployed) == ["input", "both", "score", "geo"]
    assert list(deployed.layer[0].top) == ["color", "depth"]
    assert infer_shapes(deployed).blobs["score"] == (1, 3, 8, 9)


def test_an_autoencoder_keeps_its_output_and_drops_the_target() -> None:
    net = parse("""
        layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 } } }
        layer { name: "flat" type: "Flatten" bottom: "data" top: "flat" }
        layer { name: "out" type: "InnerProduct" bottom: "data" top: "out"
                inner_product_param { num_output: 12 } }
        layer { name: "loss" type: "EuclideanLoss" bottom: "out" bottom: "flat" top: "loss" }""")
    assert names(deploy_net(net)) == ["data", "out"]


def test_inputs_of_a_deploy_net_stay_as_they_are_and_take_new_shapes() -> None:
    net = parse(DROPOUTS)
    assert deploy_net(net) == net
    assert deploy_net(net, {"data": (5, 4)}).layer[0].input_param.shape[0].dim[:] == [5, 4]
    net.state.phase = caffe_pb2.TRAIN
    assert not deploy_net(net).HasField("state")


def test_two_data_layers_are_declared_by_their_tops() -> None:
    net = parse(
        'layer { name: "x" type: "Data" top: "a" } layer { name: "y" type: "Data" top: "b" }'
        'layer { name: "b" type: "Eltwise" bottom: "a" bottom: "b" top: "c" }'
    )
    deployed = deploy_net(net, {"a": (1, 2), "b": (1, 2)})
    assert names(deployed) == ["a", "b_input", "b"]


def test_dropout_goes_on_request_and_its_readers_read_what_it_read() -> None:
    deployed = deploy_net(parse(DROPOUTS), keep_dropout=False)
    assert [(x.name, list(x.bottom), list(x.top)) for x in deployed.layer] == [
        ("data", [], ["data"]),
        ("r", ["data"], ["b"]),
        ("s", ["b"], ["c"]),
        ("e", ["c", "data"], ["e"]),
    ]
    assert infer_shapes(deployed).blobs["e"] == (1, 4)


def test_dropout_stays_where_leaving_it_out_would_change_a_result() -> None:
    text = DROPOUTS.replace(
        'name: "r" type: "ReLU" bottom: "a" top: "b"',
        'name: "r" type: "ReLU" bottom: "data" top: "data" }'
        'layer { name: "r2" type: "ReLU" bottom: "data" top: "b"',
    )
    with pytest.raises(NetError, match=r"layer r \(ReLU\): it changes blob data"):
        deploy_net(parse(text), keep_dropout=False)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        ('type: "Data" transform_param { crop_size: 227 mean_value: [104, 117, 123] }', [1, 3, 227, 227]),
        ('type: "Data" transform_param { crop_size: 9 force_gray: true }', [1, 1, 9, 9]),
        ('type: "ImageData" image_data_param { new_height: 5 new_width: 7 }', [1, 3, 5, 7]),
        ('type: "WindowData" window_data_param { crop_size: 11 }', [1, 3, 11, 11]),
        (
            'type: "MemoryData" memory_data_param { batch_size: 2 channels: 4 height: 5 width: 6 }',
            [2, 4, 5, 6],
        ),
    ],
)
def test_shapes_come_from_data_layers_that_tell_them(layer: str, shape: list[int]) -> None:
    net = parse(
        f'layer {{ name: "d" top: "data" top: "label" {layer} }}'
        'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }'
    )
    assert deploy_net(net).layer[0].input_param.shape[0].dim[:] == shape


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        (
            LENET,
            {},
            r"layer mnist \(Data\): the shape of its blob data is not known; wanted 1xCxHxW; pass "
            r"input_shapes=\{'data': ...\} or --input-shape C,H,W",
        ),
        (LENET.replace("scale: 0.1", "crop_size: 27"), {}, r"--input-shape C,27,27"),
        (LENET, {"dta": (1,)}, "blob dta: no Input or data layer makes it"),
        (
            'layer { name: "d" type: "Data" top: "x" } layer { name: "s" type: "Silence" bottom: "x" }',
            {},
            "no layer leads to an output",
        ),
    ],
)
def test_a_net_that_cannot_be_deployed_is_refused_with_the_way_out(
    text: str, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(NetError, match=message):
        deploy_net(parse(text), shapes)


@pytest.mark.goldens("nets/*.prototxt")
def test_golden_net_deploys_with_the_same_blobs(golden: Path) -> None:
    net = parse(golden.read_text())
    whole, deployed = infer_shapes(net), deploy_net(net, keep_dropout=False)
    kept = infer_shapes(deployed)
    assert not {x.type for x in kept.layers.values()} & {"SoftmaxWithLoss", "Dropout"}
    assert kept.blobs.items() <= whole.blobs.items()
    gone = set(whole.layers) - set(kept.layers)
    assert {whole.layers[name].type for name in gone} <= {"SoftmaxWithLoss", "Dropout", "Input"}
    assert all(kept.layers[name].params == whole.layers[name].params for name in kept.layers)
