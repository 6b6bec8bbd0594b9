"""ResNet-34, the classifier, and an FCN on it in 32s, 16s and 8s form.

The trunk is the 34-layer net of "Deep Residual Learning for Image Recognition" (He et al., Table 1), written
in Caffe with the naming of its authors' 50-layer release (res2a_branch2a, bn..., scale...). The release has
no 34-layer net, so the names are ours by analogy. Departures: pool1 has pad 1 and rounds down, as in the
ports whose weights exist. Every window is then odd and centred, coarse pixel i lies on fine pixel 2i, and
no padding of 100 is needed. The FCN takes its skips from the stages of stride 16 (res4f) and 8 (res3d) and
keeps the classifier's statistics in BatchNorm, since it learns from one picture at a time.
"""

from __future__ import annotations

from typing import Any

from caffe_weights.caffe_pb2 import NetParameter
from reproduce.nets.blocks import Form, conv, finish, inputs, max_pool, relu
from reproduce.nets.data import Data
from reproduce.nets.heads import head_nested, loss, score
from surgery.netspec import L, NetSpec, P, Top

SIZE = (224, 224)
STAGES = {2: (64, 3), 3: (128, 4), 4: (256, 6), 5: (512, 3)}  # stage -> width, blocks
ONE_WEIGHT = ({"lr_mult": 1, "decay_mult": 1},)


def trunk(n: NetSpec, bottom: Top, form: Form, statistics: bool) -> Top:
    """conv1 to res5c_relu; `statistics`: BatchNorm uses the stored ones in every phase."""
    settings = {"use_global_stats": True} if statistics else {}
    bottom = _normalised(n, "conv1", "_conv1", bottom, (7, form.width(64), 2, 3), settings)
    bottom = relu(n, "conv1_relu", bottom)
    bottom = n.pool1 = max_pool(bottom, 3, 2, pad=1, round_mode=P.Pooling.FLOOR)
    for stage, (width, blocks) in STAGES.items():
        for index in range(blocks):
            name = f"{stage}{'abcdef'[index]}"
            stride = 2 if index == 0 and stage > 2 else 1
            bottom = block(n, name, bottom, form.width(width), stride, stage > 2 and not index, settings)
    return bottom


def block(
    n: NetSpec, name: str, bottom: Top, width: int, stride: int, project: bool, settings: dict[str, Any]
) -> Top:
    """Two 3 x 3 convolutions around which the input is carried, by a projection where its shape changes."""
    shortcut = bottom
    if project:
        shortcut = _normalised(
            n, f"res{name}_branch1", f"{name}_branch1", bottom, (1, width, stride, 0), settings
        )
    first = _normalised(n, f"res{name}_branch2a", f"{name}_branch2a", bottom, (3, width, stride, 1), settings)
    first = relu(n, f"res{name}_branch2a_relu", first)
    second = _normalised(n, f"res{name}_branch2b", f"{name}_branch2b", first, (3, width, 1, 1), settings)
    n[f"res{name}"] = L.Eltwise(shortcut, second, operation=P.Eltwise.SUM)
    return relu(n, f"res{name}_relu", n[f"res{name}"])


def resnet34(split: str, form: Form) -> NetParameter:
    """The classifier for 224 x 224 pictures, with prob at its end."""
    n = NetSpec()
    bottom = trunk(n, inputs(n, SIZE), form, statistics=True)
    n.pool5 = L.Pooling(bottom, pool=P.Pooling.AVE, kernel_size=7, stride=1)
    n.fc1000 = L.InnerProduct(n.pool5, num_output=form.head(1000))
    n.prob = L.Softmax(n.fc1000)
    return finish(n)


def fcn_resnet34(data: Data, stride: int, split: str, form: Form) -> NetParameter:
    """The FCN, with odd up-sampling kernels: 63, or 3 and 31, or 3, 3 and 15."""
    n = NetSpec()
    data.add(n, split)
    bottom = trunk(n, n.data, form, statistics=True)
    classes = form.head(data.classes)
    n.score_fr = score(bottom, classes)
    head_nested(n, n.score_fr, classes, {"res4f": n.res4f_relu, "res3d": n.res3d_relu}, stride)
    loss(n, normalize=True)
    return finish(n)


def _normalised(
    n: NetSpec, name: str, tail: str, bottom: Top, window: tuple[int, int, int, int], settings: dict[str, Any]
) -> Top:
    """Convolution, BatchNorm and Scale; `window` is kernel, width, stride, pad."""
    kernel, width, stride, pad = window
    n[name] = conv(bottom, kernel, width, stride, pad, ONE_WEIGHT, bias_term=False)
    n[f"bn{tail}"] = L.BatchNorm(n[name], in_place=True, **settings)
    n[f"scale{tail}"] = L.Scale(n[f"bn{tail}"], in_place=True, bias_term=True)
    top: Top = n[f"scale{tail}"]
    return top
