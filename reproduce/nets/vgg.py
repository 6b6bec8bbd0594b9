"""VGG16: the trunk of nearly all published FCNs, and the classifier they start from.

Layer names are those of the Caffe release of VGG_ILSVRC_16_layers; the trunk is that of the `net.py` files of
shelhamer/fcn.berkeleyvision.org at 1305c73, with fc6 and fc7 as convolutions.
"""

from __future__ import annotations

from caffe_weights.caffe_pb2 import NetParameter
from reproduce.nets.blocks import LEARNED, Form, Params, conv, dropout, finish, inputs, max_pool, relu
from surgery.netspec import L, NetSpec, Top

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width, convolutions; a pool after each
SIZE = (224, 224)
PAD = 100  # of an FCN's first convolution, so that fc6 fits any picture


def stages(
    n: NetSpec, bottom: Top, form: Form, pad: int, suffix: str = "", param: Params = LEARNED,
    first: str = "conv1_1", count: int = 5,
) -> Top:  # fmt: skip
    """conv1_1 (under the name `first`) to pool5, or to the pool of stage `count`."""
    for stage, (width, depth) in enumerate(STAGES[:count], 1):
        for place in range(1, depth + 1):
            at = f"{stage}_{place}"
            name = first if at == "1_1" else f"conv{at}"
            top = conv(bottom, 3, form.width(width), pad=pad if at == "1_1" else 1, param=param)
            n[name + suffix] = top
            bottom = relu(n, f"relu{at}{suffix}", top)
        bottom = n[f"pool{stage}{suffix}"] = max_pool(bottom, 2, 2)
    return bottom


def trunk(
    n: NetSpec, bottom: Top, form: Form, suffix: str = "", param: Params = LEARNED, first: str = "conv1_1"
) -> Top:
    """conv1_1 to drop7, fully convolutional."""
    bottom = stages(n, bottom, form, PAD, suffix, param, first)
    for name, kernel in (("6", 7), ("7", 1)):
        n[f"fc{name}{suffix}"] = conv(bottom, kernel, form.fully(4096), param=param)
        bottom = dropout(n, f"drop{name}{suffix}", relu(n, f"relu{name}{suffix}", n[f"fc{name}{suffix}"]))
    return bottom


def vgg16(split: str, form: Form) -> NetParameter:
    """The classifier for 224 x 224 pictures, fc6 to fc8 as InnerProducts, with prob at its end."""
    n = NetSpec()
    bottom = stages(n, inputs(n, SIZE), form, 1)
    for name in ("6", "7"):
        n[f"fc{name}"] = L.InnerProduct(bottom, num_output=form.fully(4096), param=list(LEARNED))
        bottom = dropout(n, f"drop{name}", relu(n, f"relu{name}", n[f"fc{name}"]))
    n.fc8 = L.InnerProduct(bottom, num_output=form.head(1000), param=list(LEARNED))
    n.prob = L.Softmax(n.fc8)
    return finish(n)
