"""The options of `fcn train`, in groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Function = Callable[..., Any]
BALANCES = ("median-frequency", "inverse")


def together(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one decorator, in the order of --help."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


data_options = together(
    click.option("--data", metavar="KIND:DIR", help="The data set; fcn data check KIND DIR looks at it."),
    click.option("--split", default="", help="What to train on. [default: the published split of KIND]"),
    click.option("--from", "sources", multiple=True, metavar="WEIGHTS",
                 help="The predecessor's, as in fcn start; with --init only what there is of a trunk; with"
                 " --solver what to copy by name."),
    click.option("--init", type=click.Choice(["xavier", "msra", "own"]),
                 help="Random weights, for what --from has not; own: as the net itself says, which"
                 " Auto-DeepLab does."),
    click.option("--expand-score", "expand", is_flag=True, 
                 help="As in fcn start: keep fewer classes as first."),
    click.option("--batch", type=click.IntRange(1), default=1, show_default=True,
                 help="Pictures of equal size in a batch."),
    click.option("--seed", type=int, default=1337, show_default=True,
                 help="Of the pictures' order; of --init too."),
    click.option("--workers", type=click.IntRange(0), default=2, show_default=True,
                 help="Processes that decode."),
)  # fmt: skip

solver_options = together(
    click.option("--iterations", type=click.IntRange(1), help="max_iter of the solver."),
    click.option("--lr", metavar="X[,X...]", help="base_lr of the solver; of a recipe one for each net."),
    click.option("--momentum", metavar="P[@K]",
                 help="momentum of the solver; 0.9@20 does what 0.9 does in batches of 20: P^(batch/K)."),
    click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE",
                 help="Any other field of the solver."),
)  # fmt: skip

paper_options = together(
    click.option("--mirror", is_flag=True, help="Flip half of the pictures."),
    click.option("--jitter", type=click.IntRange(0), default=0, metavar="N",
                 help="Move pictures by up to N pixels; the paper: 32."),
    click.option("--balance", metavar="|".join((*BALANCES, "FILE")),
                 help="Weight the classes in the loss, by frequencies in the training set or by the lines"
                 " of a file."),
    click.option("--sample", type=float, default=1.0, metavar="P",
                 help="Keep each term of the loss with probability P, and take 1/P times as many pictures."),
    click.option("--sample-cell", "cell", type=click.IntRange(1), default=1, metavar="N", show_default=True,
                 help="Keep or leave squares of N x N pixels together."),
    click.option("--learn-interpolation/--fixed-interpolation", default=None,
                 help="Let the up-sampling between skips learn, or none. [default: as the net has it]"),
    click.option("--only-last", is_flag=True, help="Let nothing but the score layers learn."),
    click.option("--dropout", type=float, metavar="P",
                 help="Probability of the net's Dropout layers; narrow nets stand less. [default: 0.5]"),
)  # fmt: skip

auto_deeplab_options = together(
    click.option("--architecture", metavar="FILE",
                 help="Of auto-deeplab: its path and cell, as fcn search writes them."),
    click.option("--crop", type=click.IntRange(0), default=0, metavar="N",
                 help="Cut random squares of N pixels; Auto-DeepLab's paper: 769 of Cityscapes."),
    click.option("--shrink", type=click.IntRange(1), default=1, metavar="N", show_default=True,
                 help="Make pictures smaller by this first."),
    click.option("--bn-fraction", type=click.FloatRange(0, 1, max_open=True), metavar="X",
                 help="moving_average_fraction of all BatchNorm layers; a run of N iterations wants about"
                 " 1 - 10 / N at most. [default: the net's; of auto-deeplab 0.9997]"),
    click.option("--drop-path", type=float, default=1.0, metavar="KEEP",
                 help="Of auto-deeplab: in the end keep an operation of the last cell with this probability."
                 " [default: drop none]"),
)  # fmt: skip

score_options = together(
    click.option("--score-data", metavar="KIND:DIR",
                 help="Score on this. [default: --data, with --score-every]"),
    click.option("--score-split", default="", help="[default: the split that KIND is scored on]"),
    click.option("--score-every", type=click.IntRange(0), default=0, metavar="N",
                 help="Score each N iterations, and at the end. [default: the published number, with"
                 " --score-data]"),
    click.option("--score-pictures", type=click.IntRange(0), default=0, help="Only the first so many."
                 " [default: all]"),
)  # fmt: skip

run_options = together(
    click.option("--out", required=True, metavar="DIR", help="Folder of the run."),
    click.option("--resume", is_flag=True,
                 help="Go on from the last snapshot in DIR; begin if there is none."),
    click.option("--keep", type=click.IntRange(0), default=0, metavar="N",
                 help="Keep the last N snapshots only. [default: all]"),
    click.option("--checkpoint", is_flag=True,
                 help="Compute blobs again in the backward pass: less memory, the same numbers."),
    click.option("--tensorboard", is_flag=True, help="Also write DIR/tensorboard, if it is installed."),
    click.option("--no-preflight", is_flag=True, help="Do not look for reasons why the loss would not fall."),
)  # fmt: skip
