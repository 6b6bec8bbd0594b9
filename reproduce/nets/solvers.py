"""The solvers of the published nets, as data.

From the `solver.prototxt` and `solve.py` files of shelhamer/fcn.berkeleyvision.org at 1305c73. Nets that it
did not ship have recipes of ours, and `published` says so: FCN-GoogLeNet and the ResNet take FCN-AlexNet's
(normalised loss, batches of 20), the former with the paper's rate; the ablations that of the net they vary.
Auto-DeepLab's is its paper's for Cityscapes (section 5.2): 1.5 M iterations, S and M; L took 4 M. Batches of
8 are inferred from its epochs; power, momentum and decay are its code's defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from caffe_weights.caffe_pb2 import SolverParameter

NEVER = 999999999  # the solver itself tests never: `scored_every` iterations a script scores


@dataclass(frozen=True)
class Recipe:
    """What differs between solvers. `snapshot` 0: none. `published`: False where the recipe is ours."""

    base_lr: float
    max_iter: int
    test_iter: int
    snapshot: int
    scored_every: int
    momentum: float = 0.99
    iter_size: int = 1
    published: bool = True
    weight_decay: float = 0.0005
    poly: float | None = None  # the rate falls as (1 - iteration / max_iter) to this power


def make_solver(recipe: Recipe, splits: tuple[str, str]) -> SolverParameter:
    """The solver of a net; `splits` name the prototxts of training and scoring."""
    solver = SolverParameter(
        train_net=f"{splits[0]}.prototxt", test_net=[f"{splits[1]}.prototxt"], test_iter=[recipe.test_iter],
        test_interval=NEVER, test_initialization=False, display=20, average_loss=20,
        lr_policy="fixed", base_lr=recipe.base_lr, momentum=recipe.momentum, iter_size=recipe.iter_size,
        max_iter=recipe.max_iter, weight_decay=recipe.weight_decay,
    )  # fmt: skip
    if recipe.poly is not None:
        solver.lr_policy, solver.power = "poly", recipe.poly
    if recipe.snapshot:
        solver.snapshot, solver.snapshot_prefix = recipe.snapshot, "snapshot/train"
    return solver


def ours(recipe: Recipe, base_lr: float | None = None) -> Recipe:
    """The recipe for a net that was not published, at another rate if one is given."""
    return replace(recipe, published=False, base_lr=base_lr or recipe.base_lr)


VOC_32S = Recipe(1e-10, 100000, 736, 4000, 4000)
VOC_16S = replace(VOC_32S, base_lr=1e-12)
VOC_8S = replace(VOC_32S, base_lr=1e-14)
VOC_AT_ONCE = replace(VOC_32S, max_iter=300000)
VOC_ALEXNET = replace(VOC_32S, base_lr=1e-4, momentum=0.9, iter_size=20)
NYUD = Recipe(1e-10, 300000, 654, 2000, 2000)
NYUD_FUSED = replace(NYUD, base_lr=1e-12)
SIFTFLOW_32S = Recipe(1e-10, 300000, 200, 0, 2000)
SIFTFLOW_16S = SIFTFLOW_8S = replace(SIFTFLOW_32S, base_lr=1e-12)
CONTEXT_32S = Recipe(1e-10, 300000, 5105, 4000, 8000)
CONTEXT_16S = replace(CONTEXT_32S, base_lr=1e-12)
CONTEXT_8S = replace(CONTEXT_32S, base_lr=1e-14)
AUTO_DEEPLAB = Recipe(
    0.05, 1_500_000, 500, 10000, 10000, momentum=0.9, published=False, weight_decay=4e-5, poly=0.9
)
