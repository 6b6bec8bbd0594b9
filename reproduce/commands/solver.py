"""`fcn solver`: the solvers of the published nets as prototxt."""

from __future__ import annotations

import sys

import click

from caffe_weights.files import replace_file
from caffe_weights.prototxt import format_solver
from reproduce.commands.common import fcn_command, force_option, say
from reproduce.nets import find, named_solver


@fcn_command("solver")
@click.argument("name")
@click.option("--split", default=None, help="stage1 or stage2 of deconvnet.")
@click.option("--out", default=None, metavar="FILE", help="Write the prototxt here. [default: print it]")
@force_option
def command(name: str, split: str | None, out: str | None, force: bool) -> None:
    """Print the solver prototxt of the net NAME, as Caffe would read it.

    Standard output holds the prototxt and nothing else. A recipe that is ours, since none was published, is
    said so on standard error.
    """
    solver = named_solver(name, split)
    recipe = find(name).recipe
    if recipe is not None and not recipe.published:
        say(f"note: no solver was published for {name}; this recipe is ours")
    if out is None:
        sys.stdout.write(format_solver(solver))
        return
    with replace_file(out, force) as sibling:
        sibling.write_text(format_solver(solver), encoding="utf-8")
    say(f"wrote {out}")
