"""One picture, one label a pixel: run a segmentation net and take the best class at each pixel.

Follows infer.py of fcn.berkeleyvision.org (1305c73): the score blob's argmax over channels, at the picture's
own size. Nothing is resized or cut afterwards: a score of another size than the picture's is refused.
"""

from __future__ import annotations

import numpy as np
import torch

from caffe_weights.errors import NetError
from reproduce.dense import dense_scores
from reproduce.images import Preprocess
from reproduce.inference import forward
from reproduce.net import Net

MOST_CLASSES = 255  # 255 means void in a label map


def segment(
    net: Net, input_blob: str, score_blob: str, image: np.ndarray, preprocess: Preprocess,
    dense: str | None = None,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """Label map uint8 H x W of a picture uint8 H x W x 3 (after `preprocess`), and the number of classes.

    `dense` and errors as in `scores_of`.
    """
    scores = scores_of(net, input_blob, score_blob, image, preprocess, dense)
    return scores.argmax(0).astype(np.uint8), len(scores)


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
        score = forward(net, {input_blob: blob}, [score_blob])[score_blob]
    else:
        with torch.no_grad():
            score = dense_scores(net, {input_blob: blob}, score_blob, dense).cpu().numpy()
    wanted = f"1 x classes x {blob.shape[2]} x {blob.shape[3]}"
    if score.ndim != 4 or score.shape[2:] != blob.shape[2:]:
        raise NetError(f"blob {score_blob!r}", "shape " + " x ".join(map(str, score.shape)), wanted,
                       "name the score with --blob, or use fcn run or fcn classify")  # fmt: skip
    if not 2 <= score.shape[1] <= MOST_CLASSES:
        raise NetError(f"blob {score_blob!r}", f"{score.shape[1]} channels", f"2 to {MOST_CLASSES} classes",
                       "fcn run keeps any blob")  # fmt: skip
    return np.asarray(score[0])
