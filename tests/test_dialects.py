"""Files of Caffe's forks, encoded by hand byte by byte from the forks' field numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from google.protobuf.unknown_fields import UnknownFieldSet
from wire_bytes import blob, field, floats, layer, number, shape

from caffe_weights.caffe_pb2 import BNParameter, LayerParameter, NetParameter, UnpoolingParameter
from caffe_weights.caffemodel import read_caffemodel
from caffe_weights.dialects import BVLC_TYPES, DIALECTS, OURS
from caffe_weights.errors import FormatError, WeightsError
from caffe_weights.export import read_weights, write_weights
from caffe_weights.prototxt import parse_net
from caffe_weights.weights import Weights
from reproduce.cli import cli
from reproduce.net import Net
from surgery.shapes import LAYER_RULES, SOURCES

FILLER = field(1, b"constant") + b"\x15" + floats(1)  # type 1, value 2
run = CliRunner()


def old_blob(sizes: tuple[int, int, int, int], *values: float) -> bytes:
    """A BlobProto without shape: num, channels, height, width (1 to 4), data (5)."""
    return b"".join(number(i + 1, size) for i, size in enumerate(sizes)) + field(5, floats(*values))


def v1(name: str, kind: int, bottoms: list[str], tops: list[str], more: bytes = b"", *blobs: bytes) -> bytes:
    """A layer of the fork: bottom 2, top 3, name 4, type 5, blobs 6, then what is given."""
    ends = b"".join(field(2, b.encode()) for b in bottoms) + b"".join(field(3, t.encode()) for t in tops)
    body = ends + field(4, name.encode()) + number(5, kind) + b"".join(field(6, b) for b in blobs)
    return field(2, body + more)


# conv (CONVOLUTION 4), its BN (43, bn_param 45 with bn_mode INFERENCE 3 = 1), pool with mask (POOLING 17,
# pooling_param 19: kernel_size 2, stride 3), unpool (UNPOOLING 42, unpooling_param 44: kernel_size 2,
# stride 3, unpool_size 12)
BN_PARAM = field(45, field(1, FILLER) + field(2, FILLER) + number(3, 1))
DECONVNET = (
    field(1, b"tiny")
    + b"".join([field(3, b"data"), *(number(4, n) for n in (1, 1, 4, 4))])  # input, input_dim
    + v1("conv", 4, ["data"], ["conv"], field(10, number(1, 1) + number(4, 1)),
         old_blob((1, 1, 1, 1), 2), old_blob((1, 1, 1, 1), 0.5))
    + v1("bn", 43, ["conv"], ["conv"], BN_PARAM, old_blob((1, 1, 1, 1), 3), old_blob((1, 1, 1, 1), -1))
    + v1("pool", 17, ["conv"], ["pool", "mask"], field(19, number(2, 2) + number(3, 2)))
    + v1("unpool", 42, ["pool", "mask"], ["up"], field(44, number(2, 2) + number(3, 2) + number(12, 4)))
)  # fmt: skip


def write(tmp_path: Path, data: bytes, name: str = "a.caffemodel") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def test_a_file_of_deconvnets_fork_reads_runs_and_is_written_back(tmp_path: Path) -> None:
    path = write(tmp_path, DECONVNET)
    weights = read_weights(path)
    assert weights.model is not None and weights.model.dialect is DIALECTS["deconvnet"]
    assert [x.type for x in weights.model.layers] == ["CONVOLUTION", "BN", "POOLING", "UNPOOLING"]
    net = weights.net
    assert net is not None and [x.type for x in net.layer] == [
        "Input",
        "Convolution",
        "BN",
        "Pooling",
        "Unpooling",
    ]
    assert net.layer[2].bn_param.bn_mode == BNParameter.INFERENCE
    assert net.layer[4].unpooling_param == UnpoolingParameter(kernel_size=2, stride=2, unpool_size=4)
    assert [b.shape for b in weights["bn"]] == [(1, 1, 1, 1)] * 2

    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    with torch.no_grad():
        (up,) = Net(net, weights)(data=x).values()
    wanted = np.zeros((4, 4), np.float32)
    for place in (5, 7, 13, 15):  # the largest of each 2 x 2
        wanted.flat[place] = 3 * (2 * place + 0.5) - 1
    np.testing.assert_array_equal(up[0, 0], wanted)

    write_weights(weights, tmp_path / "b.caffemodel")
    assert (tmp_path / "b.caffemodel").read_bytes() == DECONVNET


def test_a_changed_layer_keeps_the_forks_numbers_and_blobs_of_four_sizes(tmp_path: Path) -> None:
    weights = read_weights(write(tmp_path, DECONVNET))
    weights["bn"] = [np.full((1, 1, 1, 1), 7, np.float32), np.full((1, 1, 1, 1), 8, np.float32)]
    weights["conv"][1] = np.array([9], np.float32)
    write_weights(weights, tmp_path / "b.caffemodel")
    wanted = DECONVNET
    for old, new in ((3, 7), (-1, 8), (0.5, 9)):
        assert wanted.count(field(5, floats(old))) == 1
        wanted = wanted.replace(field(5, floats(old)), field(5, floats(new)))
    assert (tmp_path / "b.caffemodel").read_bytes() == wanted


@pytest.mark.parametrize("dialect", ["bvlc", "segnet"])
def test_switched_off_or_changed_the_dialect_is_named(tmp_path: Path, dialect: str) -> None:
    path = write(tmp_path, DECONVNET)
    wanted = "BVLC Caffe's own numbers" if dialect == "bvlc" else "dialect segnet"
    with pytest.raises(FormatError, match=rf"dialect deconvnet \(HyeonwooNoh/caffe\); wanted {wanted}"):
        read_weights(path, dialect)
    with pytest.raises(FormatError, match="dialect nobody: no such dialect; wanted auto, bvlc, fcn-future"):
        read_weights(path, "nobody")
    assert read_weights(path, "deconvnet").count() == 4


def test_an_ordinary_file_is_of_no_dialect(tmp_path: Path) -> None:
    path = write(tmp_path, layer("ip", "InnerProduct", blob((1, 1), 1), blob((1,), 2)))
    assert read_caffemodel(path).dialect is None and read_caffemodel(path, "bvlc").dialect is None
    with pytest.raises(FormatError, match="a file with BVLC Caffe's own numbers; wanted dialect deconvnet"):
        read_weights(path, "deconvnet")


def test_the_data_layer_of_the_fork_is_read_with_its_own_numbers(tmp_path: Path) -> None:
    more = number(13, 0) + number(14, 3) + number(15, 254) + number(16, 2) + number(17, 9)
    image = field(15, field(1, b"list.txt") + number(4, 8) + more)
    data = v1("data", 46, [], ["data", "seg-label"], image) + DECONVNET
    net = read_weights(write(tmp_path, data)).net
    assert net is not None
    p = net.layer[1].image_data_param
    assert (net.layer[1].type, p.source, p.batch_size) == ("ImageSegData", "list.txt", 8)
    assert (p.has_label, p.max_labels, p.other_object_label) == (False, 3, 9)
    assert (p.ignore_label, p.label_type) == (254, p.PIXEL)


# The fork's enum LayerType beyond BVLC Caffe's 39, in caffe.proto of HyeonwooNoh/caffe at 0b9f3ad7.
FORK_TYPES = {
    "CROP": 40, "ELTWISE_ACCURACY": 41, "UNPOOLING": 42, "BN": 43, "RED_SOFTMAX_LOSS": 44, "RED_ACCURACY": 45,
    "IMAGE_SEG_DATA": 46, "WINDOW_SEG_DATA": 47, "WINDOW_INST_SEG_DATA": 48, "BIN_ACCURACY": 49,
    "WINDOW_CLS_DATA": 50,
}  # fmt: skip


@pytest.mark.parametrize("kind", FORK_TYPES)
def test_every_type_of_deconvnets_fork_is_known(tmp_path: Path, kind: str) -> None:
    """CROP alone speaks for an older fork, which has no other type of its own: here UNPOOLING has, too."""
    data = v1("x", FORK_TYPES[kind], ["a"], ["x"]) + v1("up", 42, ["p", "m"], ["up"])
    model = read_caffemodel(write(tmp_path, data))
    assert model.dialect is DIALECTS["deconvnet"]
    assert [layer.type for layer in model.layers] == [kind, "UNPOOLING"]


def test_kinds_of_the_fork_that_do_not_run_are_kept(tmp_path: Path) -> None:
    red = v1("red", 45, ["up", "l"], ["red"], field(47, number(3, 21)), old_blob((1, 1, 1, 1), 5))
    weights = read_weights(write(tmp_path, DECONVNET + red))
    assert weights.net is not None and weights.net.layer[-1].type == "RedAccuracy"
    weights["red"][0] = np.full((1, 1, 1, 1), 6, np.float32)
    write_weights(weights, tmp_path / "b.caffemodel")
    assert (tmp_path / "b.caffemodel").read_bytes() == (DECONVNET + red).replace(
        field(5, floats(5)), field(5, floats(6))
    )


def test_crop_alone_is_of_the_older_fork(tmp_path: Path) -> None:
    data = v1("ip", 14, ["a"], ["b"], field(17, number(1, 1)), old_blob((1, 1, 1, 1), 5)) + v1(
        "crop", 40, ["b", "a"], ["c"])  # fmt: skip
    weights = read_weights(write(tmp_path, data))
    assert weights.model is not None and weights.model.dialect is DIALECTS["fcn-future"]
    assert weights.net is not None and weights.net.layer[1].type == "Crop"


# ---- V2 ----

SIZES = blob((1, 2, 1, 1), 1, 2), blob((1, 2, 1, 1), 3, 4)


def v2(name: str, kind: str, number_of_param: int, param: bytes, *blobs: bytes) -> bytes:
    """A V2 layer with one message of settings behind its blobs (or before, in the order of numbers)."""
    settings = field(number_of_param, param)
    inner = field(1, name.encode()) + field(2, kind.encode()) + b"".join(field(7, b) for b in blobs)
    return field(100, inner + settings)


LEARN = field(1, FILLER) + field(2, FILLER)
INFERENCE = LEARN + number(3, 1)
V2_FILES = {
    "kersner": v2("bn", "BN", 143, INFERENCE, *SIZES)
    + v2("un", "Unpooling", 141, number(2, 2) + number(12, 8)),
    "segnet": v2("bn", "BN", 45, INFERENCE, *SIZES) + v2("un", "Upsample", 137, number(6, 8) + number(7, 8)),
    "segnet-cudnn5": v2("bn", "BN", 45, INFERENCE, *SIZES)
    + v2("un", "Upsample", 147, number(6, 8) + number(7, 8)),
}


def settings_of(layer: LayerParameter) -> list[str]:
    return [f.name for f, _ in layer.ListFields() if f.name not in ("name", "type", "blobs")]


@pytest.mark.parametrize("name", V2_FILES)
def test_v2_forks_are_told_apart(tmp_path: Path, name: str) -> None:
    """One number is input_param, embed_param or swish_param in BVLC Caffe: none of these is read."""
    path = write(tmp_path, V2_FILES[name])
    weights = read_weights(path)
    assert weights.model is not None and weights.model.dialect is DIALECTS[name]
    assert weights.net is not None
    norm, up = weights.net.layer
    assert settings_of(norm) == ["bn_param"]
    assert norm.bn_param.bn_mode == BNParameter.INFERENCE and norm.bn_param.scale_filler.value == 1
    settings = "unpooling_param" if name == "kersner" else "upsample_param"
    assert settings_of(up) == [settings]
    write_weights(weights, tmp_path / "b.caffemodel")
    assert (tmp_path / "b.caffemodel").read_bytes() == V2_FILES[name]
    weights["bn"][0] = weights["bn"][0] * 1  # written anew
    write_weights(weights, tmp_path / "c.caffemodel")
    again = read_weights(tmp_path / "c.caffemodel")
    assert again.model is not None and again.model.dialect is DIALECTS[name] and again.net == weights.net
    with pytest.raises(FormatError, match=f"a file in dialect {name} "):
        read_weights(path, "bvlc")


def test_kersners_file_is_written_from_a_net_as_it_would_be(tmp_path: Path) -> None:
    net = parse_net("""
    layer { name: "bn" type: "BN" bn_param { scale_filler { type: "constant" value: 1 }
            shift_filler { type: "constant" value: 1 } bn_mode: INFERENCE } }
    layer { name: "un" type: "Unpooling" unpooling_param { kernel_size: 2 unpool_size: 8 } }""")
    blobs = {"bn": [np.array(v, np.float32).reshape(1, 2, 1, 1) for v in ([1, 2], [3, 4])]}
    write_weights(Weights(blobs, net=net), tmp_path / "b.caffemodel")
    assert (tmp_path / "b.caffemodel").read_bytes() == V2_FILES["kersner"]


def test_a_layer_is_written_in_the_order_of_the_forks_numbers() -> None:
    """As protobuf does: dense_image_data_param 46 of this fork stands before transform_param 100."""
    net = parse_net("""
    layer { name: "d" type: "DenseImageData" transform_param { mirror: true }
            dense_image_data_param { source: "a.txt" batch_size: 4 } }""")
    written = DIALECTS["segnet-cudnn5"].write(net.layer[0].SerializeToString(), 2)
    names = field(1, b"d") + field(2, b"DenseImageData")
    assert written == names + field(46, field(1, b"a.txt") + number(2, 4)) + field(100, number(2, 1))


def test_a_bn_of_four_blobs_speaks_against_other_forks(tmp_path: Path) -> None:
    """Interp has number 143 in DeepLab's fork, whose files have no such BN."""
    up = v2("up", "Interp", 143, number(3, 2))
    assert read_caffemodel(write(tmp_path, up)).dialect is DIALECTS["deeplab"]
    found = read_caffemodel(write(tmp_path, up + layer("bn", "BN", *SIZES, *SIZES))).dialect
    assert "a fork that is not known" in str(found)


def test_what_no_fork_holds_together_is_not_written(tmp_path: Path) -> None:
    net = parse_net("""
    layer { name: "un" type: "Unpooling" unpooling_param { kernel_size: 2 unpool_size: 8 } }
    layer { name: "up" type: "Upsample" upsample_param { scale: 2 } }
    layer { name: "ip" type: "InnerProduct" }""")
    weights = Weights({"ip": [np.zeros((1, 1), np.float32)]}, net=net)
    with pytest.raises(
        FormatError, match=r"settings of layer un \(Unpooling\), among layers of forks \(Unpooling, Ups"
    ):
        write_weights(weights, tmp_path / "b.caffemodel")
    assert not list(tmp_path.iterdir())


def test_segnets_loss_is_not_taken_for_a_normalization(tmp_path: Path) -> None:
    """weight_by_label_freqs has the number of normalization; in the later fork normalization has another."""
    for name, more in (("segnet", b""), ("segnet-cudnn5", number(5, 3))):
        inside = number(1, 11) + number(3, 1) + field(4, floats(0.5, 2)) + more
        data = V2_FILES[name] + field(100, field(1, b"l") + field(2, b"SoftmaxWithLoss") + field(101, inside))
        net = read_weights(write(tmp_path, data)).net
        assert net is not None
        p = net.layer[2].loss_param
        assert p.weight_by_label_freqs and list(p.class_weighting) == [0.5, 2] and p.ignore_label == 11
        assert p.HasField("normalization") == bool(more) and (not more or p.normalization == p.NONE)


PSPNET = v2("bn", "BN", 137, field(1, FILLER) + number(9, 1), *SIZES, *SIZES) + v2(
    "up", "Interp", 163, number(1, 9) + number(2, 9)
)


@pytest.mark.parametrize("with_settings", [True, False])
def test_pspnets_bn_is_refused_by_name(tmp_path: Path, with_settings: bool) -> None:
    data = PSPNET if with_settings else layer("bn", "BN", *SIZES, *SIZES)
    weights = read_weights(write(tmp_path, data))
    assert weights.model is not None and weights.model.dialect is DIALECTS["pspnet"]
    assert weights.net is not None
    assert settings_of(weights.net.layer[0]) == []  # no embed_param
    net = parse_net("""
    layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 2 dim: 4 dim: 4 } } }
    layer { name: "bn" type: "BN" bottom: "d" top: "y" }""")
    with pytest.raises(WeightsError, match="layer bn: 4 blobs; wanted 2; a BN of 4 blobs .* PSPNet fork's"):
        Net(net, weights)
    note = run.invoke(cli, ["inspect", str(tmp_path / "a.caffemodel")]).output
    assert "dialect pspnet" in note and "layer 'bn' and others like it have 4 blobs" in note
    if with_settings:
        assert weights.net.layer[1].interp_param.height == 9
        write_weights(weights, tmp_path / "b.caffemodel", weights.net)  # no number of ours gets out
        written = NetParameter.FromString((tmp_path / "b.caffemodel").read_bytes())
        assert settings_of(written.layer[0]) == []
        unknown: Any = UnknownFieldSet(written.layer[0])  # its type does not say that it can be gone through
        assert not {found.field_number for found in unknown} & set(OURS)


def test_pspnets_scale_and_bias_have_other_numbers(tmp_path: Path) -> None:
    """160 and 161 in hszhao/PSPNet at 88d0b3ee, where BVLC Caffe has 142 and 141."""
    more = v2("s", "Scale", 160, number(4, 1), blob((2,), 1, 2)) + v2("b", "Bias", 161, number(1, 2))
    weights = read_weights(write(tmp_path, PSPNET + more))
    assert weights.net is not None
    assert weights.net.layer[2].scale_param.bias_term and weights.net.layer[3].bias_param.axis == 2
    weights["s"][0] = np.array([3, 4], np.float32)
    write_weights(weights, tmp_path / "b.caffemodel")
    wanted = (PSPNET + more).replace(floats(1, 2) + shape(2), floats(3, 4) + shape(2))
    assert (tmp_path / "b.caffemodel").read_bytes() == wanted


def test_pspnets_hole_is_a_dilation(tmp_path: Path) -> None:
    """17 to 19 in hszhao/PSPNet at 88d0b3ee are hole, hole_h, hole_w; 17 and 18 are others in BVLC Caffe."""
    one = v2("c", "Convolution", 106, number(1, 2) + number(17, 4), blob((1,), 1))
    two = v2("e", "Convolution", 106, number(1, 2) + number(18, 2) + number(19, 3), blob((1,), 1))
    weights = read_weights(write(tmp_path, PSPNET + one + two))
    assert weights.net is not None
    first, second = (x.convolution_param for x in weights.net.layer[2:])
    assert list(first.dilation) == [4] and not first.HasField("force_nd_im2col")
    assert not second.dilation  # two numbers have no place in ours
    weights["c"][0] = np.array([2], np.float32)
    write_weights(weights, tmp_path / "b.caffemodel")
    wanted = PSPNET + one.replace(floats(1) + shape(1), floats(2) + shape(1)) + two
    assert (tmp_path / "b.caffemodel").read_bytes() == wanted


def test_an_unknown_forks_settings_are_not_taken_for_anothers(tmp_path: Path) -> None:
    """YOLO's forks have reorg_param where BVLC Caffe has swish_param."""
    data = v2("r", "Reorg", 147, number(1, 2), blob((1,), 1))
    weights = read_weights(write(tmp_path, data))
    assert weights.model is not None and "a fork that is not known" in str(weights.model.dialect)
    assert weights.net is not None and not weights.net.layer[0].HasField("swish_param")
    weights["r"][0] = np.array([2], np.float32)
    write_weights(weights, tmp_path / "b.caffemodel")
    assert (tmp_path / "b.caffemodel").read_bytes() == v2("r", "Reorg", 147, number(1, 2), blob((1,), 2))
    with pytest.raises(
        FormatError, match="a fork that is not known.; wanted BVLC .*; read it in dialect auto"
    ):
        read_weights(tmp_path / "a.caffemodel", "bvlc")


def test_a_forks_type_may_take_the_settings_of_a_standard_layer(tmp_path: Path) -> None:
    """As the depthwise convolutions of many forks do, which have no number of their own."""
    data = v2("d", "DepthwiseConvolution", 106, number(1, 3), blob((3, 1, 1, 1), 1, 2, 3))
    weights = read_weights(write(tmp_path, data))
    assert weights.model is not None and weights.model.dialect is None
    assert weights.net is not None and weights.net.layer[0].convolution_param.num_output == 3


@pytest.mark.parametrize("data", [
    v2("bn", "BN", 2201, LEARN, *SIZES),
    v1("bn", 2043, ["a"], ["b"], b"", old_blob((1, 1, 1, 1), 1)),
    field(100, field(1, b"l") + field(2, b"Bias") + field(101, number(2001, 1)) + field(7, blob((1,), 1))),
])  # fmt: skip
def test_our_own_numbers_are_no_files(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(FormatError, match="a field or type of number 2000 to 2999"):
        read_weights(write(tmp_path, data))


def test_numbers_of_our_schema_are_ours_alone() -> None:
    for message in (
        LayerParameter.DESCRIPTOR,
        LayerParameter.DESCRIPTOR.fields_by_name["loss_param"].message_type,
    ):
        assert message is not None
        assert {f.number for f in message.fields if f.number > 148} <= set(OURS)
    ours = [n for d in DIALECTS.values() for table in d.fields.values() for n in table.values() if n in OURS]
    assert {n for n in ours if n < 2500} <= set(LayerParameter.DESCRIPTOR.fields_by_number)
    assert not {n for n in ours if n >= 2500} & set(LayerParameter.DESCRIPTOR.fields_by_number)


def test_types_of_bvlc_caffe_are_all_known() -> None:
    forks = {kind for d in DIALECTS.values() for kind in d.fields} - {"Scale", "Bias"}
    forks |= {"EltwiseAccuracy", "ImageSegData", "WindowSegData"}  # with no number of their own
    assert set(LAYER_RULES) | set(SOURCES) <= BVLC_TYPES | forks
    assert set(LAYER_RULES) | set(SOURCES) >= BVLC_TYPES


def test_inspect_names_the_dialect(tmp_path: Path) -> None:
    path = str(write(tmp_path, DECONVNET))
    shown = run.invoke(cli, ["inspect", path])
    assert "caffemodel V1, dialect deconvnet (HyeonwooNoh/caffe)" in shown.output and shown.exit_code == 0
    rows = json.loads(run.invoke(cli, ["inspect", path, "--json"]).stdout)["layers"]
    assert [row["type"] for row in rows] == ["Convolution", "BN", "Pooling", "Unpooling"]
    refused = run.invoke(cli, ["inspect", path, "--dialect", "bvlc"])
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"error: {path}: a file in dialect deconvnet (HyeonwooNoh/caffe); wanted BVLC Caffe's own numbers; "
        "read it in dialect deconvnet\n"
    )


def test_convert_weights_says_it(tmp_path: Path) -> None:
    path, out = str(write(tmp_path, DECONVNET)), str(tmp_path / "b.npz")
    assert "note: read in dialect deconvnet" in run.invoke(cli, ["convert-weights", path, out]).output
    assert sorted(np.load(out)) == ["bn.bias", "bn.weight", "conv.bias", "conv.weight"]
    again = run.invoke(cli, ["convert-weights", path, out, "--force", "--dialect", "bvlc"])
    assert again.exit_code == 2 and "dialect deconvnet" in again.stderr


def test_eltwise_accuracy_of_the_fork(tmp_path: Path) -> None:
    """ELTWISE_ACCURACY 41, eltwise_accuracy_param 43: top_k 1, ignore_label 2."""
    data = DECONVNET + v1("acc", 41, ["up", "l"], ["acc"], field(43, number(1, 3) + number(2, 255)))
    net = read_weights(write(tmp_path, data)).net
    assert net is not None and net.layer[-1].type == "EltwiseAccuracy"
    p = net.layer[-1].eltwise_accuracy_param
    assert (p.top_k, p.ignore_label) == (3, 255)
