"""The published FCNs on VGG16, and the paper's ablations on it.

Each function is one shape of net; which dataset and stride go with a name stands in the table of
`reproduce.nets`. Follows the `net.py` files of shelhamer/fcn.berkeleyvision.org at 1305c73; the ablations are
those of Table 2 and section 4.2 of the CVPR 2015 paper, in the same manner of writing.
"""

from __future__ import annotations

from caffe_weights.caffe_pb2 import NetParameter
from reproduce.nets.blocks import FIXED, LEARNED, Form, finish
from reproduce.nets.data import Data
from reproduce.nets.heads import SCALES, fuse, head, head_32s, loss, score, upscore
from reproduce.nets.vgg import PAD, stages, trunk
from surgery.netspec import L, NetSpec


def vgg_fcn(
    data: Data, stride: int, split: str, form: Form, at_once: bool = False, learned: bool = False,
    fixed: bool = False,
) -> NetParameter:  # fmt: skip
    """One picture, one head. `at_once` scales the skips, `learned` lets the interpolation between them learn,
    `fixed` keeps the trunk as it is."""
    n = NetSpec()
    data.add(n, split)
    bottom = trunk(n, n.data, form, param=FIXED if fixed else LEARNED)
    classes = form.head(data.classes)
    n.score_fr = score(bottom, classes)
    head(n, n.score_fr, classes, stride, scales=SCALES if at_once else None, learned=learned)
    loss(n)
    return finish(n)


def two_headed(data: Data, stride: int, split: str, form: Form) -> NetParameter:
    """Semantic and geometric labels from one trunk (SIFT Flow), each with its head and loss."""
    n = NetSpec()
    data.add(n, split)
    bottom = trunk(n, n.data, form)
    for label, classes in (("sem", form.head(data.classes)), ("geo", data.extra_classes)):
        n[f"score_fr_{label}"] = score(bottom, classes)
        head(n, n[f"score_fr_{label}"], classes, stride, f"_{label}")
        loss(n, suffix=f"_{label}", label=label, name="loss" if label == "sem" else "loss_geo")
    return finish(n)


def early_fusion(data: Data, split: str, form: Form) -> NetParameter:
    """Colour and depth as one blob of four channels, so conv1_1 has another name and shape; 32s."""
    n = NetSpec()
    data.add(n, split)
    both = n.data = L.Concat(n.color, n.depth)
    bottom = trunk(n, both, form, first="conv1_1_bgrd")
    classes = form.head(data.classes)
    n.score_fr = score(bottom, classes)
    head_32s(n, n.score_fr, classes)
    loss(n)
    return finish(n)


def late_fusion(data: Data, split: str, form: Form) -> NetParameter:
    """Two whole streams, colour and HHA, whose scores are averaged; 32s."""
    n = NetSpec()
    data.add(n, split)
    classes = form.head(data.classes)
    for stream in data.inputs:
        n[f"score_fr{stream}"] = score(trunk(n, n[stream], form, suffix=stream), classes)
    fused = fuse(n, "score_fused", n.score_frcolor, n.score_frhha, coeff=[0.5, 0.5])
    head_32s(n, fused, classes, image="color")
    loss(n)
    return finish(n)


def pool4_alone(data: Data, split: str, form: Form) -> NetParameter:
    """FCN-pool4: scores of pool4 and of nothing deeper."""
    n = NetSpec()
    data.add(n, split)
    bottom = stages(n, n.data, form, PAD, count=4)
    classes = form.head(data.classes)
    n.score_pool4 = score(bottom, classes)
    n.upscore16 = upscore(n.score_pool4, classes, 32, 16)
    n.score = L.Crop(n.upscore16, n.data)
    loss(n)
    return finish(n)
