"""CaffeNet and AlexNet classifiers, and FCN-AlexNet, which is built on CaffeNet.

Layer names and settings are those of models/bvlc_reference_caffenet and bvlc_alexnet of BVLC/caffe at
9b891540; they differ in one thing: CaffeNet pools before it normalises, AlexNet after. FCN-AlexNet is
voc-fcn-alexnet/net.py of shelhamer/fcn.berkeleyvision.org at 1305c73: its base convolutions spell out
group and carry no learning rates.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from caffe_weights.caffe_pb2 import NetParameter
from reproduce.nets.blocks import LEARNED, UNSAID, Form, Params, conv, dropout, finish, inputs, max_pool, relu
from reproduce.nets.data import Data
from reproduce.nets.heads import head_32s, loss, score
from surgery.netspec import L, NetSpec, Top

SIZE = (227, 227)
PAD = 100
LRN = {"local_size": 5, "alpha": 1e-4, "beta": 0.75}
CONVS = ((11, 96, 4, 0, 1), (5, 256, 1, 2, 2), (3, 384, 1, 1, 1), (3, 384, 1, 1, 2), (3, 256, 1, 1, 2))
# kernel, width, stride, pad, group of conv1 to conv5


def stages(
    n: NetSpec, bottom: Top, form: Form, pad: int, bare: bool = False, norm_first: bool = False
) -> Top:
    """conv1 to pool5; `pad` is that of conv1. `bare`: as FCN-AlexNet writes its convolutions."""
    param: Params = UNSAID if bare else LEARNED
    for index, (kernel, width, stride, own_pad, group) in enumerate(CONVS, 1):
        extra = {"group": group} if bare or group > 1 else {}
        n[f"conv{index}"] = conv(bottom, kernel, form.width(width, 2), stride,
                                 pad if index == 1 else own_pad, param, **extra)  # fmt: skip
        bottom = relu(n, f"relu{index}", n[f"conv{index}"])
        if index <= 2:
            bottom = _normalised_pool(n, bottom, str(index), norm_first)
    bottom = n.pool5 = max_pool(bottom, 3, 2)
    return bottom


def classifier(norm_first: bool, split: str, form: Form) -> NetParameter:
    """A classifier for 227 x 227 pictures, fc6 to fc8 as InnerProducts, with prob at its end."""
    n = NetSpec()
    bottom = stages(n, inputs(n, SIZE), form, 0, norm_first=norm_first)
    for name in ("6", "7"):
        n[f"fc{name}"] = L.InnerProduct(bottom, num_output=form.fully(4096), param=list(LEARNED))
        bottom = dropout(n, f"drop{name}", relu(n, f"relu{name}", n[f"fc{name}"]))
    n.fc8 = L.InnerProduct(bottom, num_output=form.head(1000), param=list(LEARNED))
    n.prob = L.Softmax(n.fc8)
    return finish(n)


caffenet = partial(classifier, False)
alexnet = partial(classifier, True)


def fcn_alexnet(data: Data, split: str, form: Form) -> NetParameter:
    """FCN-AlexNet, 32s; the odd up-sampling kernel suits the odd phase of conv1."""
    n = NetSpec()
    data.add(n, split)
    bottom = stages(n, n.data, form, PAD, bare=True)
    spelled: dict[str, Any] = {"group": 1, "param": UNSAID}
    for name, kernel in (("6", 6), ("7", 1)):
        n[f"fc{name}"] = conv(bottom, kernel, form.fully(4096), **spelled)
        bottom = dropout(n, f"drop{name}", relu(n, f"relu{name}", n[f"fc{name}"]))
    classes = form.head(data.classes)
    n.score_fr = score(bottom, classes)
    head_32s(n, n.score_fr, classes, kernel=63)
    loss(n, normalize=True)
    return finish(n)


def _normalised_pool(n: NetSpec, bottom: Top, index: str, norm_first: bool) -> Top:
    if norm_first:
        bottom = n[f"norm{index}"] = L.LRN(bottom, **LRN)
        bottom = n[f"pool{index}"] = max_pool(bottom, 3, 2)
        return bottom
    bottom = n[f"pool{index}"] = max_pool(bottom, 3, 2)
    bottom = n[f"norm{index}"] = L.LRN(bottom, **LRN)
    return bottom
