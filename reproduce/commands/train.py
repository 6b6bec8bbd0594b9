"""`fcn train`: train a published net on a data set, or any net by its solver file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from caffe_weights.errors import InputError
from reproduce.cli import EXIT_INTERRUPTED
from reproduce.commands.common import (
    device_option,
    fcn_command,
    frame_option,
    json_option,
    precision_option,
    print_json,
    progress,
    say,
)
from reproduce.commands.deconvnet_stages import RECIPE as DECONVNET
from reproduce.commands.deconvnet_stages import check_no_stages, stage_options, stage_runs
from reproduce.commands.net import form_options, given_architecture
from reproduce.commands.train_options import (
    auto_deeplab_options,
    data_options,
    paper_options,
    run_options,
    score_options,
    solver_options,
)
from reproduce.data import DATASETS
from reproduce.nets import find, make_net
from reproduce.nets.drop_path import add_drop_path

if TYPE_CHECKING:
    from caffe_weights.caffe_pb2 import NetParameter, SolverParameter
    from reproduce.nets import Form
    from reproduce.paper_options import PaperOptions
    from reproduce.run_files import DataChoice
    from reproduce.train import Result, Scoring, Training

RECIPES = {
    "voc-staged": ("voc-fcn32s", "voc-fcn16s", "voc-fcn8s"),
    "siftflow-staged": ("siftflow-fcn32s", "siftflow-fcn16s", "siftflow-fcn8s"),
    "pascalcontext-staged": ("pascalcontext-fcn32s", "pascalcontext-fcn16s", "pascalcontext-fcn8s"),
    DECONVNET: ("stage 1", "stage 2"),
}


# Options that a solver of one's own leaves no room for, with their defaults
NAMED_ONLY: dict[str, Any] = {
    "data": None, "split": "", "init": None, "expand": False, "batch": 1, "momentum": None, "mirror": False,
    "jitter": 0, "crop": 0, "shrink": 1, "drop_path": 1.0, "bn_fraction": None, "architecture": None,
    "balance": None, "sample": 1.0, "cell": 1, "learn_interpolation": None, "only_last": False,
    "dropout": None,
    "score_data": None, "score_every": 0, "narrow": 1, "fc": None, "classes": None,
}  # fmt: skip
FLAGS = {"expand": "--expand-score", "cell": "--sample-cell", "learn_interpolation": "--learn-interpolation"}


@fcn_command("train")
@click.argument("name", required=False)
@click.option(
    "--recipe", type=click.Choice(list(RECIPES)), help="Nets one after the other, each from the last."
)
@click.option("--solver", "solver_path", metavar="FILE", help="Train by this Caffe solver instead of a name.")
@data_options
@solver_options
@paper_options
@auto_deeplab_options
@score_options
@run_options
@stage_options
@form_options
@precision_option
@device_option
@frame_option
@json_option
def command(
    name: str | None, recipe: str | None, solver_path: str | None, as_json: bool, **options: Any
) -> int:
    """Train the published net NAME with its published solver, of which each field can be set.

    With --solver FILE train any net: its data comes from Caffe's data layers HDF5Data, ImageData and Data
    (LMDB), or from Python layers of the reference; the tests that the solver asks for are made.

    DIR gets train.prototxt, solver.prototxt and deploy.prototxt, which say all of the run, log.jsonl (a row
    an iteration), curves.png, and snapshot/. Ctrl-C ends it after the iteration with a snapshot; --resume
    goes on as if nothing had been. Before the first iteration weights and rate are checked for what keeps a
    loss from falling. Under torchrun the processes share the passes of an iteration (iter_size).

    \b
    Keys of --json:
      runs   one for each net: net, out, iteration, stopped, loss, snapshot,
             weights, seconds, scores (the four metrics and test_loss, or {}),
             tests (the last outputs of each test net of the solver, by blob)
    """
    from reproduce.train import place

    given = [item for item in (name, recipe, solver_path) if item is not None]
    if len(given) != 1:
        raise InputError("fcn train", " and ".join(given) or "nothing to train", "NAME, --recipe or --solver")
    if recipe != DECONVNET:
        check_no_stages(options)
    with processes(options["device"]):
        if solver_path is not None:
            runs = [_by_solver(Path(solver_path), options)]
        elif recipe == DECONVNET:
            changes = [_changes(options, rate) for rate in _rates(options["lr"], len(RECIPES[recipe]))]
            runs = stage_runs(options, changes, _how(options), _run)
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
    from reproduce.run_files import DataChoice, check_folder

    if options["data"] is None:
        raise InputError("fcn train", "no data set", "--data KIND:DIR")
    if not options["sources"] and not options["init"]:
        raise InputError(
            "fcn train", "no start", "--from WEIGHTS of the predecessor, or --init for random ones"
        )
    if options["expand"] and not options["sources"]:
        raise InputError("--expand-score", "given without --from", "both")
    check_folder(Path(options["out"]))
    kind, folder = parse_data(options["data"])
    settings = {key: options[key] for key in ("mirror", "jitter", "crop") if options[key]}
    settings |= {key: options[key] for key in ("batch", "cell", "shrink") if options[key] > 1}
    settings |= {"sample": options["sample"]} if options["sample"] < 1 else {}
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
    from reproduce.precision import check_precision
    from reproduce.run_files import form_for, score_dataset, write_run
    from reproduce.snapshots import latest_snapshot
    from reproduce.train import PREFIX, Training, check_new

    architecture = given_architecture(options["architecture"])
    form = form_for(name, choice.kind, options["narrow"], options["fc"], options["classes"], architecture)
    paper = _paper(name, out, options)
    init = options["init"] if sources == options["sources"] else ""  # the nets after the first have it all
    net, solver = _definitions(name, form, choice, init, paper, rate, options)
    check_new(out, options["resume"])
    check_precision(options["precision"], _device(options))
    begun = options["resume"] and latest_snapshot(out / PREFIX) is not None
    weights = None if begun else _start(name, form, sources, init, options["expand"], paper)
    scoring = _scoring(name, form, choice, options, score_dataset)
    if options["balance"]:
        _balance(name, net, choice, out, options["balance"])
    write_run(out, name, form, net, solver)
    return _run(Training(solver, out, weights, folder=out, scoring=scoring, **_how(options)), name)


def _paper(name: str, out: Path, options: dict[str, Any]) -> PaperOptions:
    """What the paper tried; the first net of a recipe has no interpolation between skips to learn."""
    from reproduce.paper_options import PaperOptions, up_between

    first = out != Path(options["out"]) and not up_between(make_net(name, find(name).splits[0]))
    learned = None if first else options["learn_interpolation"]
    return PaperOptions(options["sample"], learned, options["only_last"], options["dropout"])


def _definitions(
    name: str, form: Form, choice: DataChoice, init: str | None, paper: PaperOptions, rate: str,
    options: dict[str, Any],
) -> tuple[NetParameter, SolverParameter]:  # fmt: skip
    """The net with its data layer, and its solver, as the options change them."""
    from reproduce.run_files import adapted, set_bn_fraction, solver_of, train_net
    from reproduce.train import place

    net = train_net(name, form, choice, init, paper)
    solver = solver_of(name, _changes(options, rate), options["seed"] if init else None)
    solver = adapted(solver, options["momentum"], options["batch"], options["sample"])
    if options["bn_fraction"] is not None:
        set_bn_fraction(net, options["bn_fraction"])
    if options["drop_path"] != 1:
        net = add_drop_path(net, options["drop_path"], solver.max_iter * solver.iter_size // place()[1])
    return net, solver


def _how(options: dict[str, Any]) -> dict[str, Any]:
    """What a run takes from the options whatever it trains."""
    plain = ("workers", "resume", "precision", "checkpoint", "keep", "tensorboard", "frame")
    return {**{key: options[key] for key in plain}, "device": _device(options),
            "check": not options["no_preflight"]}  # fmt: skip


def _device(options: dict[str, Any]) -> Any:
    """The device; of several processes on CUDA each takes the one of its number on this machine."""
    from reproduce.inference import pick_device

    name, local = options["device"], os.environ.get("LOCAL_RANK")
    return pick_device(f"cuda:{local}" if name == "cuda" and local is not None else name)


def _balance(name: str, net: NetParameter, choice: DataChoice, out: Path, rule: str) -> None:
    from reproduce.run_files import balance_run, open_for

    entry = find(name)
    assert entry.data is not None
    dataset, _ = open_for(name, choice, DATASETS[choice.kind].train_split)
    parts = dict(zip(entry.data.tops, dataset.parts, strict=True))
    with progress(f"counting the classes of {choice.kind}", len(dataset.ids)) as step:
        balance_run(out, net, dataset, parts, rule, step)


def _by_solver(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    from caffe_weights.upgrade import load_solver
    from reproduce.run_files import changed
    from reproduce.train import Training

    for key, default in NAMED_ONLY.items():
        if options[key] != default:
            raise InputError(FLAGS.get(key, f"--{key.replace('_', '-')}"), "given with --solver", "nothing",
                             "the solver and its net say it")  # fmt: skip
    if len(options["sources"]) > 1:
        raise InputError("--from", f"{len(options['sources'])} files with --solver", "one")
    solver = changed(load_solver(path), _changes(options, _rates(options["lr"], 1)[0]))
    weights = next(iter(options["sources"]), None)
    training = Training(solver, Path(options["out"]), weights, folder=path.parent, **_how(options))
    return _run(training, str(path))


def _run(training: Training, name: str) -> dict[str, Any]:
    start = time.perf_counter()
    solver = training.solver
    with _shown(name, solver.iteration, solver.param.max_iter, solver.param.display, solver.rank) as step:
        result: Result = training.run(step)
    weights = str(result.snapshot).replace(".solverstate", ".caffemodel") if result.snapshot else None
    return {"net": name, "out": str(training.out), "iteration": result.iteration, "stopped": result.stopped,
            "loss": result.loss, "snapshot": str(result.snapshot), "weights": weights,
            "seconds": time.perf_counter() - start, "scores": result.scores,
            "tests": result.tests}  # fmt: skip


def _start(
    name: str, form: Form, sources: tuple[str, ...], init: str | None, expand: bool, paper: PaperOptions
) -> Any:
    from reproduce.run_files import interpolation
    from reproduce.starting import start
    from reproduce.trunk import read_start, start_trunk

    given = [read_start(path) for path in sources]
    if init and sources:
        weights, report = start_trunk(name, given, form)
        say(f"{name}: {report}, the rest by {init}")
        return weights
    if not sources:
        return interpolation(name, form) or None
    made = start(name, given, form, expand, paper.change)
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
def processes(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, if it did."""
    from reproduce.train import place

    if place()[1] == 1:
        yield
        return
    from torch import distributed

    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def _shown(name: str, first: int, last: int, display: int, rank: int) -> Iterator[Callable[..., None]]:
    """Progress with rate and remaining time on a terminal, a line each `display` iterations elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from reproduce.run_log import numbers

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[words]}"))  # fmt: skip
    console = Console(file=sys.stderr)
    live = console.is_interactive and rank == 0
    start = time.perf_counter()
    bar = Progress(*columns, console=console, transient=True, disable=not live)
    with bar if live else nullcontext():  # rich would leave an empty line in a file
        task = bar.add_task(name, total=last, completed=first, words="")

        def step(row: dict[str, Any]) -> None:
            if rank:
                return
            done = row["iteration"] + ("loss" in row)
            speed = (done - first) / max(time.perf_counter() - start, 1e-9)
            if "loss" not in row:
                scores = ", ".join(f"{key} {value:.4g}" for key, value in numbers(row).items())
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
    for index, values in enumerate(run["tests"]):
        for key, value in values.items():
            click.echo(f"  test {index} {key:<15} {value if isinstance(value, list) else f'{value:.6g}'}")
    click.echo(f"  weights {run['weights']}, log and curves in {run['out']}")
    if run["stopped"]:
        click.echo("  go on with the same command and --resume")
