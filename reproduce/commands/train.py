"""`fcn train`: train a published net on a data set, or any net by its solver file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from caffe_weights.errors import InputError
from reproduce.cli import EXIT_INTERRUPTED
from reproduce.commands.common import device_option, fcn_command, json_option, print_json, say
from reproduce.commands.net import form_options
from reproduce.nets import find

if TYPE_CHECKING:
    from reproduce.nets import Form
    from reproduce.run_files import DataChoice
    from reproduce.train import Result, Scoring, Training

RECIPES = {
    "voc-staged": ("voc-fcn32s", "voc-fcn16s", "voc-fcn8s"),
    "siftflow-staged": ("siftflow-fcn32s", "siftflow-fcn16s", "siftflow-fcn8s"),
    "pascalcontext-staged": ("pascalcontext-fcn32s", "pascalcontext-fcn16s", "pascalcontext-fcn8s"),
}


@fcn_command("train")
@click.argument("name", required=False)
@click.option(
    "--recipe", type=click.Choice(list(RECIPES)), help="Nets one after the other, each from the last."
)
@click.option("--solver", "solver_path", metavar="FILE", help="Train by this Caffe solver instead of a name.")
@click.option("--data", metavar="KIND:DIR", help="The data set; fcn data check KIND DIR looks at it.")
@click.option("--split", default="", help="What to train on. [default: the published split of KIND]")
@click.option("--from", "sources", multiple=True, metavar="WEIGHTS",
              help="The predecessor's, as in fcn start; with --solver what to copy by name.")  # fmt: skip
@click.option("--init", type=click.Choice(["xavier", "msra"]), help="Random weights in place of --from.")
@click.option(
    "--expand-score", "expand", is_flag=True, help="As in fcn start: keep fewer classes as the first."
)
@click.option("--out", required=True, metavar="DIR", help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from the last snapshot in DIR; begin if there is none.")
@click.option("--iterations", type=click.IntRange(1), help="max_iter of the solver.")
@click.option("--lr", metavar="X[,X...]", help="base_lr of the solver; of a recipe one for each net.")
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Any other field of the solver.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True,
              help="Pictures of equal size in a batch.")  # fmt: skip
@click.option("--mirror", is_flag=True, help="Flip half of the pictures.")
@click.option("--jitter", type=click.IntRange(0), default=0, help="Move pictures by up to so many pixels.")
@click.option(
    "--seed", type=int, default=1337, show_default=True, help="Of the pictures' order; of --init too."
)
@click.option("--score-data", metavar="KIND:DIR", help="Score on this. [default: --data, with --score-every]")
@click.option("--score-split", default="", help="[default: the split that KIND is scored on]")
@click.option(
    "--score-every",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Score each N iterations, and at the end. [default: the published number, with --score-data]",
)
@click.option(
    "--score-pictures", type=click.IntRange(0), default=0, help="Only the first so many. [default: all]"
)
@click.option(
    "--workers", type=click.IntRange(0), default=2, show_default=True, help="Processes that decode."
)
@click.option("--no-preflight", is_flag=True, help="Do not look for reasons why the loss would not fall.")
@form_options
@device_option
@json_option
def command(
    name: str | None, recipe: str | None, solver_path: str | None, as_json: bool, **options: Any
) -> int:
    """Train the published net NAME with its published solver, of which each field can be set.

    DIR gets train.prototxt, solver.prototxt and deploy.prototxt, which say all of the run, log.jsonl (a row
    an iteration), curves.png, and snapshot/. Ctrl-C ends it after the iteration with a snapshot; --resume
    goes on as if nothing had been. Before the first iteration weights and rate are checked for what keeps a
    loss from falling. Under torchrun the processes share the passes of an iteration (iter_size).

    \b
    Keys of --json:
      runs   one for each net: net, out, iteration, stopped, loss, snapshot,
             weights, seconds, scores (the four metrics and test_loss, or {})
    """
    from reproduce.train import place

    given = [item for item in (name, recipe, solver_path) if item is not None]
    if len(given) != 1:
        raise InputError("fcn train", " and ".join(given) or "nothing to train", "NAME, --recipe or --solver")
    with _processes():
        if solver_path is not None:
            runs = [_by_solver(Path(solver_path), options)]
        else:
            runs = _by_names(RECIPES[recipe] if recipe else (str(name),), options)
    if place()[0]:
        return 0  # the first process speaks for all
    if as_json:
        print_json({"runs": runs})
    else:
        for run in runs:
            _print(run)
    return EXIT_INTERRUPTED if runs[-1]["stopped"] else 0


def _by_names(names: tuple[str, ...], options: dict[str, Any]) -> list[dict[str, Any]]:
    from reproduce.data import parse_data
    from reproduce.run_files import DataChoice

    if options["data"] is None:
        raise InputError("fcn train", "no data set", "--data KIND:DIR")
    if bool(options["sources"]) == bool(options["init"]):
        raise InputError("fcn train", "--from and --init" if options["init"] else "no start",
                         "--from WEIGHTS of the predecessor, or --init for random ones")  # fmt: skip
    kind, folder = parse_data(options["data"])
    settings = {key: options[key] for key in ("mirror", "jitter") if options[key]}
    settings |= {"batch": options["batch"]} if options["batch"] > 1 else {}
    choice = DataChoice(kind, folder, options["split"], {"seed": options["seed"], **settings})
    rates = _rates(options["lr"], len(names))
    runs: list[dict[str, Any]] = []
    for name, rate in zip(names, rates, strict=True):
        out = Path(options["out"]) / name if len(names) > 1 else Path(options["out"])
        sources = (runs[-1]["weights"],) if runs else options["sources"]
        runs.append(_one(name, choice, out, sources, rate, options))
        if runs[-1]["stopped"]:
            break
    return runs


def _one(
    name: str, choice: DataChoice, out: Path, sources: tuple[str, ...], rate: str, options: dict[str, Any]
) -> dict[str, Any]:
    from reproduce.run_files import form_for, score_dataset, solver_of, train_net, write_run
    from reproduce.snapshots import latest_snapshot
    from reproduce.train import PREFIX, Training, check_new

    form = form_for(name, choice.kind, options["narrow"], options["fc"], options["classes"])
    net = train_net(name, form, choice, "" if sources else options["init"])
    seed = [] if sources else [f"random_seed={options['seed']}"]
    solver = solver_of(name, [*seed, *_changes(options, rate)])
    check_new(out, options["resume"])
    begun = options["resume"] and latest_snapshot(out / PREFIX) is not None
    weights = None if begun else _start(name, form, sources, options["expand"])
    scoring = _scoring(name, form, choice, options, score_dataset)
    write_run(out, name, form, net, solver)
    training = Training(
        solver, out, weights, folder=out, device=options["device"], workers=options["workers"],
        scoring=scoring, resume=options["resume"], check=not options["no_preflight"],
    )  # fmt: skip
    return _run(training, name)


def _by_solver(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    from caffe_weights.upgrade import load_solver
    from reproduce.run_files import changed
    from reproduce.train import Training

    for key in ("data", "init", "score_data", "score_every"):
        if options[key]:
            raise InputError(f"--{key.replace('_', '-')}", "given with --solver", "nothing",
                             "the solver's net says where its data comes from")  # fmt: skip
    if len(options["sources"]) > 1:
        raise InputError("--from", f"{len(options['sources'])} files with --solver", "one")
    solver = changed(load_solver(path), _changes(options, _rates(options["lr"], 1)[0]))
    training = Training(
        solver, Path(options["out"]), next(iter(options["sources"]), None), folder=path.parent,
        device=options["device"], workers=options["workers"], resume=options["resume"],
        check=not options["no_preflight"],
    )  # fmt: skip
    return _run(training, str(path))


def _run(training: Training, name: str) -> dict[str, Any]:
    start = time.perf_counter()
    solver = training.solver
    with _shown(name, solver.iteration, solver.param.max_iter, solver.param.display, solver.rank) as step:
        result: Result = training.run(step)
    weights = str(result.snapshot).replace(".solverstate", ".caffemodel") if result.snapshot else None
    return {"net": name, "out": str(training.out), "iteration": result.iteration, "stopped": result.stopped,
            "loss": result.loss, "snapshot": str(result.snapshot), "weights": weights,
            "seconds": time.perf_counter() - start, "scores": result.scores}  # fmt: skip


def _start(name: str, form: Form, sources: tuple[str, ...], expand: bool) -> Any:
    from caffe_weights.export import read_weights
    from reproduce.run_files import interpolation
    from reproduce.starting import start

    if not sources:
        return interpolation(name, form)
    made = start(name, [read_weights(path) for path in sources], form, expand)
    say(f"{name}: {len(made.report.copied) + len(made.report.coerced)} blobs from {', '.join(sources)},"
        f" {len(made.report.new)} new")  # fmt: skip
    return made.weights


def _scoring(
    name: str, form: Form, choice: DataChoice, options: dict[str, Any], open_it: Callable[..., Any]
) -> Scoring | None:
    from reproduce.run_files import score_net
    from reproduce.train import Scoring

    if options["score_data"] is None and not options["score_every"]:
        return None
    entry = find(name)
    assert entry.data is not None
    assert entry.recipe is not None
    dataset = open_it(name, options["score_data"], choice, options["score_split"])
    every = options["score_every"] or entry.recipe.scored_every
    return Scoring(score_net(name, form), dataset, entry.data.tops, every, options["score_pictures"])


def _changes(options: dict[str, Any], rate: str) -> list[str]:
    short = {"base_lr": rate, "max_iter": options["iterations"]}
    return [*(f"{field}={value}" for field, value in short.items() if value), *options["changes"]]


def _rates(text: str | None, count: int) -> list[str]:
    rates = text.split(",") if text else [""] * count
    if len(rates) != count:
        raise InputError(
            "--lr", f"{len(rates)} rates", f"{count}, one for each net", "separate them by commas"
        )
    return rates


@contextmanager
def _processes() -> Iterator[None]:
    """Join the processes that torchrun started, if it did."""
    from reproduce.train import place

    if place()[1] == 1:
        yield
        return
    import torch
    from torch import distributed

    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def _shown(name: str, first: int, last: int, display: int, rank: int) -> Iterator[Callable[..., None]]:
    """Progress with rate and remaining time on a terminal, a line each `display` iterations elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[words]}"))  # fmt: skip
    console = Console(file=sys.stderr)
    live = console.is_terminal and rank == 0
    start = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not live) as bar:
        task = bar.add_task(name, total=last, completed=first, words="")

        def step(row: dict[str, Any]) -> None:
            if rank:
                return
            done = row["iteration"] + ("loss" in row)
            speed = (done - first) / max(time.perf_counter() - start, 1e-9)
            if "loss" not in row:
                scores = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "iteration")
                console.print(f"{name} {done}: {scores}", highlight=False, soft_wrap=True)
                return
            words = f"loss {row['smoothed_loss']:.6g}, lr {row['lr']:.3g}, {speed:.3g} it/s"
            bar.update(task, completed=done, words=words)
            if display and (done % display == 0 or done == last) and not live:
                left = (last - done) / max(speed, 1e-9)
                console.print(
                    f"{name} {done}/{last}: {words}, {left:.0f} s left", highlight=False, soft_wrap=True
                )

        yield step


def _print(run: dict[str, Any]) -> None:
    how = "stopped" if run["stopped"] else "done"
    click.echo(f"{run['net']}: {how} at iteration {run['iteration']}, loss {run['loss']:.6g}")
    for key, value in run["scores"].items():
        click.echo(f"  {key:<22} {value:.4f}")
    click.echo(f"  weights {run['weights']}, log and curves in {run['out']}")
    if run["stopped"]:
        click.echo("  go on with the same command and --resume")
