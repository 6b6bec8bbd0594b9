"""DeconvNet (Noh, Hong and Han, ICCV 2015) and its released files: the net's table, solvers, inference rules.

Counts are recomputed from kernels and widths. A row of Table 2 is half copy (kernel, stride and pad are those
of the released prototxt) and half arithmetic (size, parameters), so it counts as transcribed. Settings are
those of the released solvers and scripts (HyeonwooNoh/DeconvNet at 87dd133), written down in
`reproduce.nets.deconvnet` and `reproduce.deconvnet`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from caffe_weights.caffe_pb2 import LayerParameter
from reproduce.crf import SETTINGS
from reproduce.deconvnet import boxes, ensemble
from reproduce.deconvnet.rules import RELEASED
from reproduce.published.checks import Check, recomputed, transcribed, without
from reproduce.published.checks import nets as of
from reproduce.published.checks.nets import Nets

NET, STAGE_1, STAGE_2 = "deconvnet", "deconvnet/stage1", "deconvnet/stage2"
CONV, UP = "Convolution", "Deconvolution"
TABLE_2 = """
    conv1_1 conv1_2 pool1 conv2_1 conv2_2 pool2 conv3_1 conv3_2 conv3_3 pool3 conv4_1 conv4_2 conv4_3 pool4
    conv5_1 conv5_2 conv5_3 pool5 fc6 fc7 fc6-deconv unpool5 deconv5_1 deconv5_2 deconv5_3 unpool4 deconv4_1
    deconv4_2 deconv4_3 unpool3 deconv3_1 deconv3_2 deconv3_3 unpool2 deconv2_1 deconv2_2 unpool1 deconv1_1
    deconv1_2 seg-score-voc"""  # layers, row by row
ENSEMBLES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "deconv_score .* max(0, fcn_score)": lambda deconv, fcn: deconv * np.maximum(0, fcn),
    "max(deconv_score, fcn_score)": np.maximum,
    "deconv_score + fcn_score": np.add,
}

CUT_AT_LAST = "where the released solver stops"
ROW = "size and parameters are computed from kernel, stride and pad, which are those of the same file"
FULLY = "fc6 and fc7, convolutions in the released file"
NO_SCORE = "those named conv; fc6, fc7 and the score layer are convolutions too"
RECALLED_CONTEXT = (
    "our constant comes from the same notes: how the released boxes were enlarged is not in the code"
)
FILE = "the toolkit takes any FCN-8s; this names the file that the released script reads"


def table_row(nets: Nets, name: str, layer: str) -> str:
    """Kernel, stride, pad, size of the output and parameters of a layer, written as in the table."""
    found = nets.layer(name, layer)
    kernel, stride, pad = window(found)
    (_, channels, height, width), *_ = nets.shapes(name).layers[layer].tops
    values = of.layer_parameters(nets, name, layer)
    return f"{kernel}x{kernel} s{stride} p{pad} {height}x{width}x{channels} {values}"


def window(layer: LayerParameter) -> tuple[int, int, int]:
    """Kernel, stride and pad of a layer."""
    if layer.type == "Pooling":
        pool = layer.pooling_param
        return pool.kernel_size, pool.stride, pool.pad
    if layer.type == "Unpooling":
        unpool = layer.unpooling_param
        return unpool.kernel_size, unpool.stride, unpool.pad
    conv = layer.convolution_param
    return conv.kernel_size[0], (*conv.stride, 1)[0], (*conv.pad, 0)[0]


def batch(nets: Nets, split: str) -> tuple[int, int, int]:
    """Pictures of a pass, passes of an iteration, pictures of an iteration."""
    pictures = nets.layer(NET, "data", split).image_data_param.batch_size
    passes = nets.settings(f"{NET}/{split}").iter_size
    return pictures, passes, pictures * passes


def pictures_of_an_iteration(nets: Nets, split: str) -> int:
    """Pictures of a pass times passes of an iteration."""
    return batch(nets, split)[2]


def resized_and_cropped(nets: Nets, split: str) -> tuple[int, ...]:
    """The size that pictures are brought to, and that of the crops."""
    data = nets.layer(NET, "data", split)
    image, crop = data.image_data_param, data.transform_param.crop_size
    return image.new_height, image.new_width, crop, crop


def steps(nets: Nets, name: str) -> str:
    """When the rate falls, by what, and the last iteration."""
    solver = nets.settings(name)
    return f"{solver.lr_policy} {solver.stepsize}, gamma {solver.gamma:g} / {solver.max_iter}"


def momentum_and_decay(nets: Nets, *names: str) -> tuple[float, ...]:
    """Momentum and weight decay of solvers that agree."""
    return tuple(of.solver_setting(nets, path, *names) for path in ("momentum", "weight_decay"))


def input_side(nets: Nets, name: str) -> int:
    """The side of the pictures that the net takes."""
    return nets.shapes(name).blobs["data"][-1]


def released_rule(nets: Nets, field: str) -> int:
    """A rule of the released script about proposals."""
    return int(getattr(RELEASED, field))


def crf(nets: Nets, *fields: str) -> tuple[float, ...]:
    """Settings of the dense CRF."""
    return tuple(getattr(SETTINGS["deconvnet"], field) for field in fields)


def constant(nets: Nets, value: float) -> float:
    """A constant of the toolkit."""
    return value


def ensemble_rule(nets: Nets) -> str:
    """Which of some formulas gives the released ensemble's scores; DeconvNet's are clipped at 0."""
    rng = np.random.default_rng(0)
    deconv, fcn = np.maximum(rng.normal(size=(21, 4, 5)), 0), rng.normal(size=(21, 4, 5))
    found = ensemble.product_scores(deconv, fcn)
    return next((words for words, rule in ENSEMBLES.items() if np.array_equal(rule(deconv, fcn), found)), "")


CHECKS: dict[str, Check] = {
    **{
        f"DN.T2-{i:02}": transcribed(table_row, NET, layer, reason=ROW)
        for i, layer in enumerate(TABLE_2.split(), 1)
    },
    "DN.A-01": recomputed(of.parameters, NET),
    "DN.A-02": recomputed(of.layer_count, NET, CONV, "conv", reason=NO_SCORE),
    "DN.A-03": recomputed(of.layer_count, NET, CONV, "fc", reason=FULLY),
    "DN.A-04": recomputed(of.layer_count, NET, UP),
    "DN.A-05": recomputed(of.parameters, NET, CONV, UP),
    "DN.A-06": recomputed(of.parameters, NET),
    "DN.A-07": recomputed(of.parameters, NET, CONV),
    "DN.A-08": recomputed(of.parameters, NET, UP),
    "DN.A-09": recomputed(of.layer_parameters, NET, "fc6-deconv"),
    "DN.A-10": recomputed(of.sizes, "voc-fcn32s", "score_fr"),
    "DN.TR-01": transcribed(of.solver_setting, "base_lr", STAGE_1, STAGE_2),
    "DN.TR-02": transcribed(of.solver_setting, "momentum", STAGE_1, STAGE_2),
    "DN.TR-03": transcribed(of.solver_setting, "weight_decay", STAGE_1, STAGE_2),
    "DN.TR-04": transcribed(pictures_of_an_iteration, "stage1"),
    "DN.TR-05": transcribed(of.solver_setting, "max_iter", STAGE_1, reason=CUT_AT_LAST),
    "DN.TR-06": transcribed(of.solver_setting, "max_iter", STAGE_2, reason=CUT_AT_LAST),
    "DN.TR-10": transcribed(resized_and_cropped, "stage1"),
    "DN.TR-11": transcribed(constant, boxes.CONTEXT, reason=RECALLED_CONTEXT),
    "DN.TR-12": transcribed(constant, boxes.EDGE_BOXES),
    "DN.TR-13": transcribed(released_rule, "most"),
    "DN.RP-01": transcribed(batch, "stage1"),
    "DN.RP-02": transcribed(steps, STAGE_1),
    "DN.RP-03": transcribed(steps, STAGE_2),
    "DN.RP-04": transcribed(momentum_and_decay, STAGE_1, STAGE_2),
    "DN.RP-05": transcribed(released_rule, "most"),
    "DN.RP-06": transcribed(released_rule, "least_side"),
    "DN.RP-07": transcribed(input_side, NET),
    "DN.RP-08": transcribed(constant, ensemble.FCN_SIDE),
    "DN.RP-09": transcribed(crf, "gaussian_sxy", "gaussian_sxy", "gaussian_weight"),
    "DN.RP-10": transcribed(
        crf, "bilateral_sxy", "bilateral_sxy", "bilateral_srgb", "bilateral_srgb", "bilateral_srgb",
        "bilateral_weight"),
    "DN.RP-11": transcribed(crf, "iterations"),
    "DN.RP-12": transcribed(ensemble_rule),
    "DN.RP-13": without("out of scope", FILE),
}  # fmt: skip
