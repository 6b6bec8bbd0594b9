"""Pictures to labels by the whole system: proposals, ensemble, CRF; any part may be left out.

`Segmenter` puts together what `inference`, `ensemble` and `reproduce.crf` do. Without proposals the net sees
the whole picture at once, so that an ordinary FCN can have the CRF too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from caffe_weights.errors import InputError, NetError
from caffe_weights.files import PathLike
from reproduce.crf import CrfSettings, dense_crf, unary_of_scores
from reproduce.deconvnet.boxes import propose
from reproduce.deconvnet.ensemble import PAPER, ensemble_energies, padded_blob
from reproduce.deconvnet.inference import picture_scores
from reproduce.deconvnet.rules import CLEAN, Rules
from reproduce.images import Preprocess
from reproduce.inference import PictureNet, forward
from reproduce.segment import MOST_CLASSES, scores_of


@dataclass
class Proposing:
    """How a net of crops sees a picture: where its boxes come from, the rules, the batch."""

    source: PathLike = "auto"
    rules: Rules = CLEAN
    batch: int | None = None
    edge_model: PathLike | None = None


@dataclass
class Member:
    """The second net of an ensemble; `padded`: pictures are padded to the released FCN's size."""

    picture: PictureNet
    preprocess: Preprocess
    rule: str = PAPER
    padded: bool = False

    def scores(self, image: np.ndarray) -> np.ndarray:
        """Raw scores C x H x W. NetError where the net gives another size."""
        if not self.padded:
            return scores_of(
                self.picture.net, self.picture.input, self.picture.output, image, self.preprocess
            )
        blob = padded_blob(image, self.preprocess)
        name = self.picture.output
        scores = forward(self.picture.net, {self.picture.input: blob}, [name])[name]
        if scores.ndim != 4 or scores.shape[2:] != blob.shape[2:]:
            raise NetError(f"blob {name!r}", "shape " + " x ".join(map(str, scores.shape)),
                           f"1 x classes x {blob.shape[2]} x {blob.shape[3]}")  # fmt: skip
        return scores[0, :, : image.shape[0], : image.shape[1]]


@dataclass
class Segmenter:
    """Labels pictures with a net; `notes` say what was done. `dense` is that of `scores_of`."""

    picture: PictureNet
    preprocess: Preprocess
    proposing: Proposing | None = None
    member: Member | None = None
    crf: CrfSettings | None = None
    dense: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def alone(self) -> bool:
        """Whether the net's own best scores are the labels, so that pictures can go together."""
        return self.proposing is None and self.member is None and self.crf is None and self.dense is None

    def __call__(self, image: np.ndarray, stem: str = "") -> tuple[np.ndarray, int]:
        """Label map uint8 H x W of a picture uint8 H x W x 3, and the number of classes.

        `stem` finds the picture's boxes in a folder. InputError and its kinds where something does not fit.
        """
        scores = self.scores(image, stem)
        if not 2 <= len(scores) <= MOST_CLASSES:
            raise NetError("scores", f"{len(scores)} channels", f"2 to {MOST_CLASSES} classes")
        if self.member is None and self.crf is None:
            return scores.argmax(0).astype(np.uint8), len(scores)
        energies = self.energies(image, scores)
        if self.crf is not None:
            energies = -dense_crf(energies, image, self.crf)
        return energies.argmin(0).astype(np.uint8), len(scores)

    def scores(self, image: np.ndarray, stem: str = "") -> np.ndarray:
        """The net's raw scores C x H x W, aggregated where there are proposals."""
        if self.proposing is None:
            net = self.picture
            return scores_of(net.net, net.input, net.output, image, self.preprocess, self.dense)
        how = self.proposing
        found = propose(how.source, image, stem, how.rules.most, how.edge_model)
        mean = self.preprocess.mean if self.preprocess.mean is not None else np.zeros(1)
        if mean.ndim != 1 or self.preprocess.color != "bgr" or self.preprocess.scale != 1:
            raise InputError("proposals", self.preprocess.words(), "bgr, one mean a channel, scale 1")
        place = next(self.picture.net.parameters()).device
        scores, used = picture_scores(self.score, image, found.boxes, self.side, tuple(mean), how.rules,
                                      how.batch, place)  # fmt: skip
        self.notes.append(f"{stem or 'picture'}: {used} of {len(found.boxes)} proposals ({found.origin})")
        return scores.cpu().numpy()

    def energies(self, image: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """-log of the probabilities, C x H x W: of the ensemble where there is one."""
        if self.member is None:
            return unary_of_scores(scores)
        return ensemble_energies(self.member.rule, scores, self.member.scores(image))

    def score(self, crops: Tensor) -> Tensor:
        """Scores of crops N x 3 x S x S."""
        name = self.picture.output
        with torch.no_grad():
            found: Tensor = self.picture.net(**{self.picture.input: crops}, keep=[name])[name]
        return found

    @property
    def side(self) -> int:
        """The side of the net's crops. NetError where it has none."""
        size = self.picture.size
        if size is None or size[0] != size[1]:
            found = "an input of any size" if size is None else f"an input of {size[0]} x {size[1]}"
            raise NetError("net", found, "a square one, as DeconvNet's 224 x 224", "leave out --proposals")
        return size[0]
