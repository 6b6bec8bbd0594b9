"""Scheduled drop path for an Auto-DeepLab in training: which layers it adds, with which probabilities.

From core/nas_cell.py of tensorflow/models (research/deeplab, 00b613a4): behind each operation of a block but
a plain skip; cell l of L keeps a path with 1 - (l + 1) / L (1 - keep), and this falls from 1 in a straight
line over the iterations. The paper (section 5.2, 1.74 points on Cityscapes) does not say `keep`.
"""

from __future__ import annotations

import re

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import InputError

MODULE, LAYER = "reproduce.layers", "DropPath"
BLOCK = re.compile(r"cell(\d+)_block\d+")


def add_drop_path(net: NetParameter, keep: float, passes: int) -> NetParameter:
    """A copy of a train net with a DropPath layer behind each operation.

    `passes` is the number of forward passes in which the probability falls to its last value. InputError for
    a net without cells, or a probability that is none.
    """
    if not 0 < keep <= 1:
        raise InputError("--drop-path", f"{keep:g}", "a probability above 0, of keeping a path")
    cells = [int(match[1]) for layer in net.layer if (match := BLOCK.fullmatch(layer.name))]
    if not cells:
        raise InputError("--drop-path", "a net without cells", "an Auto-DeepLab")
    result = NetParameter()
    result.CopyFrom(net)
    del result.layer[:]
    for layer in net.layer:
        match = BLOCK.fullmatch(layer.name)
        bottoms = list(layer.bottom)
        if match:
            kept = 1 - (int(match[1]) + 1) / (max(cells) + 1) * (1 - keep)
            for index, bottom in enumerate(bottoms):
                if bottom.startswith(f"{layer.name}_"):  # a plain skip is another layer's blob
                    bottoms[index] = _add(result, bottom, kept, passes)
        added = result.layer.add()
        added.CopyFrom(layer)
        del added.bottom[:]
        added.bottom.extend(bottoms)
    return result


def _add(net: NetParameter, bottom: str, keep: float, passes: int) -> str:
    """Enter a DropPath layer; its top."""
    name = f"{bottom}_drop"
    layer = net.layer.add(name=name, type="Python", bottom=[bottom], top=[name])
    layer.python_param.module, layer.python_param.layer = MODULE, LAYER
    layer.python_param.param_str = str({"keep": round(keep, 9), "passes": passes})
    return name
