"""`fcn search`: search for an Auto-DeepLab on a data set."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reproduce.commands.common import (
    device_option,
    fcn_command,
    json_option,
    precision_option,
    print_json,
    progress,
    say,
)
from reproduce.search.settings import Settings

if TYPE_CHECKING:
    from reproduce.search.run import Search

HELP = {  # of the settings
    "layers": "Cells on a path.",
    "blocks": "Blocks in a cell.",
    "filters": "F while searching: a block at stride s has F s / 4 channels.",
    "final_filters": "F of the decoded net.",
    "epochs": "Rounds through the half that the weights learn from.",
    "architecture_from": "Epoch, counted from 0, from which alpha and beta learn.",
    "batch": "Pictures in a batch, of each process.",
    "crop": "Side of the random crops in pixels; 32 k + 1 keeps all maps aligned.",
    "shrink": "Make pictures smaller by this first.",
    "lr": "Rate of the weights at the start, from which it falls by half a cosine.",
    "lr_end": "At the end.",
    "momentum": "Of the weights.",
    "weight_decay": "Of the weights.",
    "architecture_lr": "Rate of alpha and beta, by Adam.",
    "architecture_decay": "Weight decay of alpha and beta.",
    "scale": "What blobs are multiplied by.",
    "seed": "Of the start, the halves, the order and the crops.",
}
DEFAULTS = asdict(Settings())


def setting_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each setting."""
    for name in reversed(HELP):
        flag, value = f"--{name.replace('_', '-')}", DEFAULTS[name]
        function = click.option(flag, type=type(value), default=value, show_default=True, help=HELP[name])(
            function
        )
    return function


@fcn_command("search")
@click.option("--data", required=True, metavar="KIND:DIR", help="The data set.")
@click.option("--split", default="", help="Which split is halved. [default: the training split of KIND]")
@click.option("--out", required=True, metavar="DIR", help="Folder of the search.")
@click.option("--resume", is_flag=True, help="Go on from the snapshot in DIR; begin if there is none.")
@setting_options
@click.option("--stem", default="64,64,128", show_default=True, help="Widths of the stem's convolutions.")
@click.option("--mirror", is_flag=True, help="Flip half of the pictures.")
@click.option("--snapshot-every", type=click.IntRange(0), default=0, metavar="N",
              help="Snapshot and pictures each N iterations. [default: each epoch]")  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(0), default=2, show_default=True, help="Processes that decode."
)
@precision_option
@device_option
@json_option
def command(
    data: str, split: str, out: str, resume: bool, snapshot_every: int, workers: int, precision: str,
    device: str, as_json: bool, **settings: Any,
) -> int:  # fmt: skip
    """Search for an Auto-DeepLab: its cell and its path, by gradient descent over all of them at once.

    The defaults are the paper's for Cityscapes. DIR gets log.jsonl (losses, rate, entropies of alpha and beta
    for each iteration), search.png (alpha and beta as they are now), search.pt (what --resume needs) and
    architecture.json, for fcn net auto-deeplab --architecture, fcn train and fcn draw-architecture. Under
    torchrun each process takes batches of its own.

    \b
    Keys of --json:
      out, iteration, epochs, architecture (what architecture.json holds),
      alpha_entropy, beta_entropy (nats, means over edges and maps)
    """
    from reproduce.commands.train import processes
    from reproduce.data import open_data, parse_data
    from reproduce.run_files import check_folder
    from reproduce.search.draw import draw_search
    from reproduce.search.run import Search

    def shown(search: Search) -> None:
        alpha, beta = (p.detach().cpu().numpy() for p in search.net.probabilities())
        title = f"after {search.iteration} iterations of {search.total}"
        draw_search(alpha, beta, Path(out) / "search.png", title)

    chosen = Settings(**{**settings, "stem": _widths(settings["stem"])})
    kind, folder = parse_data(data)
    check_folder(Path(out))
    with processes(device):
        local = os.environ.get("LOCAL_RANK")
        place = f"cuda:{local}" if device == "cuda" and local is not None else device
        dataset = open_data(kind, folder, split or None)
        search = Search(dataset, Path(out), chosen, place, precision, workers, resume)
        with progress(f"searching in {out}", search.total - search.iteration) as step:
            search.run(lambda row: step(), snapshot_every, shown=shown)
    if search.rank:
        return 0
    entropies = dict(zip(("alpha_entropy", "beta_entropy"), search.net.entropies(), strict=True))
    found = {"out": out, "iteration": search.iteration, "epochs": search.epoch, **entropies,
             "architecture": search.decoded().as_dict()}  # fmt: skip
    if as_json:
        print_json(found)
    else:
        _print(found)
    return 0


def _widths(text: str) -> tuple[int, int, int]:
    from caffe_weights.errors import InputError

    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise InputError("--stem", repr(text), "three widths, as 64,64,128")
    first, second, third = map(int, parts)
    return first, second, third


def _print(found: dict[str, Any]) -> None:
    architecture = found["architecture"]
    click.echo(f"strides  {' '.join(map(str, architecture['strides']))}")
    for number, block in enumerate(architecture["cell"], 1):
        click.echo(
            f"block {number}  " + " + ".join(f"{operation} of {source}" for source, operation in block)
        )
    click.echo(f"entropy  alpha {found['alpha_entropy']:.4f}, beta {found['beta_entropy']:.4f}")
    say(f"wrote {found['out']}/architecture.json")
