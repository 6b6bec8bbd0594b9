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
@form_options
@force_option
@json_option
def command(
    name: str | None, listing: bool, split: str, size: tuple[int, int] | None, out: str | None, narrow: int,
    fc: int | None, classes: int | None, force: bool, as_json: bool,
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
    net = make_net(name, split, size, Form(narrow, fc, classes))
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
