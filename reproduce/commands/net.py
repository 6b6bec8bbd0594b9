"""`fcn net`: the published nets as prototxt."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from caffe_weights.errors import InputError
from caffe_weights.prototxt import format_net, write_net
from reproduce.commands.common import Size, fcn_command, force_option, json_option, print_json, say
from reproduce.nets import NETS, Form, make_net
from reproduce.nets.architecture import Architecture, read_architecture
from reproduce.nets.autodeeplab import SLIDING_WINDOW, slide_image_pooling

architecture_option = click.option(
    "--architecture", metavar="FILE", default=None,
    help="Of auto-deeplab: its path and cell, as fcn search writes them.",
)  # fmt: skip


def given_architecture(path: str | None) -> Architecture | None:
    """What --architecture names; InputError."""
    return None if path is None else read_architecture(path)


def form_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--narrow, --fc, --classes; read them with `Form`."""
    options = (
        click.option("--narrow", type=click.IntRange(1), default=1, show_default=True,
                     help="Divide hidden widths by this; the geometry stays."),
        click.option("--fc", type=click.IntRange(1), default=None, help="Width of fc6 and fc7."),
        click.option("--classes", type=click.IntRange(1), default=None,
                     help="Number of classes. [default: the published one]"),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@fcn_command("net")
@click.argument("name", required=False)
@click.option("--list", "listing", is_flag=True, help="List the nets with their splits.")
@click.option("--split", default="deploy", show_default=True, help="Which form; --list names them.")
@click.option("--size", type=Size(), default=None, help="Input size. [default: 500x500, or the net's own]")
@click.option("--out", default=None, metavar="FILE", help="Write the prototxt here. [default: print it]")
@architecture_option
@click.option("--sliding-pooling", "window", type=click.IntRange(1), is_flag=False, flag_value=SLIDING_WINDOW,
              default=None, metavar="[N]",
              help="Of auto-deeplab: image pooling by a sliding mean of N pixels, as the paper evaluated."
              f" [without N: {SLIDING_WINDOW}]")  # fmt: skip
@form_options
@force_option
@json_option
def command(
    name: str | None, listing: bool, split: str, size: tuple[int, int] | None, out: str | None,
    architecture: str | None, window: int | None, narrow: int, fc: int | None, classes: int | None,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Print the prototxt of the published net NAME, as Caffe would read it, or list the nets there are.

    Standard output holds the prototxt and nothing else. Crop offsets come out of the coordinate map.

    \b
    Keys of --list --json, one object a net:
      name, what, splits, published (its prototxts were), classes (null: a
      classifier), starts_from (names of nets whose weights it starts from)
    """
    if listing or name is None:
        if not listing:
            raise InputError("fcn net", "no name", "a net, or --list")
        _list(as_json)
        return
    if as_json:
        raise InputError("--json", "without --list", "--list", "a net is printed as prototxt")
    net = make_net(name, split, size, Form(narrow, fc, classes, given_architecture(architecture)))
    if window is not None:
        net = slide_image_pooling(net, window)
    if out is None:
        sys.stdout.write(format_net(net))
    else:
        write_net(net, out, force)
        say(f"wrote {out}")


def _list(as_json: bool) -> None:
    if as_json:
        print_json([
            {"name": name, "what": entry.words, "splits": list(entry.splits), "published": entry.published,
             "classes": entry.classes, "starts_from": list(entry.starts_from)}
            for name, entry in NETS.items()
        ])  # fmt: skip
        return
    width = max(map(len, NETS))
    for name, entry in NETS.items():
        click.echo(f"{name:{width}}  {' '.join(entry.splits):20}  {entry.words}")
