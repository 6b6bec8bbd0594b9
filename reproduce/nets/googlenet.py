"""GoogLeNet, the classifier, and FCN-GoogLeNet, which the reference promised and never shipped.

Layer names and settings are those of models/bvlc_googlenet of BVLC/caffe at 9b891540. The FCN drops the two
auxiliary classifiers and the final average pool (CVPR 2015 paper, section 4.1, Table 1) and scores
inception_5b/output. All windows of the trunk are odd, so a coarse pixel lies on a fine one and the
up-sampling kernel must be odd too: 63, not 64.
"""

from __future__ import annotations

from caffe_weights.caffe_pb2 import NetParameter
from reproduce.nets.blocks import LEARNED, Form, conv, dropout, finish, inputs, max_pool, relu
from reproduce.nets.data import Data
from reproduce.nets.heads import head_nested, loss, score, upscore
from surgery.netspec import L, NetSpec, P, Top

SIZE = (224, 224)
PAD, STOCK_PAD = 100, 3
LRN = {"local_size": 5, "alpha": 1e-4, "beta": 0.75}
# widths of 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
POOL_AFTER = {"3b": "pool3/3x3_s2", "4e": "pool4/3x3_s2"}
AUXILIARY = {"4a": "loss1", "4d": "loss2"}


def stem(n: NetSpec, bottom: Top, form: Form, pad: int) -> Top:
    """conv1 to pool2; `pad` is that of the first convolution."""
    bottom = _conv_relu(n, "conv1/7x7_s2", bottom, 7, form.width(64), 2, pad)
    n["pool1/3x3_s2"] = max_pool(bottom, 3, 2)
    bottom = n["pool1/norm1"] = L.LRN(n["pool1/3x3_s2"], **LRN)
    bottom = _conv_relu(n, "conv2/3x3_reduce", bottom, 1, form.width(64))
    bottom = _conv_relu(n, "conv2/3x3", bottom, 3, form.width(192), pad=1)
    n["conv2/norm2"] = L.LRN(bottom, **LRN)
    bottom = n["pool2/3x3_s2"] = max_pool(n["conv2/norm2"], 3, 2)
    return bottom


def trunk(n: NetSpec, bottom: Top, form: Form, pad: int, auxiliary: int = 0) -> Top:
    """conv1 to inception_5b/output; with `auxiliary` classes also the two auxiliary classifiers."""
    bottom = stem(n, bottom, form, pad)
    for name, widths in INCEPTIONS.items():
        bottom = inception(n, f"inception_{name}", bottom, [form.width(width) for width in widths])
        if auxiliary and name in AUXILIARY:
            _auxiliary(n, AUXILIARY[name], bottom, form, auxiliary)
        if name in POOL_AFTER:
            bottom = n[POOL_AFTER[name]] = max_pool(bottom, 3, 2)
    return bottom


def inception(n: NetSpec, name: str, bottom: Top, widths: list[int]) -> Top:
    """One module: four branches, concatenated."""
    one, reduce3, three, reduce5, five, projected = widths
    branches = [_conv_relu(n, f"{name}/1x1", bottom, 1, one)]
    reduced = _conv_relu(n, f"{name}/3x3_reduce", bottom, 1, reduce3)
    branches.append(_conv_relu(n, f"{name}/3x3", reduced, 3, three, pad=1))
    reduced = _conv_relu(n, f"{name}/5x5_reduce", bottom, 1, reduce5)
    branches.append(_conv_relu(n, f"{name}/5x5", reduced, 5, five, pad=2))
    n[f"{name}/pool"] = max_pool(bottom, 3, 1, pad=1)
    branches.append(_conv_relu(n, f"{name}/pool_proj", n[f"{name}/pool"], 1, projected))
    top: Top = L.Concat(*branches)
    n[f"{name}/output"] = top
    return top


def googlenet(split: str, form: Form) -> NetParameter:
    """The classifier for 224 x 224 pictures, with prob at its end; in `train` with its auxiliary classifiers.

    The train form has inputs data and label and three losses.
    """
    n = NetSpec()
    train, classes = split == "train", form.head(1000)
    bottom = inputs(n, SIZE)
    if train:
        n.label = L.Input(shape=[1])
    bottom = trunk(n, bottom, form, STOCK_PAD, classes if train else 0)
    n["pool5/7x7_s1"] = L.Pooling(bottom, pool=P.Pooling.AVE, kernel_size=7, stride=1)
    bottom = dropout(n, "pool5/drop_7x7_s1", n["pool5/7x7_s1"], 0.4)
    n["loss3/classifier"] = L.InnerProduct(bottom, num_output=classes, param=list(LEARNED))
    if train:
        n["loss3/loss3"] = L.SoftmaxWithLoss(n["loss3/classifier"], n.label, loss_weight=1)
    else:
        n.prob = L.Softmax(n["loss3/classifier"])
    return finish(n)


def fcn_googlenet(
    data: Data, stride: int, split: str, form: Form, pad: int = PAD, kernel: int = 63
) -> NetParameter:
    """FCN-GoogLeNet, 32s, or 16s and 8s with skips from inception_4e and inception_3b.

    `pad` is that of the first convolution, `kernel` that of the 32s up-sampling; an even one is a NetError,
    since no whole offset aligns it.
    """
    n = NetSpec()
    data.add(n, split)
    bottom = trunk(n, n.data, form, pad)
    classes = form.head(data.classes)
    n.score_fr = score(bottom, classes)
    if stride == 32:
        n.upscore = upscore(n.score_fr, classes, kernel, 32)
        n.score = L.Crop(n.upscore, n.data)
    else:
        skips = {"4e": n["inception_4e/output"], "3b": n["inception_3b/output"]}
        head_nested(n, n.score_fr, classes, skips, stride)
    loss(n, normalize=True)
    return finish(n)


def _conv_relu(
    n: NetSpec, name: str, bottom: Top, kernel: int, out: int, stride: int = 1, pad: int = 0
) -> Top:
    n[name] = conv(bottom, kernel, out, stride, pad)
    module, _, rest = name.partition("/")
    return relu(n, f"{module}/relu_{rest.removesuffix('_s2')}", n[name])


def _auxiliary(n: NetSpec, name: str, bottom: Top, form: Form, classes: int) -> None:
    n[f"{name}/ave_pool"] = L.Pooling(bottom, pool=P.Pooling.AVE, kernel_size=5, stride=3)
    bottom = conv(n[f"{name}/ave_pool"], 1, form.width(128))
    n[f"{name}/conv"] = bottom
    bottom = relu(n, f"{name}/relu_conv", bottom)
    n[f"{name}/fc"] = L.InnerProduct(bottom, num_output=form.width(1024), param=list(LEARNED))
    bottom = dropout(n, f"{name}/drop_fc", relu(n, f"{name}/relu_fc", n[f"{name}/fc"]), 0.7)
    n[f"{name}/classifier"] = L.InnerProduct(bottom, num_output=classes, param=list(LEARNED))
    n[f"{name}/loss"] = L.SoftmaxWithLoss(n[f"{name}/classifier"], n.label, loss_weight=0.3)
