"""Rules and splits in small nets; each expected result was seen in a running Caffe."""

from __future__ import annotations

import pytest

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import NetError
from caffe_weights.filtering import filter_net, insert_splits
from caffe_weights.prototxt import parse_net

INPUT = 'layer { name: "data" type: "Input" top: "data" } '


def relu(name: str, bottom: str, top: str) -> str:
    return f'layer {{ name: "{name}" type: "ReLU" bottom: "{bottom}" top: "{top}" }} '


def names(net: NetParameter) -> list[str]:
    return [layer.name for layer in net.layer]


def split(text: str) -> NetParameter:
    return insert_splits(parse_net(text))


def test_the_state_given_replaces_phase_and_level_and_adds_stages() -> None:
    net = parse_net(
        'state { phase: TRAIN level: 5 stage: "q" }'
        'layer { name: "a" include { stage: "q" stage: "z" } } layer { name: "b" include { min_level: 5 } }'
    )
    new = filter_net(net, "TEST", stages=["z"])
    assert names(new) == ["a"]
    assert new.state == parse_net('state { phase: TEST level: 0 stage: "q" stage: "z" }').state
    assert names(net) == ["a", "b"] and list(net.state.stage) == ["q"]


def test_without_a_phase_the_net_s_own_state_holds() -> None:
    rules = 'layer { name: "a" include { phase: TRAIN } } layer { name: "b" include { phase: TEST } }'
    assert names(filter_net(parse_net("state { phase: TRAIN }" + rules), phase=None)) == ["a"]
    assert names(filter_net(parse_net(rules), phase=None)) == ["b"]


def test_include_beside_exclude() -> None:
    with pytest.raises(NetError, match="layer a: both include and exclude rules"):
        filter_net(parse_net('layer { name: "a" include { phase: TEST } exclude { stage: "q" } }'))


def test_unknown_phase() -> None:
    with pytest.raises(NetError, match="net: phase 'test'; wanted TRAIN or TEST"):
        filter_net(NetParameter(), "test")


def test_a_blob_read_once_is_not_split() -> None:
    net = parse_net(INPUT + relu("a", "data", "a") + relu("b", "a", "a"))
    assert insert_splits(net) == net and insert_splits(net) is not net


def test_the_split_is_named_after_the_last_writer_and_stands_behind_it() -> None:
    net = split(INPUT + relu("r", "data", "data") + relu("a", "data", "a") + relu("b", "data", "b"))
    assert names(net) == ["data", "r", "data_r_0_split", "a", "b"]
    assert list(net.layer[2].top) == ["data_r_0_split_0", "data_r_0_split_1"]
    assert [list(layer.bottom) for layer in net.layer[3:]] == [["data_r_0_split_0"], ["data_r_0_split_1"]]


def test_one_layer_reads_a_blob_twice() -> None:
    net = split(INPUT + 'layer { name: "e" type: "Eltwise" bottom: "data" bottom: "data" top: "e" }')
    assert list(net.layer[2].bottom) == ["data_data_0_split_0", "data_data_0_split_1"]


def test_splits_are_inserted_once() -> None:
    net = split(INPUT + relu("a", "data", "a") + relu("b", "data", "b"))
    assert insert_splits(net) == net


def test_a_loss_weight_is_the_first_reader_and_moves_to_the_split() -> None:
    loss = 'layer { name: "l" type: "Reduction" bottom: "data" top: "l" loss_weight: 2 } '
    net = split(INPUT + loss + relu("a", "l", "a") + relu("b", "l", "b"))
    assert names(net) == ["data", "l", "l_l_0_split", "a", "b"]
    assert list(net.layer[1].loss_weight) == [] and list(net.layer[2].loss_weight) == [2, 0, 0]
    assert [list(layer.bottom) for layer in net.layer[3:]] == [["l_l_0_split_1"], ["l_l_0_split_2"]]


def test_a_split_takes_the_loss_weights_of_all_tops() -> None:
    """As Caffe does: the second top's weight is lost."""
    two = 'layer { name: "s" type: "Slice" bottom: "data" top: "p" top: "q" loss_weight: 2 loss_weight: 3 } '
    net = split(INPUT + two + relu("a", "p", "a"))
    assert list(net.layer[1].loss_weight) == [] and list(net.layer[2].loss_weight) == [2, 0]


def test_a_loss_weight_of_nothing_else_stays() -> None:
    net = parse_net(INPUT + 'layer { name: "l" type: "Reduction" bottom: "data" top: "l" loss_weight: 2 }')
    assert insert_splits(net) == net


def test_layers_of_one_name_are_allowed() -> None:
    net = parse_net(INPUT + relu("a", "data", "x") + relu("a", "x", "y"))
    assert insert_splits(net) == net


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (relu("a", "dat", "a"), "layer a: unknown bottom 'dat'; .*; did you mean data\\?"),
        (relu("a", "later", "a") + relu("b", "data", "later"), "layer a: unknown bottom 'later'"),
        (relu("a", "data", "x") + relu("b", "data", "x"), "layer b: top 'x' is made by layer a too"),
        (relu("a", "data", "a") + relu("b", "data", "data"), "layer b: it works in place on 'data'"),
        (
            relu("a", "data", "a") + 'layer { name: "s" type: "Slice" bottom: "a" top: "b" top: "a" }',
            "layer s: top 'a' is made by layer a too",
        ),
    ],
)  # fmt: skip
def test_nets_that_do_not_connect(text: str, words: str) -> None:
    with pytest.raises(NetError, match=words):
        split(INPUT + text)
