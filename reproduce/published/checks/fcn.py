"""The FCN papers' claims about nets, lists and training (CVPR 2015, PAMI 2016): which function computes each.

What follows from kernels, shapes and lists is recomputed. Settings of solvers and layers are those of the
reference repository, copied into `reproduce.nets`: agreement there shows that paper and repository say the
same and that we copied it rightly, no more.
"""

from __future__ import annotations

from reproduce.published.checks import Check, recomputed, transcribed
from reproduce.published.checks import nets as of
from reproduce.published.checks.lists import list_length

ALEXNET, VGG16, GOOGLENET = "voc-fcn-alexnet", "voc-fcn32s", "voc-fcn-googlenet"
CONV = "Convolution"
NYUD = ("nyud_train", "nyud_val", "nyud_test")
SIFT_FLOW = ("siftflow_trainval", "siftflow_test")

DEPTH = "convolutions on the longest path, the score layer counted"
GOOGLENET_DEPTH = f"{DEPTH}; GoogLeNet has 57 convolutions in all, 58 with the score layer (RS.PC-30)"
WITHOUT_UP = "without the up-sampling layers, which are fixed and which Caffe stores dense over the classes"
AVERAGE_POOL = (
    "behind the classifier's 7x7 average pool; section 4.1 says that the fully convolutional net drops it, "
    "which leaves 715 (RS.RF-04)"
)
CUT = "CaffeNet cut fully convolutional, its padding kept"
KERNEL = (
    "with pool5's window of 2 kept, 13x13 sees the same 404 pixels; 14x14 follows if pool5 goes altogether, "
    "or by doubling 7x7 as its step is halved"
)
WEIGHT_DECAY = "the paper prints a power where the repository's solvers have 0.0005: a slip of typography"
RATE = "the repository's solver, which came later, has another rate for the same batch and momentum"
UNLABELLED = "the repository's lists leave out pictures without labels"
GOOGLENET_RATE = "our recipe takes the paper's rate, read as 5e-5"


def table_1(paper: str) -> dict[str, Check]:
    """Rows 2 to 5 of Table 1 for the three nets."""
    checks = {}
    for first, net, depth in ((3, ALEXNET, DEPTH), (9, VGG16, DEPTH), (15, GOOGLENET, GOOGLENET_DEPTH)):
        seen = (net, "score_fr") if net != GOOGLENET else ("googlenet", "pool5/7x7_s1")
        for index, check in enumerate((
            recomputed(of.depth, net, reason=depth),
            recomputed(of.parameters, net, CONV, reason=WITHOUT_UP),
            recomputed(of.receptive_fields, *seen, reason=AVERAGE_POOL if net == GOOGLENET else ""),
            recomputed(of.largest_stride, net),
        )):  # fmt: skip
            checks[f"{paper}.T1-{first + index:02}"] = check
    return checks


CHECKS = {
    **table_1("F15"),
    **table_1("F16"),
    "F15.S31-03": recomputed(of.grids, "caffenet", (500, None), reason=CUT),
    "F15.S41-08": transcribed(of.outputs, VGG16, "score_fr"),
    "F15.S42-04": transcribed(of.rate_drop, VGG16, "voc-fcn16s", "voc-fcn8s"),
    "F15.S42-05": recomputed(of.wider_kernel, VGG16, "pool5", "fc6", reason=KERNEL),
    "F15.S43-01": transcribed(of.solver_setting, "iter_size", ALEXNET),
    "F15.S43-02": transcribed(of.solver_setting, "base_lr", ALEXNET, reason=RATE),
    "F15.S43-04": transcribed(of.solver_setting, "base_lr", GOOGLENET, reason=GOOGLENET_RATE),
    "F15.S43-05": transcribed(of.solver_setting, "momentum", ALEXNET),
    "F15.S43-06": transcribed(of.solver_setting, "weight_decay", ALEXNET, reason=WEIGHT_DECAY),
    "F15.S43-07": transcribed(of.layer_setting, VGG16, "score_fr", "param.1.lr_mult"),
    "F15.S43-08": transcribed(of.filler, VGG16, "score_fr"),
    "F15.S43-15": recomputed(list_length, "voc_seg11valid"),
    "F15.DATA-01": recomputed(list_length, *NYUD),
    "F15.DATA-03": recomputed(list_length, *NYUD[:2]),
    "F15.DATA-04": recomputed(list_length, *NYUD[2:]),
    "F15.DATA-05": recomputed(list_length, *SIFT_FLOW, reason=UNLABELLED),
    "F15.DATA-08": recomputed(list_length, *SIFT_FLOW[:1], reason=UNLABELLED),
    "F15.DATA-09": recomputed(list_length, *SIFT_FLOW[1:]),
    "F15.DATA-02": transcribed(of.outputs, "nyud-fcn32s-color", "score_fr"),
    "F15.DATA-06": transcribed(of.outputs, "siftflow-fcn32s", "score_fr_sem"),
    "F15.DATA-07": transcribed(of.outputs, "siftflow-fcn32s", "score_fr_geo"),
    "F16.T2b-01": recomputed(of.momentum_of_one, ALEXNET),
}  # fmt: skip
