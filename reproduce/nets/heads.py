"""Heads: from features to a score for each pixel and a loss.

Follows the `net.py` files of shelhamer/fcn.berkeleyvision.org at 1305c73. Up-sampling layers have group 1 and
learning rate 0; their weights, the bilinear kernel on the channel diagonal, are set by surgery. Ours beyond
that: the head for trunks whose grids nest without fc6's shift (`head_nested`), and learned interpolation,
which the CVPR paper used in all but the last layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reproduce.nets.blocks import LEARNED
from surgery.netspec import L, NetSpec, P, Top

SCALES = {"pool4": 0.01, "pool3": 0.0001}  # of the skips, where all is learned at once
IGNORE_LABEL = 255


def score(bottom: Top, classes: int) -> Top:
    """A 1 x 1 score layer."""
    top: Top = L.Convolution(bottom, num_output=classes, kernel_size=1, pad=0, param=list(LEARNED))
    return top


def upscore(bottom: Top, classes: int, kernel: int, stride: int, learned: bool = False) -> Top:
    """An up-sampling layer, fixed unless `learned`."""
    top: Top = L.Deconvolution(
        bottom, num_output=classes, kernel_size=kernel, stride=stride, bias_term=False,
        param=[{"lr_mult": int(learned)}],
    )  # fmt: skip
    return top


def fuse(n: NetSpec, name: str, *tops: Top, coeff: Sequence[float] = ()) -> Top:
    """The sum of score maps of one size."""
    top: Top = L.Eltwise(*tops, operation=P.Eltwise.SUM, coeff=list(coeff))
    n[name] = top
    return top


def head_32s(
    n: NetSpec, coarse: Top, classes: int, suffix: str = "", kernel: int = 64, image: str = "data"
) -> None:
    """Up to pixels in one step: upscore, score."""
    n[f"upscore{suffix}"] = upscore(coarse, classes, kernel, 32)
    n[f"score{suffix}"] = L.Crop(n[f"upscore{suffix}"], n[image])


def head_skips(
    n: NetSpec, coarse: Top, classes: int, stride: int, suffix: str = "",
    scales: Mapping[str, float] | None = None, learned: bool = False,
) -> None:  # fmt: skip
    """16s and 8s: the coarse scores doubled and summed with those of pool4, then of pool3; then to pixels."""
    up = "upscore2"
    for pool in ("pool4", "pool3")[: 1 if stride == 16 else 2]:
        n[up + suffix] = upscore(coarse, classes, 4, 2, learned)
        skip = n[pool]
        if scales:
            filler = {"type": "constant", "value": scales[pool]}
            skip = n[f"scale_{pool}"] = L.Scale(skip, filler=filler, param=[{"lr_mult": 0}])
        n[f"score_{pool}{suffix}"] = score(skip, classes)
        cropped = n[f"score_{pool}{suffix}c"] = L.Crop(n[f"score_{pool}{suffix}"], n[up + suffix])
        coarse = fuse(n, f"fuse_{pool}{suffix}", n[up + suffix], cropped)
        up = f"upscore_{pool}"
    n[f"upscore{stride}{suffix}"] = upscore(coarse, classes, 2 * stride, stride)
    n[f"score{suffix}"] = L.Crop(n[f"upscore{stride}{suffix}"], n.data)


def head(
    n: NetSpec, coarse: Top, classes: int, stride: int, suffix: str = "",
    scales: Mapping[str, float] | None = None, learned: bool = False,
) -> None:  # fmt: skip
    """The head of stride 32, 16 or 8 behind `score_fr`."""
    if stride == 32:
        head_32s(n, coarse, classes, suffix)
    else:
        head_skips(n, coarse, classes, stride, suffix, scales, learned)


def head_nested(n: NetSpec, coarse: Top, classes: int, skips: Mapping[str, Top], stride: int) -> None:
    """A head for trunks whose odd windows put coarse pixels on fine ones: odd kernels throughout.

    `skips` are the features of stride 16 and 8, by the name of their score. The doubled map can be a pixel
    larger than the skip's, so here the doubled one is cropped.
    """
    up = "upscore2"
    for name, skip in list(skips.items())[: {32: 0, 16: 1, 8: 2}[stride]]:
        n[up] = upscore(coarse, classes, 3, 2)
        n[f"score_{name}"] = score(skip, classes)
        cropped = n[f"{up}c"] = L.Crop(n[up], n[f"score_{name}"])
        coarse = fuse(n, f"fuse_{name}", cropped, n[f"score_{name}"])
        up = f"upscore_{name}"
    last = "upscore" if stride == 32 else f"upscore{stride}"
    n[last] = upscore(coarse, classes, 2 * stride - 1, stride)
    n.score = L.Crop(n[last], n.data)


def loss(
    n: NetSpec, normalize: bool = False, suffix: str = "", label: str = "label", name: str = "loss"
) -> None:
    """SoftmaxWithLoss over all pixels but the void ones."""
    settings = {"ignore_label": IGNORE_LABEL, "normalize": normalize}
    n[name] = L.SoftmaxWithLoss(n[f"score{suffix}"], n[label], loss_param=settings)
