"""Bad layers are refused when the net is made, in words; what is not refused runs, forward and backward."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from layer_fuzz import Draw, draw_net
from layer_nets import net_of

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import FileError, InputError, NetError
from reproduce.layers import LAYERS
from reproduce.net import Net
from surgery.shapes import LAYER_RULES

DRAWS = 40  # a type; 3,000 were tried when this was written
NO_SETTINGS = {  # nothing but their bottoms can be wrong
    "AbsVal", "BNLL", "Clip", "ELU", "Power", "ReLU", "Sigmoid", "Silence", "Split", "Swish", "TanH",
    "Threshold",
}  # fmt: skip
INDICES = {"Embed": 0, "BatchReindex": 1, "Unpooling": 1, "Upsample": 1}  # the bottom that holds indices

Case = tuple[str, list[tuple[int, ...]], str, str]
MAP, FLAT = (2, 4, 6, 6), (2, 6)
BAD: list[Case] = [  # type, bottoms, settings, what the error says after the layer
    ("Accuracy", [FLAT, (2,)], "accuracy_param { top_k: 7 }", "top_k 7 of 6 classes; wanted 1 to 6"),
    ("ArgMax", [FLAT], "argmax_param { axis: 2 }", "axis 2 on a blob with 2 axes; wanted -2 to 1"),
    ("BN", [FLAT], "", "bottom 0 (a) is 2x6; wanted 4 axes"),
    ("BatchNorm", [(3,)], "", "bottom 0 (a) is 3; wanted at least 2 axes"),
    ("BatchReindex", [FLAT, (2, 2)], "", "bottoms 2x6 and 2x2; wanted items, and a list with one axis"),
    ("Bias", [FLAT], "bias_param { num_axes: 3 }", "axis 1 and num_axes 3 on 2x6; wanted at most 2 axes"),
    ("Concat", [FLAT, (3, 6)], "",
     "bottom 1 (b) is 3x6; wanted the sizes of bottom 0 (2x6) in all axes but 1"),
    ("ContrastiveLoss", [FLAT, FLAT, (3,)], "",
     "bottoms a 2x6, b 2x6, c 3; wanted a label for each of 2 pairs"),
    ("Convolution", [MAP], "convolution_param { num_output: 2 kernel_size: 0 }",
     "kernel_size 0; wanted at least 1"),
    ("Convolution", [MAP], "convolution_param { num_output: 3 kernel_size: 1 group: 2 }",
     "group 2 does not divide num_output 3; wanted a divisor of both"),
    ("Convolution", [(2, 3)], "convolution_param { num_output: 2 kernel_size: 1 }",
     "axis 1 leaves 0 spatial axes; wanted 1 to 3"),
    ("Crop", [MAP, MAP], "crop_param { offset: 1 }",
     "offset 1 in axis 2: bottom 0 (a) has 6, bottom 1 (b) has 6"),
    ("Deconvolution", [MAP], "convolution_param { num_output: 2 kernel_size: 1 pad: 3 }",
     "top y0 would be 2x2x0x0; wanted sizes of at least 1"),
    ("Dropout", [FLAT], "dropout_param { dropout_ratio: 1 }",
     "dropout_ratio 1; wanted at least 0 and below 1"),
    ("DummyData", [], "dummy_data_param { shape { dim: 3 } data_filler { type: 'bilinear' } }",
     "filler bilinear: shape (3,); wanted 4 axes"),
    ("Eltwise", [FLAT, (2, 5)], "", "bottom 1 (b) is 2x5; wanted 2x6 as bottom 0 (a)"),
    ("EltwiseAccuracy", [MAP, (2, 6, 6)], "", "bottom 1 (b) is 2x6x6; wanted 4 axes"),
    ("EltwiseAccuracy", [MAP, (2, 1, 6, 5)], "", "bottom 1 (b) is 2x1x6x5; wanted 2x1x6x6, a label a pixel"),
    ("EltwiseAccuracy", [MAP, (2, 1, 6, 6)], "eltwise_accuracy_param { top_k: 5 }",
     "top_k 5 of 4 classes; wanted 1 to 4"),
    ("Embed", [(4,)], "embed_param { num_output: 2 }", "input_dim 0; wanted at least 1"),
    ("EuclideanLoss", [FLAT, (2, 5)], "", "bottoms a 2x6, b 2x5; wanted as many values in both"),
    ("EuclideanLoss", [(2, 3, 1, 1, 1)] * 2, "", "bottom 0 (a) is 2x3x1x1x1; wanted at most 4 axes"),
    ("Exp", [FLAT], "exp_param { base: 0 }", "base 0; wanted a positive number, or -1 for e"),
    ("Filter", [FLAT, (3,)], "", "bottom 0 (a) is 2x6; wanted 3 items as the selector (b)"),
    ("Flatten", [MAP], "flatten_param { axis: 3 end_axis: 1 }", "end_axis 1 lies before axis 3 of 2x4x6x6"),
    ("HDF5Output", [FLAT, (3,)], "", "bottoms 2x6 and 3; wanted the same first size"),
    ("HDF5Output", [FLAT, (2,)], "", "no file_name; wanted the file to write; set file_name"),
    ("HingeLoss", [FLAT, FLAT], "", "bottoms a 2x6, b 2x6; wanted one label an item"),
    ("HingeLoss", [(2, 3, 1, 1, 1), (2,)], "", "bottom 0 (a) is 2x3x1x1x1; wanted at most 4 axes"),
    ("Im2col", [MAP], "convolution_param { kernel_size: 7 }",
     "top y0 would be 2x196x0x0; wanted sizes of at least 1"),
    ("InfogainLoss", [FLAT, (2,)], "",
     "no source and no third bottom; wanted an infogain matrix; set source"),
    ("InfogainLoss", [FLAT, (2,)], 'infogain_loss_param { source: "no" }', "no: no such file"),
    ("InfogainLoss", [FLAT, (2,), (6, 6)], "loss_param { normalize: false }",
     "normalize is set; wanted normalization; this layer does not take the older flag"),
    ("InnerProduct", [FLAT], "", "num_output 0; wanted at least 1"),
    ("Interp", [MAP], "", "no ways of saying the size; wanted one: zoom_factor and shrink_factor, height"),
    ("Interp", [MAP, MAP], "interp_param { zoom_factor: 2 }", "2 ways of saying the size; wanted one"),
    ("Interp", [MAP], "interp_param { height: 3 }", "only one of height and width; wanted both, or neither"),
    ("Interp", [MAP], "interp_param { zoom_factor: 0 }", "zoom_factor 0; wanted at least 1"),
    ("Interp", [MAP, MAP], "interp_param { pad_end: 1 }", "pad_end 1; wanted at most 0: pixels to cut off"),
    ("Interp", [MAP, MAP], "interp_param { pad_beg: -6 }",
     "pad_beg -6 and pad_end 0 of 6x6; wanted a pixel left over"),
    ("Interp", [FLAT, MAP], "", "bottom 0 (a) is 2x6; wanted 4 axes"),
    ("LRN", [MAP], "lrn_param { local_size: 4 }", "local_size 4; wanted an odd size"),
    ("LSTM", [(3, 2, 4), (2, 3)], "recurrent_param { num_output: 2 }",
     "bottoms a 3x2x4 and b 2x3; wanted T x N x"),
    ("LSTMUnit", [(1, 2, 3), (1, 2, 3), (1, 2)], "", "bottoms a 1x2x3, b 1x2x3, c 1x2; wanted 1 x N x D"),
    ("Log", [FLAT], "log_param { base: 1 }", "base 1; wanted another base: 1 has no logarithm"),
    ("MVN", [(1, 2, 3, 4, 5)], "", "bottom 0 (a) is 1x2x3x4x5; wanted at most 4 axes"),
    ("MultinomialLogisticLoss", [FLAT, (2, 1, 1, 1, 1)], "",
     "bottom 1 (b) is 2x1x1x1x1; wanted at most 4 axes"),
    ("MultinomialLogisticLoss", [FLAT, FLAT], "", "bottoms a 2x6, b 2x6; wanted one label an item"),
    ("PReLU", [(3,)], "", "bottom 0 (a) is 3; wanted at least 2 axes"),
    ("Parameter", [], "parameter_param { shape { dim: 0 } }",
     "top y0 would be 0; wanted sizes of at least 1"),
    ("Pooling", [MAP], "pooling_param { kernel_size: 2 pad: 2 }",
     "pad_h 2 is not below kernel_h 2; wanted at most 1"),
    ("Pooling", [MAP], "pooling_param { kernel_size: 2 stride: 0 }", "stride 0; wanted at least 1"),
    ("RNN", [(3, 2, 4), (3, 2)], "", "num_output 0; wanted at least 1"),
    ("Reduction", [FLAT], "reduction_param { axis: -3 }", "axis -3 on a blob with 2 axes; wanted -2 to 1"),
    ("Reshape", [FLAT], "reshape_param { shape { dim: 5 dim: -1 } }",
     "shape [5, -1] leaves no whole size for -1 in 2x6; wanted sizes whose product (5) divides 12"),
    ("SPP", [MAP], "", "pyramid_height 0; wanted at least 1"),
    ("Scale", [MAP, (5,)], "", "bottom 1 (b) is 5; wanted the sizes of bottom 0 (2x4x6x6) from axis 1 on"),
    ("SigmoidCrossEntropyLoss", [FLAT, (2,)], "", "bottoms a 2x6, b 2; wanted as many values in both"),
    ("Slice", [FLAT], "slice_param { slice_point: 6 }", "1 values of slice_point for 1 tops; wanted 0"),
    ("SoftmaxWithLoss", [FLAT, (2,)], "loss_param { class_weighting: 2 }",
     "SegNet's weights of classes; wanted none: they are not run here"),
    ("Softmax", [FLAT], "softmax_param { axis: 2 }", "axis 2 on a blob with 2 axes; wanted -2 to 1"),
    ("SoftmaxWithLoss", [MAP, (2, 6)], "",
     "bottom 1 (b) is 2x6 with 12 labels; wanted 72, one for each item of 2x4x6x6 along axis 1"),
    ("Tile", [FLAT], "tile_param { tiles: 0 }", "tiles 0; wanted at least 1"),
    ("Unpooling", [MAP], "unpooling_param { unpool_size: 9 }",
     "no kernel_size; wanted kernel_size, or kernel_h and kernel_w"),
    ("Unpooling", [MAP], "unpooling_param { kernel_size: 2 }",
     "no unpool_size; wanted unpool_size, or unpool_h and unpool_w"),
    ("Unpooling", [MAP], "unpooling_param { kernel_size: 2 unpool_size: 9 unpool_h: 9 unpool_w: 9 }",
     "both unpool_size and unpool_h or unpool_w are set; wanted one of the two forms"),
    ("Unpooling", [MAP], "unpooling_param { kernel_h: 2 unpool_size: 9 }",
     "only one of kernel_h and kernel_w is set; wanted both, or neither"),
    ("Unpooling", [MAP], "unpooling_param { kernel_size: 2 unpool_size: 9 pad: 1 }", "pad 1x1; wanted 0"),
    ("Unpooling", [MAP], "unpooling_param { kernel_size: 2 unpool_size: 9 stride: 0 }",
     "stride_h 0; wanted at least 1"),
    ("Unpooling", [MAP, (2, 4, 6, 5)], "unpooling_param { kernel_size: 2 unpool_size: 12 }",
     "bottom 1 (b) is 2x4x6x5; wanted 2x4x6x6 as bottom 0"),
    ("Unpooling", [FLAT], "unpooling_param { kernel_size: 2 unpool_size: 12 }",
     "bottom 0 (a) is 2x6; wanted 4 axes"),
    ("Upsample", [MAP, MAP], "upsample_param { upsample_h: 9 }",
     "only one of upsample_h and upsample_w is set; wanted both, or a scale"),
    ("Upsample", [MAP, MAP], "upsample_param { scale: 1 }", "scale_h 1; wanted at least 2"),
    ("Upsample", [MAP, MAP], "upsample_param { scale: 3 pad_out_w: true }",
     "pad_out_w with a scale of 3; wanted a scale of 2"),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=[f"{case[0]}-{i}" for i, case in enumerate(BAD)])
def test_a_bad_setting_names_layer_field_found_and_wanted(case: Case) -> None:
    kind, shapes, more, message = case
    with pytest.raises(InputError, match=re.escape(f"layer l ({kind}): {message}")):
        net_of(kind, shapes, more, tops={"LSTMUnit": 2, "HDF5Output": 0}.get(kind, 1))


def test_every_type_with_settings_has_a_bad_case() -> None:
    assert {case[0] for case in BAD} | NO_SETTINGS == set(LAYERS) & set(LAYER_RULES)


@pytest.mark.parametrize("kind", sorted(set(LAYER_RULES) & set(LAYERS)))
def test_counts_of_bottoms_and_tops_are_checked(kind: str) -> None:
    _, (bottoms, _), (tops, _) = LAYER_RULES[kind]
    for what, count in (("bottom", bottoms), ("top", tops)):
        if not count:
            continue
        net = NetParameter()
        net.layer.add(name="x", type="Input", top=["x"]).input_param.shape.add(dim=[2, 3])
        layer = net.layer.add(name="l", type=kind, bottom=["x"] * bottoms)
        layer.top.extend(f"y{i}" for i in range(tops))
        getattr(layer, what).pop()
        with pytest.raises(NetError, match=rf"layer l \({kind}\): {count - 1} {what}s; wanted"):
            Net(net)


@pytest.mark.parametrize("kind", sorted(set(LAYER_RULES) & set(LAYERS)))
def test_random_settings_are_refused_in_words_or_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never an exception of PyTorch or numpy, neither when the net is made nor while it runs."""
    monkeypatch.chdir(tmp_path)  # HDF5Output writes
    ran = 0
    for seed in range(DRAWS):
        drawn = draw_net(kind, seed)
        try:
            net = Net(drawn.net, phase="TRAIN" if seed % 2 else "TEST", seed=seed)
        except InputError as error:
            refusal = error
        else:
            run_both_ways(net, drawn, kind, seed)
            ran += 1
            continue
        assert refusal.where.startswith("layer l"), f"seed {seed}: {refusal}"
        assert refusal.found and (refusal.wanted or isinstance(refusal, FileError)), f"seed {seed}: {refusal}"
    assert ran or kind in ("InfogainLoss",), "no draw made sense"


def test_loss_weights_and_propagate_down_are_counted() -> None:
    wrong = {
        "loss_weight: 1 loss_weight: 2": "2 values of loss_weight; wanted none or 1",
        "propagate_down: true": "1 values of propagate_down; wanted none or 2",
    }
    for field, message in wrong.items():
        with pytest.raises(NetError, match=message):
            net_of("EuclideanLoss", [FLAT, FLAT], field)
    text = text_format.MessageToString(net_of("EuclideanLoss", [FLAT, FLAT], "loss_weight: 1").definition)
    net = text_format.Parse(text.replace('top: "y0"', ""), NetParameter())
    assert Net(net).loss_weights == {"l": 1.0}  # a loss without a top gets one


def test_an_error_at_another_input_size_names_the_layer_too() -> None:
    net = net_of("Crop", [(1, 1, 6, 6), (1, 1, 4, 4)], "crop_param { offset: 2 }")
    with pytest.raises(
        NetError, match=r"layer l \(Crop\): offset 2 in axis 3: .*wanted an offset of at most 1"
    ):
        net(a=torch.zeros(1, 1, 6, 5), b=torch.zeros(1, 1, 4, 4))


def run_both_ways(net: Net, drawn: Draw, kind: str, seed: int) -> None:
    """Forward to the inferred shapes, and backward from the sum of the tops."""
    layer, inferred = drawn.net.layer[-1], net.shapes().layers["l"]
    labels = set() if kind == "Split" else set(net.layer("l").label_bottoms)
    labels |= {INDICES[kind]} if kind in INDICES else set()
    inputs = {
        name: torch.zeros(shape) if i in labels else torch.rand(shape, requires_grad=True)
        for i, (name, shape) in enumerate(drawn.inputs.items())
    }
    tops = net(keep=list(layer.top), **inputs)
    if kind != "Filter":  # how many items pass is known only now
        assert tuple(tuple(tops[top].shape) for top in layer.top) == inferred.tops[: len(layer.top)], (
            f"{seed}"
        )
    terms = [top.sum() for top in tops.values() if top.requires_grad]
    if terms:
        torch.stack(terms).sum().backward()
