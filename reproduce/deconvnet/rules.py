"""How the scores of proposals become those of the picture: the released rules and clean ones.

The released ones are those of `generate_EDeconvNet_CRF_results.m` of HyeonwooNoh/DeconvNet at 87dd133, with
the quirks that `reproduce.deconvnet.inference` tells of.
"""

from __future__ import annotations

from dataclasses import dataclass

AGGREGATIONS = ("max", "sum", "mean")


@dataclass(frozen=True)
class Rules:
    """How the scores of proposals become those of the picture.

    `aggregate`: the greatest score ("max"), the sum, or the mean over the boxes that cover a pixel; 0 where
    none does. The first `most` boxes of at least `least_side` pixels are taken. `clip`: the maximum starts at
    0. `offset`: the result is read so many pixels up and left of its place.
    """

    aggregate: str = "max"
    most: int = 50
    least_side: int = 1
    clip: bool = False
    offset: int = 0


CLEAN = Rules()
RELEASED = Rules(least_side=112, clip=True, offset=1)
