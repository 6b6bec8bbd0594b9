"""Shape inference: published sizes, sizes worked out on paper, and an error for each thing that can be wrong.

What real Caffe makes of single layers and whole nets is compared in test_golden_geometry.py. Facts marked
[Caffe] below were observed in a running Caffe build.
"""

from __future__ import annotations

from math import ceil, floor

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError
from surgery.shapes import Shape, data_types, infer_shapes, known_types, needed_inputs

FORKS = {
    "BN",
    "DenseImageData",
    "EltwiseAccuracy",
    "ImageSegData",
    "Interp",
    "Unpooling",
    "Upsample",
    "WindowSegData",
}  # layer types of forks of Caffe

# fcn-nets.md: blob sizes of FCN-8s for a 500x500 input, as published.
FCN8S_SIZES = {
    "conv1_1": 698,
    "pool1": 349,
    "pool2": 175,
    "pool3": 88,
    "pool4": 44,
    "pool5": 22,
    "fc6": 16,
    "upscore2": 34,
    "upscore_pool4": 70,
    "upscore8": 568,
    "score": 500,
}


def parse(text: str) -> caffe_pb2.NetParameter:
    return text_format.Parse(text, caffe_pb2.NetParameter())


def net_of(layer: str, *bottoms: Shape, tops: int = 1) -> caffe_pb2.NetParameter:
    """One layer `l` over inputs x0, x1, ..., with tops y0, y1, ..."""
    net = caffe_pb2.NetParameter()
    for i, shape in enumerate(bottoms):
        source = net.layer.add(name=f"x{i}", type="Input", top=[f"x{i}"])
        source.input_param.shape.add(dim=shape)
    text_format.Parse(layer, net.layer.add(name="l", bottom=[f"x{i}" for i in range(len(bottoms))]))
    net.layer[-1].top.extend(f"y{i}" for i in range(tops))
    return net


def fcn8s() -> str:
    """FCN-8s's geometry: the convolutions that keep the size left out, widths of 1 and 2."""
    conv = 'layer {{ name: "{0}" type: "Convolution" bottom: "{1}" top: "{0}" convolution_param {{ {2} }} }}'
    pool = (
        'layer {{ name: "{0}" type: "Pooling" bottom: "{1}" top: "{0}" pooling_param {{ kernel_size: 2 '
        "stride: 2 }} }}"
    )
    up = (
        'layer {{ name: "{0}" type: "Deconvolution" bottom: "{1}" top: "{0}" convolution_param {{ '
        "num_output: 2 bias_term: false {2} }} }}"
    )
    crop = (
        'layer {{ name: "{0}" type: "Crop" bottom: "{1}" bottom: "{2}" top: "{0}" crop_param {{ axis: 2 '
        "offset: {3} }} }}"
    )
    add = 'layer {{ name: "{0}" type: "Eltwise" bottom: "{1}" bottom: "{2}" top: "{0}" }}'
    return "\n".join(
        [
            'layer { name: "data" type: "Input" top: "data"'
            " input_param { shape { dim: [1, 3, 500, 500] } } }",
            conv.format("conv1_1", "data", "num_output: 1 kernel_size: 3 pad: 100"),
            pool.format("pool1", "conv1_1"),
            pool.format("pool2", "pool1"),
            pool.format("pool3", "pool2"),
            pool.format("pool4", "pool3"),
            pool.format("pool5", "pool4"),
            conv.format("fc6", "pool5", "num_output: 2 kernel_size: 7"),
            up.format("upscore2", "fc6", "kernel_size: 4 stride: 2"),
            conv.format("score_pool4", "pool4", "num_output: 2 kernel_size: 1"),
            crop.format("score_pool4c", "score_pool4", "upscore2", 5),
            add.format("fuse_pool4", "upscore2", "score_pool4c"),
            up.format("upscore_pool4", "fuse_pool4", "kernel_size: 4 stride: 2"),
            conv.format("score_pool3", "pool3", "num_output: 2 kernel_size: 1"),
            crop.format("score_pool3c", "score_pool3", "upscore_pool4", 9),
            add.format("fuse_pool3", "upscore_pool4", "score_pool3c"),
            up.format("upscore8", "fuse_pool3", "kernel_size: 16 stride: 8"),
            crop.format("score", "upscore8", "data", 31),
        ]
    )


def test_the_published_sizes_of_fcn8s_come_out() -> None:
    blobs = infer_shapes(parse(fcn8s())).blobs
    assert {name: blobs[name][2:] for name in FCN8S_SIZES} == {k: (v, v) for k, v in FCN8S_SIZES.items()}


def test_input_shapes_replace_those_of_the_net() -> None:
    blobs = infer_shapes(parse(fcn8s()), {"data": (2, 3, 100, 60)}).blobs
    assert blobs["score"] == (2, 2, 100, 60)


CONV = 'type: "Convolution" convolution_param {{ num_output: 4 {} }}'.format
DECONV = 'type: "Deconvolution" convolution_param {{ num_output: 4 {} }}'.format
POOL = 'type: "Pooling" pooling_param {{ {} }}'.format


@pytest.mark.parametrize(
    ("layer", "bottoms", "tops", "params"),
    [
        # 4-D, 3-D and 5-D convolutions; (n + 2p - d(k-1) - 1) / s + 1
        (
            CONV("kernel_size: 3 stride: 2 pad: 1 group: 2"),
            [(1, 6, 9, 10)],
            [(1, 4, 5, 5)],
            [(4, 3, 3, 3), (4,)],
        ),
        (CONV("kernel_size: 3"), [(2, 3, 9)], [(2, 4, 7)], [(4, 3, 3), (4,)]),
        (
            CONV("kernel_size: 3 kernel_size: 2 kernel_size: 1"),
            [(2, 3, 9, 9, 9)],
            [(2, 4, 7, 8, 9)],
            [(4, 3, 3, 2, 1), (4,)],
        ),
        (CONV("kernel_size: 2 axis: -2 bias_term: false"), [(5, 2, 3, 9)], [(5, 2, 4, 8)], [(4, 3, 2)]),
        # a kernel larger than the input by less than the stride: C truncates -2/3 to 0 [Caffe]
        (CONV("kernel_size: 4 stride: 3"), [(1, 2, 2, 2)], [(1, 4, 1, 1)], [(4, 2, 4, 4), (4,)]),
        # deconvolution: weights are (in, out / group), also with groups
        (
            DECONV("kernel_h: 4 kernel_w: 3 stride: 2 group: 2"),
            [(1, 6, 5, 5)],
            [(1, 4, 12, 11)],
            [(6, 2, 4, 3), (4,)],
        ),
        # pooling: ceil, and the clip only where there is padding
        (POOL("kernel_size: 2 stride: 4"), [(1, 2, 7, 7)], [(1, 2, 3, 3)], []),
        (POOL("kernel_size: 2 stride: 2 pad: 1"), [(1, 2, 7, 7)], [(1, 2, 4, 4)], []),
        (POOL("kernel_size: 3 stride: 2 round_mode: FLOOR"), [(1, 2, 8, 8)], [(1, 2, 3, 3)], []),
        (POOL("global_pooling: true pool: AVE"), [(3, 2, 8, 5)], [(3, 2, 1, 1)], []),
        (POOL("kernel_size: 3"), [(1, 1, 5, 5)], [(1, 1, 3, 3)] * 2, []),
        # recurrent layers: T x N x ..., gates in one matrix
        (
            'type: "LSTM" recurrent_param { num_output: 5 }',
            [(4, 3, 2, 2), (4, 3)],
            [(4, 3, 5)],
            [(20, 4), (20,), (20, 5)],
        ),
        (
            'type: "LSTM" recurrent_param { num_output: 5 expose_hidden: true }',
            [(4, 3, 2), (4, 3), (3, 7), (1, 3, 5), (1, 3, 5)],
            [(4, 3, 5), (1, 3, 5), (1, 3, 5)],
            [(20, 2), (20,), (20, 7), (20, 5)],
        ),
        (
            'type: "RNN" recurrent_param { num_output: 5 }',
            [(4, 3, 2), (4, 3)],
            [(4, 3, 5)],
            [(5, 2), (5,), (5, 5), (5, 5), (5,)],
        ),
        # spatial pyramid: 1 + 4 + 16 bins a channel
        ('type: "SPP" spp_param { pyramid_height: 3 }', [(2, 3, 16, 16)], [(2, 63)], []),
        ('type: "BatchNorm"', [(2, 3, 4, 4)], [(2, 3, 4, 4)], [(3,), (3,), (1,)]),
        (
            'type: "Scale" scale_param { axis: 1 num_axes: 2 bias_term: true }',
            [(2, 3, 4, 5)],
            [(2, 3, 4, 5)],
            [(3, 4), (3, 4)],
        ),
        ('type: "Scale" scale_param { bias_term: true }', [(2, 3, 4, 5), (3, 4)], [(2, 3, 4, 5)], [(3, 4)]),
        ('type: "Embed" embed_param { num_output: 4 input_dim: 9 }', [(2, 3)], [(2, 3, 4)], [(9, 4), (4,)]),
        (
            'type: "Reshape" reshape_param { shape { dim: 0 dim: -1 } axis: 1 num_axes: 2 }',
            [(2, 3, 4, 5)],
            [(2, 3, 4, 5)],
            [],
        ),
        # an end before the start by one makes an axis [Caffe]
        ('type: "Flatten" flatten_param { axis: 2 end_axis: 1 }', [(2, 3, 4)], [(2, 3, 1, 4)], []),
        (
            'type: "Slice" slice_param { slice_point: 1 slice_point: 3 }',
            [(2, 7)],
            [(2, 1), (2, 2), (2, 4)],
            [],
        ),
        ('type: "Parameter" parameter_param { shape { dim: 2 dim: 3 } }', [], [(2, 3)], [(2, 3)]),
        (
            'type: "InnerProduct" inner_product_param { num_output: 7 transpose: true }',
            [(2, 3, 4, 5)],
            [(2, 7)],
            [(60, 7), (7,)],
        ),
    ],
)
def test_a_layer_has_the_shapes_worked_out_on_paper(
    layer: str, bottoms: list[Shape], tops: list[Shape], params: list[Shape]
) -> None:
    found = infer_shapes(net_of(layer, *bottoms, tops=len(tops))).layers["l"]
    assert (list(found.tops), list(found.params)) == (tops, params)


@settings(deadline=None, max_examples=200)
@given(
    size=st.integers(1, 60),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 7),
    pad=st.integers(0, 8),
    floors=st.booleans(),
)
def test_pooling_windows_by_listing_them(size: int, kernel: int, stride: int, pad: int, floors: bool) -> None:
    if pad >= kernel or size + 2 * pad < kernel:
        return
    mode = "FLOOR" if floors else "CEIL"
    layer = POOL(f"kernel_size: {kernel} stride: {stride} pad: {pad} round_mode: {mode}")
    net = net_of(layer, (1, 1, size, size))
    rounded = (floor if floors else ceil)((size + 2 * pad - kernel) / stride)
    starts = [i * stride - pad for i in range(rounded + 1)]
    if pad and starts[-1] >= size:  # the last window of a padded map starts inside the image
        starts.pop()
    assert infer_shapes(net).blobs["y0"] == (1, 1, len(starts), len(starts))


@pytest.mark.parametrize(
    ("layer", "bottoms", "tops", "words"),
    [
        (CONV("kernel_size: 0"), [(1, 2, 5, 5)], 1, ["kernel_size 0", "at least 1"]),
        (CONV(""), [(1, 2, 5, 5)], 1, ["no kernel_size"]),
        (CONV("kernel_size: 3 stride: 0"), [(1, 2, 5, 5)], 1, ["stride 0"]),
        (
            CONV("kernel_size: 3 kernel_h: 3 kernel_w: 3"),
            [(1, 2, 5, 5)],
            1,
            ["both kernel_size and kernel_h"],
        ),
        (CONV("kernel_h: 3"), [(1, 2, 5, 5)], 1, ["kernel_w 0"]),
        (CONV("kernel_h: 3 kernel_w: 3"), [(1, 2, 5)], 1, ["1 spatial axes"]),
        (
            CONV("kernel_size: 3 kernel_size: 3 kernel_size: 3"),
            [(1, 2, 5, 5)],
            1,
            ["kernel_size has 3 values"],
        ),
        (CONV("kernel_size: 3 axis: 4"), [(1, 2, 5, 5)], 1, ["axis 4", "-4 to 3"]),
        (CONV("kernel_size: 3 group: 4"), [(1, 6, 5, 5)], 1, ["group 4", "6"]),
        (CONV("kernel_size: 3 group: 3"), [(1, 6, 5, 5)], 1, ["group 3", "num_output 4"]),
        (CONV("kernel_size: 3"), [(1, 2, 5, 5), (1, 2, 5, 6)], 2, ["x1", "1x2x5x6", "1x2x5x5"]),
        (CONV("kernel_size: 7"), [(1, 2, 5, 5)], 1, ["1x4x-1x-1"]),
        ('type: "Convolution" convolution_param { kernel_size: 3 }', [(1, 2, 5, 5)], 1, ["num_output 0"]),
        (DECONV("kernel_size: 1 pad: 9"), [(1, 2, 5, 5)], 1, ["1x4x-13x-13"]),
        (POOL("kernel_size: 3 pad: 3"), [(1, 2, 5, 5)], 1, ["pad_h 3", "kernel_h 3", "at most 2"]),
        (POOL("kernel_size: 3 stride: 0"), [(1, 2, 5, 5)], 1, ["stride 0"]),
        (POOL("kernel_h: 3"), [(1, 2, 5, 5)], 1, ["only one of kernel_h and kernel_w"]),
        (POOL("stride: 2"), [(1, 2, 5, 5)], 1, ["no kernel_size"]),
        (POOL("kernel_size: 2 pad: 1 pool: STOCHASTIC"), [(1, 2, 5, 5)], 1, ["stochastic"]),
        (
            POOL("global_pooling: true kernel_size: 2"),
            [(1, 2, 5, 5)],
            1,
            ["global_pooling with kernel_size 2"],
        ),
        (POOL("global_pooling: true stride: 2"), [(1, 2, 5, 5)], 1, ["global_pooling with stride"]),
        (POOL("kernel_size: 2"), [(1, 2, 5)], 1, ["1x2x5", "4 axes"]),
        (POOL("kernel_size: 2 pool: AVE"), [(1, 2, 5, 5)], 2, ["2 tops"]),
        ('type: "ReLU"', [(1, 2), (1, 2)], 1, ["2 bottoms", "wanted 1"]),
        ('type: "Eltwise"', [(1, 2), (1, 3)], 1, ["x1", "1x3", "1x2"]),
        ('type: "Eltwise" eltwise_param { coeff: [1, 2, 3] }', [(1, 2), (1, 2)], 1, ["3 values of coeff"]),
        ('type: "Eltwise" eltwise_param { operation: PROD coeff: [1, 2] }', [(1, 2), (1, 2)], 1, ["coeff"]),
        ('type: "Concat"', [(1, 2, 3), (1, 2, 4)], 1, ["x1", "1x2x4", "1x2x3"]),
        (
            'type: "Concat" concat_param { axis: 1 concat_dim: 1 }',
            [(1, 2), (1, 2)],
            1,
            ["axis and concat_dim"],
        ),
        ('type: "Slice"', [(1, 5)], 2, ["1x5", "2 tops"]),
        ('type: "Slice" slice_param { slice_point: 5 }', [(1, 5)], 2, ["slice_point [5]"]),
        (
            'type: "Slice" slice_param { slice_point: 1 slice_point: 2 }',
            [(1, 5)],
            2,
            ["2 values of slice_point"],
        ),
        ('type: "Crop"', [(1, 2, 5, 5), (1, 2, 6, 4)], 1, ["offset 0 in axis 2", "5", "6"]),
        (
            'type: "Crop" crop_param { offset: 2 }',
            [(1, 2, 5, 5), (1, 2, 4, 3)],
            1,
            ["offset 2 in axis 2", "at most 1"],
        ),
        (
            'type: "Crop" crop_param { offset: [1, 1, 1] }',
            [(1, 2, 5, 5), (1, 2, 4, 3)],
            1,
            ["3 values of offset", "2"],
        ),
        ('type: "Crop"', [(1, 2, 5, 5), (5, 5)], 1, ["x1", "5x5", "4 axes"]),
        ('type: "Reshape" reshape_param { shape { dim: -1 dim: -1 } }', [(2, 3)], 1, ["shape [-1, -1]"]),
        ('type: "Reshape" reshape_param { shape { dim: 4 dim: -1 } }', [(2, 3)], 1, ["-1 in 2x3"]),
        ('type: "Reshape" reshape_param { shape { dim: 5 } }', [(2, 3)], 1, ["6 values, not 5"]),
        ('type: "Reshape" reshape_param { shape { dim: 1 dim: 2 dim: 0 } }', [(2, 3)], 1, ["copies axis 2"]),
        ('type: "Reshape" reshape_param { axis: 3 }', [(2, 3)], 1, ["axis 3"]),
        ('type: "Reshape" reshape_param { num_axes: 3 }', [(2, 3)], 1, ["num_axes 3"]),
        ('type: "Flatten" flatten_param { axis: 2 end_axis: 0 }', [(2, 3, 4)], 1, ["end_axis 0", "axis 2"]),
        ('type: "LRN" lrn_param { local_size: 4 }', [(1, 2, 3, 3)], 1, ["local_size 4", "odd"]),
        ('type: "InnerProduct"', [(1, 2)], 1, ["num_output 0"]),
        ('type: "Embed" embed_param { num_output: 2 }', [(3,)], 1, ["input_dim 0"]),
        ('type: "Exp" exp_param { base: -2 }', [(1, 2)], 1, ["base -2"]),
        ('type: "Tile"', [(1, 2)], 1, ["tiles 0"]),
        ('type: "PReLU"', [(3,)], 1, ["at least 2 axes"]),
        ('type: "PReLU"', [(1, 1, 1, 1, 1)], 1, ["at most 4 axes"]),
        ('type: "BatchNorm"', [(3,)], 1, ["at least 2 axes"]),
        ('type: "Scale" scale_param { axis: 2 num_axes: 3 }', [(1, 2, 3, 3)], 1, ["num_axes 3"]),
        ('type: "Scale"', [(1, 2, 3, 3), (3,)], 1, ["x1"]),
        ('type: "ArgMax" argmax_param { top_k: 3 axis: 1 }', [(1, 2, 9)], 1, ["top_k 3", "1 to 2"]),
        ('type: "Accuracy" accuracy_param { top_k: 6 }', [(2, 5), (2,)], 1, ["top_k 6"]),
        ('type: "Accuracy"', [(2, 5, 3), (2,)], 1, ["x1", "2 labels", "6"]),
        ('type: "SoftmaxWithLoss"', [(2, 5, 3, 3), (2,)], 1, ["x1", "18"]),
        ('type: "SoftmaxWithLoss"', [(2, 5), (1, 2)], 1, ["same first size"]),
        (
            'type: "SoftmaxWithLoss" loss_weight: 1 loss_weight: 2',
            [(2, 5), (2,)],
            1,
            ["2 values of loss_weight"],
        ),
        ('type: "EuclideanLoss"', [(2, 5), (2, 4)], 1, ["2x5", "2x4"]),
        ('type: "MultinomialLogisticLoss"', [(2, 5), (2, 4)], 1, ["one label an item"]),
        ('type: "ContrastiveLoss"', [(2, 5), (2, 4), (2,)], 1, ["2x5", "2x4"]),
        ('type: "InfogainLoss"', [(2, 5), (2,)], 1, ["no source"]),
        ('type: "InfogainLoss"', [(2, 5), (2,), (1, 1, 4, 4)], 1, ["1x1x5x5"]),
        ('type: "BatchReindex"', [(2, 5), (2, 1)], 1, ["2x1"]),
        ('type: "Filter"', [(2, 5), (3,)], 1, ["x0", "3 items"]),
        ('type: "Filter"', [(2, 5), (2,)], 2, ["2 tops", "wanted 1"]),
        ('type: "LSTM" recurrent_param { num_output: 5 }', [(4, 3, 2), (4, 2)], 1, ["4x3x2", "4x2"]),
        (
            'type: "LSTM" recurrent_param { num_output: 5 expose_hidden: true }',
            [(4, 3, 2), (4, 3)],
            1,
            ["expose_hidden true", "4 or 5 bottoms"],
        ),
        ('type: "LSTM"', [(4, 3, 2), (4, 3)], 1, ["num_output 0"]),
        ('type: "LSTM"', [(4, 3), (4, 3)], 1, ["at least 3 axes"]),
        ('type: "RNN" recurrent_param { num_output: 5 }', [(4, 3, 2), (4, 3), (3,)], 1, ["one row a stream"]),
        ('type: "LSTMUnit"', [(1, 3, 2), (1, 3, 6), (1, 3)], 2, ["1x3x6", "4d"]),
        ('type: "SPP"', [(1, 2, 5, 5)], 1, ["pyramid_height 0"]),
        ('type: "SPP" spp_param { pyramid_height: 4 }', [(1, 2, 5, 5)], 1, ["pyramid level"]),
        ('type: "DummyData"', [], 1, ["0 shapes", "wanted 1"]),
        ('type: "DummyData" dummy_data_param { num: 1 shape { dim: 1 } }', [], 1, ["both shape and num"]),
        ('type: "HDF5Output"', [(2, 3), (4,)], 0, ["same first size"]),
        ('type: "ReLU" param { name: "w" }', [(1, 2)], 1, ["1 param entries for 0"]),
        ('type: "Python"', [(1, 2)], 1, ["no shape for blob y0", "input_shapes"]),
    ],
)
def test_a_layer_that_cannot_be_is_named_with_the_reason(
    layer: str, bottoms: list[Shape], tops: int, words: list[str]
) -> None:
    with pytest.raises(NetError) as caught:
        infer_shapes(net_of(layer, *bottoms, tops=tops))
    message = str(caught.value).lower()
    assert message.startswith("layer l (")
    assert [word for word in words if word.lower() not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('layer { name: "c" type: "Convolutoin" }', ["Convolutoin", "Convolution or Deconvolution"]),
        ('layer { name: "c" type: "ReLU" bottom: "b" top: "c" }', ["bottom b"]),
        ('layer { name: "a" type: "Data" top: "data" }', ["no shape for blob data", "--size"]),
        ('layer { name: "a" type: "Input" top: "data" }', ["no shape for blob data"]),
        (
            'layer { name: "a" type: "Input" top: "x" input_param { shape { dim: [1, 0] } } }',
            ["x would be 1x0"],
        ),
        (
            'layer { name: "a" type: "Input" top: "x" input_param { shape { dim: 2 } shape { dim: 3 } } }',
            ["2 shapes for 1 tops"],
        ),
        (
            'layer { name: "a" type: "Input" top: "x" input_param { shape { dim: 65536 dim: 32768 } } }',
            ["2147483648 values"],
        ),
        (
            'layer { name: "a" type: "Parameter" top: "x" parameter_param { shape { dim: 2 } } }'
            'layer { name: "b" type: "Parameter" top: "x" parameter_param { shape { dim: 2 } } }',
            ["layer b", "top x is already"],
        ),
        (
            'layer { name: "a" type: "Parameter" top: "x" parameter_param { shape { dim: 2 } } }'
            'layer { name: "a" type: "ReLU" bottom: "x" top: "x" }',
            ["a second layer of this name"],
        ),
        (
            'layer { name: "a" type: "Parameter" top: "x" parameter_param { shape { dim: 2 } } }'
            'layer { name: "b" type: "Reduction" bottom: "x" top: "x" }',
            ["replaces its bottom"],
        ),
        (
            'layer { name: "a" type: "Parameter" top: "x" parameter_param { shape { dim: 2 dim: 3 } } }'
            'layer { name: "b" type: "Flatten" bottom: "x" top: "x" }',
            ["top x is also its bottom"],
        ),
        ('input: "data" input_dim: 1', ["upgrade"]),
        (
            'layer { name: "a" type: "Parameter" top: "x" param { name: "w" }'
            " parameter_param { shape { dim: 6 } } }"
            'layer { name: "b" type: "Parameter" top: "y" param { name: "w" }'
            " parameter_param { shape { dim: [2, 3] } } }",
            ["layer b", "shares w", "layer a"],
        ),
    ],
)
def test_a_net_that_cannot_be_is_named_with_the_reason(text: str, words: list[str]) -> None:
    with pytest.raises(NetError) as caught:
        infer_shapes(parse(text))
    assert [word for word in words if word not in str(caught.value)] == []


def test_shared_parameters_may_differ_in_shape_where_the_net_says_so() -> None:
    text = (
        'layer { name: "a" type: "Parameter" top: "x" param { name: "w" }'
        " parameter_param { shape { dim: 6 } } }"
        'layer { name: "b" type: "Parameter" top: "y" param { name: "w" share_mode: PERMISSIVE }'
        " parameter_param { shape { dim: [2, 3] } } }"
    )
    assert infer_shapes(parse(text)).blobs == {"x": (6,), "y": (2, 3)}


def test_a_name_in_input_shapes_that_is_no_input_is_refused() -> None:
    with pytest.raises(NetError, match="blob dta: no Input or data layer makes it; wanted data"):
        infer_shapes(parse(fcn8s()), {"dta": (1, 3, 8, 8)})


def test_data_layers_take_their_shapes_from_outside_and_label_items_from_the_data() -> None:
    net = parse(
        'layer { name: "d" type: "Data" top: "data" top: "label" }'
        'layer { name: "m" type: "MemoryData" top: "a" top: "b" memory_data_param { batch_size: 2'
        " channels: 3 height: 4 width: 5 } }"
    )
    assert needed_inputs(net) == ("data", "label")
    blobs = infer_shapes(net, {"data": (7, 3, 8, 8)}).blobs
    assert blobs == {"data": (7, 3, 8, 8), "label": (7,), "a": (2, 3, 4, 5), "b": (2,)}


def test_a_loss_without_tops_still_has_its_value() -> None:
    assert infer_shapes(net_of('type: "SoftmaxWithLoss"', (2, 5), (2,), tops=0)).layers["l"].tops == ((),)


def test_every_layer_type_of_caffe_is_known() -> None:
    # Type names of the layers registered by BVLC Caffe 1.0, as its layer catalogue lists them.
    names = """AbsVal Accuracy ArgMax BatchNorm BatchReindex Bias BNLL Clip Concat ContrastiveLoss Convolution
        Crop Data Deconvolution Dropout DummyData Eltwise ELU Embed EuclideanLoss Exp Filter
        Flatten HDF5Data HDF5Output HingeLoss Im2col ImageData InfogainLoss InnerProduct Input
        Log LRN LSTM LSTMUnit MemoryData MultinomialLogisticLoss MVN Parameter Pooling Power
        PReLU Python Reduction ReLU Reshape RNN Scale Sigmoid SigmoidCrossEntropyLoss Silence
        Slice Softmax SoftmaxWithLoss Split SPP Swish TanH Threshold Tile WindowData"""
    assert known_types() - FORKS == frozenset(names.split())
    assert data_types() < known_types()
