"""The reference repository's numbers (shelhamer/fcn.berkeleyvision.org at 1305c73): lists, crops, counts.

Parameter counts, receptive fields, grids and crop offsets are recomputed: what our nets take from the
repository are layers and kernels, never these. Solver settings, means and scales are copies of its files.
"""

from __future__ import annotations

from reproduce.published.checks import Check, recomputed, transcribed
from reproduce.published.checks import nets as of
from reproduce.published.checks.lists import list_length

CONV, UP = "Convolution", "Deconvolution"
VOC_32S, VOC_8S, AT_ONCE, ALEXNET = "voc-fcn32s", "voc-fcn8s", "voc-fcn8s-atonce", "voc-fcn-alexnet"

COUNTED = (
    VOC_32S,
    "voc-fcn16s",
    VOC_8S,
    ALEXNET,
    "nyud-fcn32s-color",
    "pascalcontext-fcn8s",
    "siftflow-fcn8s",
)
SOLVERS = (
    (VOC_32S,), ("voc-fcn16s",), (VOC_8S,), (AT_ONCE,), (ALEXNET,),
    ("nyud-fcn32s-color", "nyud-fcn32s-hha", "nyud-fcn32s-color-d"), ("nyud-fcn32s-color-hha",),
    ("siftflow-fcn32s",), ("siftflow-fcn16s",), ("siftflow-fcn8s",),
    ("pascalcontext-fcn32s",), ("pascalcontext-fcn16s",), ("pascalcontext-fcn8s",),
)  # fmt: skip
CROPS = {
    "RS.CR-01": ((VOC_32S, "nyud-fcn32s-color", "nyud-fcn32s-hha", "nyud-fcn32s-color-d",
                  "nyud-fcn32s-color-hha", "siftflow-fcn32s", "pascalcontext-fcn32s"), "score"),
    "RS.CR-02": (("voc-fcn16s", "siftflow-fcn16s", "pascalcontext-fcn16s"), "score_pool4c"),
    "RS.CR-03": (("voc-fcn16s", "siftflow-fcn16s", "pascalcontext-fcn16s"), "score"),
    "RS.CR-04": ((VOC_8S, AT_ONCE, "siftflow-fcn8s", "pascalcontext-fcn8s"), "score_pool4c"),
    "RS.CR-05": ((VOC_8S, AT_ONCE, "siftflow-fcn8s", "pascalcontext-fcn8s"), "score_pool3c"),
    "RS.CR-06": ((VOC_8S, AT_ONCE, "siftflow-fcn8s", "pascalcontext-fcn8s"), "score"),
    "RS.CR-07": ((ALEXNET,), "score"),
}  # fmt: skip
LISTS = (
    ("voc_seg11valid",), ("nyud_train",), ("nyud_val",), ("nyud_train", "nyud_val"), ("nyud_test",),
    ("siftflow_trainval",), ("siftflow_test",),
)  # fmt: skip

NO_LIST = "the solver's test_iter, which scores each picture once; the list is the data set's"
MEAN = (
    "the toolkit takes off the mean of net.py in inference too; the third value of infer.py rounds to"
    " 122.67891, so the two are not one number at two precisions"
)


def counts() -> dict[str, Check]:
    """Four numbers for each net: parameters of convolutions, of up-sampling, of both, and convolutions."""
    checks = {}
    for index, net in enumerate(COUNTED):
        for place, check in enumerate((
            recomputed(of.parameters, net, CONV), recomputed(of.parameters, net, UP),
            recomputed(of.parameters, net), recomputed(of.layer_count, net, CONV),
        ), 4 * index + 1):  # fmt: skip
            checks[f"RS.PC-{place:02}"] = check
    checks["RS.PC-29"] = recomputed(of.parameters, "voc-fcn-googlenet", CONV)
    checks["RS.PC-30"] = recomputed(of.layer_count, "voc-fcn-googlenet", CONV)
    return checks


def solvers() -> dict[str, Check]:
    """Rate and length of each training."""
    return {
        f"RS.SV-{2 * index + place:02}": transcribed(of.solver_setting, field, *names)
        for index, names in enumerate(SOLVERS)
        for place, field in ((1, "base_lr"), (2, "max_iter"))
    }


CHECKS = {
    **counts(),
    **solvers(),
    **{claim: recomputed(of.crop, layer, *names) for claim, (names, layer) in CROPS.items()},
    **{f"RS.LS-{i:02}": recomputed(list_length, *names) for i, names in enumerate(LISTS, 1)},
    "RS.LS-08": transcribed(of.solver_setting, "test_iter.0", "pascalcontext-fcn8s", reason=NO_LIST),
    "RS.TX-02": transcribed(of.layer_setting, VOC_32S, "conv1_1", "convolution_param.pad.0"),
    "RS.TX-04": transcribed(of.outputs, "pascalcontext-fcn32s", "score_fr", 1),
    "RS.AT-01": transcribed(of.layer_setting, AT_ONCE, "scale_pool4", "scale_param.filler.value"),
    "RS.AT-02": transcribed(of.layer_setting, AT_ONCE, "scale_pool3", "scale_param.filler.value"),
    "RS.AT-03": transcribed(of.image_mean, AT_ONCE, "train"),
    "RS.AT-04": transcribed(of.image_mean, AT_ONCE, "val", reason=MEAN),
    "RS.RF-01": recomputed(of.receptive_fields, ALEXNET, "fc6"),
    "RS.RF-02": recomputed(of.receptive_fields, VOC_32S, "fc6"),
    "RS.RF-03": recomputed(of.receptive_fields, VOC_32S, "pool3", "pool4", "pool5"),
    "RS.RF-04": recomputed(of.receptive_fields, "googlenet", "inception_5b/output"),
    "RS.RF-05": recomputed(of.receptive_fields, "googlenet", "pool5/7x7_s1"),
    "RS.RF-06": recomputed(of.grids, "caffenet", (227, None), (500, None), (500, 100)),
    "RS.RF-07": recomputed(of.grids, "vgg16", (224, None), (500, None), (500, 100)),
    "RS.RF-08": recomputed(of.sizes, VOC_32S, "pool1", "pool2", "pool3", "pool4", "pool5"),
}  # fmt: skip
