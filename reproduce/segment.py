"""One picture, one label a pixel: run a segmentation net and take the best class at each pixel.

Follows infer.py of fcn.berkeleyvision.org (1305c73): the score blob's argmax over channels, at the picture's
own size. Nothing is resized or cut afterwards: a score of another size than the picture's is refused.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from caffe_weights.errors import NetError
from reproduce.dense import dense_scores
from reproduce.images import Preprocess
from reproduce.inference import compute
from reproduce.net import Net

MOST_CLASSES = 255  # 255 means void in a label map


def segment(
    net: Net, input_blob: str, score_blob: str, image: np.ndarray, preprocess: Preprocess,
    dense: str | None = None,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """Label map uint8 H x W of a picture uint8 H x W x 3 (after `preprocess`), and the number of classes.

    `dense` and errors as in `scores_of`.
    """
    if dense is not None:
        scores = scores_of(net, input_blob, score_blob, image, preprocess, dense)
        return scores.argmax(0).astype(np.uint8), len(scores)
    labels, classes = label_maps(net, input_blob, score_blob, torch.from_numpy(preprocess(image)))
    return labels[0].cpu().numpy(), classes


def label_maps(net: Net, input_blob: str, score_blob: str, blob: Tensor) -> tuple[Tensor, int]:
    """Label maps uint8 N x H x W of pictures N x C x H x W, as `preprocess` makes them, and the number of
    classes. The maps are made and left on the device of the net; of equal scores the first wins.

    NetError as in `scores_of`.
    """
    score = compute(net, {input_blob: blob}, [score_blob])[score_blob]
    _check(score_blob, tuple(score.shape), tuple(blob.shape))
    return score.max(1).indices.to(torch.uint8), score.shape[1]


def scores_of(
    net: Net, input_blob: str, score_blob: str, image: np.ndarray, preprocess: Preprocess,
    dense: str | None = None,
) -> np.ndarray:  # fmt: skip
    """Scores float32 C x H x W of a picture uint8 H x W x 3 (after `preprocess`).

    `dense` names a way to score each pixel without interpolation, of `reproduce.dense`. NetError where the
    score is not one map per class of the picture's size.
    """
    blob = preprocess(image)
    if dense is None:
        score = compute(net, {input_blob: torch.from_numpy(blob)}, [score_blob])[score_blob]
    else:
        with torch.no_grad():
            score = dense_scores(net, {input_blob: blob}, score_blob, dense)
    _check(score_blob, tuple(score.shape), blob.shape)
    return score[0].cpu().numpy()


def _check(name: str, score: tuple[int, ...], blob: tuple[int, ...]) -> None:
    if len(score) != 4 or (score[0], *score[2:]) != (blob[0], *blob[2:]):
        raise NetError(f"blob {name!r}", "shape " + " x ".join(map(str, score)),
                       f"{blob[0]} x classes x {blob[2]} x {blob[3]}",
                       "name the score with --blob, or use fcn run or fcn classify")  # fmt: skip
    if not 2 <= score[1] <= MOST_CLASSES:
        raise NetError(f"blob {name!r}", f"{score[1]} channels", f"2 to {MOST_CLASSES} classes",
                       "fcn run keeps any blob")  # fmt: skip
