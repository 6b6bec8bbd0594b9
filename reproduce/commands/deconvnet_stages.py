"""DeconvNet in `fcn train` (--recipe deconvnet) and `fcn data deconvnet`, which makes what it trains on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from caffe_weights.errors import InputError
from reproduce.commands.common import fcn_command, json_option, print_json, progress

if TYPE_CHECKING:
    from reproduce.train import Training

RECIPE = "deconvnet"
KINDS = ("voc", "sbd", "digits", "camvid")
# Options of `fcn train` that the two stages leave no room for, with their defaults
UNUSED: dict[str, Any] = {
    "split": "", "expand": False, "batch": 1, "momentum": None, "mirror": False, "jitter": 0, "balance": None,
    "sample": 1.0, "learn_interpolation": None, "only_last": False, "dropout": None, "score_data": None,
    "score_every": 0,
}  # fmt: skip
Run = Callable[["Training", str], dict[str, Any]]


def stage_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--faithful and --side of `fcn train --recipe deconvnet`."""
    for option in (
        click.option("--side", type=click.IntRange(32), default=None, metavar="PX",
                     help="Of deconvnet: crops of another side, a multiple of 32. [default: 224]"),
        click.option("--faithful", is_flag=True,
                     help="Of deconvnet: decay divided by iter_size, BN's gradients of the last batch alone,"
                     " as in its fork."),
    ):  # fmt: skip
        function = option(function)
    return function


def check_no_stages(options: dict[str, Any]) -> None:
    """InputError where options of the two stages are given for something else."""
    for name in ("side", "faithful"):
        if options[name]:
            raise InputError(f"--{name}", "given without --recipe deconvnet", "both")


def stage_runs(
    options: dict[str, Any], changes: list[list[str]], how: dict[str, Any], run: Run
) -> list[dict[str, Any]]:
    """Train both stages, the second from the first; `changes` of the solver for each. InputError."""
    from reproduce.deconvnet.recipe import STAGES, Stage, stage_training
    from reproduce.nets import Form
    from reproduce.nets.deconvnet import SIDE

    data = _folder(options)
    form = Form(options["narrow"], options["fc"], options["classes"])
    init = options["init"] or ("msra" if form.narrow > 1 else "own")
    seed = [f"random_seed={options['seed']}"]
    runs: list[dict[str, Any]] = []
    for name, own in zip(STAGES, changes, strict=True):
        stage = Stage(name, data, form, options["side"] or SIDE, init, options["faithful"])
        start = runs[-1]["weights"] if runs else next(iter(options["sources"]), None)
        training = stage_training(stage, Path(options["out"]) / name, start, [*seed, *own], **how)
        runs.append(run(training, f"deconvnet {name}"))
        if runs[-1]["stopped"]:
            break
    return runs


@fcn_command("deconvnet", "Make crops and windows for DeconvNet's two stages.")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("folder", metavar="DIR")
@click.option("--out", required=True, metavar="DIR", help="Where crops, labels and lists go.")
@click.option("--split", default=None, help="[default: the published split of KIND]")
@click.option("--list", "name", type=click.Choice(["train", "val"]), default="train", show_default=True,
              help="Which list of the net this is.")  # fmt: skip
@click.option("--proposals", default="auto", show_default=True, metavar="SOURCE",
              help="For stage 2: a folder of STEM.mat, ..., edgeboxes, windows, or auto.")  # fmt: skip
@click.option("--edge-model", default=None, metavar="FILE", help="Structured forest for edgeboxes.")
@click.option("--overlap", type=float, default=0.5, show_default=True,
              help="Least intersection over union of a proposal with an object's enlarged box.")  # fmt: skip
@click.option("--repeat", type=click.IntRange(1), default=10, show_default=True,
              help="Repeat lines of rare classes, at most so often; 1 for none.")  # fmt: skip
@click.option("--stage", "stages", type=click.Choice(["1", "2"]), multiple=True, default=("1", "2"),
              help="Only this one. [default: both]")  # fmt: skip
@json_option
def data_command(
    kind: str, folder: str, out: str, split: str | None, name: str, proposals: str, edge_model: str | None,
    overlap: float, repeat: int, stages: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Make DeconvNet's training data from the data set in DIR: crops of objects for stage 1, windows that
    overlap objects for stage 2, as lists that fcn train --recipe deconvnet --data deconvnet:OUT reads.

    Objects are those of VOC's SegmentationObject and SBD's inst; elsewhere each connected region is one.

    \b
    Keys of --json:
      kind, split, pictures, out
      lines   stage_1, stage_2: lines of the lists, repeated ones counted (null where not made)
    """
    from reproduce.data import open_data
    from reproduce.deconvnet.stages import make_stage_1, make_stage_2

    dataset = open_data(kind, folder, split)
    lines: dict[str, int | None] = {"stage_1": None, "stage_2": None}
    with progress(f"cutting {kind}", len(dataset.ids) * len(set(stages))) as step:
        if "1" in stages:
            lines["stage_1"] = make_stage_1(dataset, Path(out), name, repeat, step)
        if "2" in stages:
            lines["stage_2"] = make_stage_2(dataset, Path(out), proposals, name, overlap, repeat, step,
                                            edge_model)  # fmt: skip
    report = {"kind": kind, "split": dataset.split.name, "pictures": len(dataset.ids), "out": out,
              "lines": lines}  # fmt: skip
    if as_json:
        print_json(report)
    else:
        made = ", ".join(f"{key.replace('_', ' ')}: {count} lines" for key, count in lines.items() if count)
        click.echo(f"{len(dataset.ids)} pictures of {kind} {dataset.split.name}: {made}, in {out}")


def _folder(options: dict[str, Any]) -> Path:
    """The folder of --data deconvnet:DIR, other options checked."""
    kind, colon, folder = (options["data"] or "").partition(":")
    if kind != RECIPE or not colon or not folder:
        raise InputError("--data", repr(options["data"]), "deconvnet:DIR, made by fcn data deconvnet")
    for name, default in UNUSED.items():
        if options[name] != default:
            raise InputError(f"--{name.replace('_', '-')}", "given with --recipe deconvnet", "nothing",
                             "--set changes its solver")  # fmt: skip
    if not options["sources"] and not options["init"]:
        raise InputError("fcn train", "no start", "--from VGG16's weights, or --init for random ones")
    if len(options["sources"]) > 1:
        raise InputError("--from", f"{len(options['sources'])} files", "one")
    return Path(folder)
