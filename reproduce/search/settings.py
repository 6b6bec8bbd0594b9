"""What a search can be told, and the constants of the relaxation; torch-free, so that audits can read them.

Liu et al., CVPR 2019, sections 4 and 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from caffe_weights.errors import InputError
from reproduce.search.space import BLOCKS, LAYERS

INIT_DEVIATION = 1e-3  # of alpha and beta before the softmax
HEAD_BRANCHES = (
    "point",
    "atrous",
    "image",
)  # of the pyramid on each of the last maps, each as wide as the map
HEAD_REACH = 96  # pixels between the taps of a head's 3 x 3 convolution
SEARCH_FILTERS = 8
STEM = (64, 64, 128)


@dataclass(frozen=True)
class Settings:
    """Everything that a search can be told; the defaults are the paper's for Cityscapes.

    `scale` takes blobs to about -1 to 1. `filters` is F of the search, `final_filters` F of the decoded net.
    """

    layers: int = LAYERS
    blocks: int = BLOCKS
    filters: int = SEARCH_FILTERS
    stem: tuple[int, int, int] = STEM
    epochs: int = 40
    architecture_from: int = 20
    batch: int = 2
    crop: int = 321
    shrink: int = 2
    mirror: bool = False
    lr: float = 0.025
    lr_end: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-4
    architecture_lr: float = 0.003
    architecture_decay: float = 1e-3
    architecture_betas: tuple[float, float] = (0.9, 0.999)
    scale: float = 2 / 255
    final_filters: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "blocks", "filters", "epochs", "batch", "crop", "shrink", "final_filters"):
            if getattr(self, name) < 1:
                raise InputError(f"search, {name}", str(getattr(self, name)), "at least 1")
        if not 0 <= self.architecture_from <= self.epochs:
            raise InputError("search, architecture_from", str(self.architecture_from), f"0 to {self.epochs}")
