"""`fcn start`: the starting weights of a net from those of its predecessor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from caffe_weights.errors import FileError
from caffe_weights.export import format_of, read_weights, write_weights
from caffe_weights.files import check_output
from reproduce.commands.common import fcn_command, force_option, json_option, print_json, progress, say
from reproduce.commands.net import form_options
from reproduce.nets import Form
from surgery.geometry import dims

if TYPE_CHECKING:
    from reproduce.start_check import Check
    from reproduce.starting import StartReport


@fcn_command("start")
@click.argument("name")
@click.option("--from", "sources", multiple=True, required=True, metavar="WEIGHTS",
              help="Weights of the predecessor; twice for a net of two streams, in their order.")  # fmt: skip
@click.option("--out", required=True, metavar="FILE", help="Where the weights go, in the format of the name.")
@click.option("--expand-score", "expand", is_flag=True,
              help="A predecessor or the net itself with fewer classes: keep them first.")  # fmt: skip
@click.option("--no-check", is_flag=True, help="Do not run both nets to compare their predictions.")
@form_options
@force_option
@json_option
def command(
    name: str, sources: tuple[str, ...], out: str, expand: bool, no_check: bool, narrow: int, fc: int | None,
    classes: int | None, force: bool, as_json: bool,
) -> int:  # fmt: skip
    """Make the starting weights of the net NAME from its predecessor's, as fcn net --list --json names it.

    Weights are copied by layer name, fully connected layers take their convolutional shape, up-sampling
    layers get the bilinear kernel, new score layers are zero. Then both nets run on one made-up picture, to
    show that the net starts with its predecessor's predictions; exit 1, and no output, if it does not.

    \b
    Keys of --json:
      net, predecessors, sources, out (null: a check failed, nothing was written)
      copied    blobs as they were
      coerced   blob, from, to: fully connected layers made convolutions
      changed   blob -> how it was made from the predecessor's
      new       blob -> how it was filled
      dropped   blobs of the predecessors that the net lacks
      notes     what else one should know
      checks    what, worst (relative difference), limit (null: told, not
                judged), same_labels (fraction of pixels, or null), good
    """
    from reproduce.starting import start

    _check_out(out, sources, force)
    weights = [read_weights(path) for path in sources]
    with progress(f"starting {name}"):
        made = start(name, weights, Form(narrow, fc, classes), expand)
        checks: list[Check] = []
        if not no_check:
            from reproduce.start_check import check_start

            checks = check_start(made, weights)
        good = all(check.good for check in checks)
        if good:
            write_weights(made.weights, out, made.net, force)
    if as_json:
        written = out if good else None
        print_json({**made.report.as_dict(), "out": written, "checks": [check.as_dict() for check in checks]})
    else:
        _print(made.report, checks)
    say(
        f"wrote {out}"
        if good
        else "check failed: other predictions than the predecessor's; nothing was written"
    )
    return 0 if good else 1


def _check_out(out: str, sources: Sequence[str], force: bool) -> None:
    """FileError before any work, where the output cannot be written in the end."""
    format_of(out)
    if any(Path(path).exists() and Path(out).exists() and Path(path).samefile(out) for path in sources):
        raise FileError(out, "the source itself would be replaced", "another name", "nothing was written")
    check_output(out, force)


def _print(report: StartReport, checks: Sequence[Check]) -> None:
    made = zip(report.predecessors, report.sources, strict=True)
    click.echo(f"{report.net} from " + " and ".join(f"{net} ({path})" for net, path in made))
    click.echo(f"copied   {len(report.copied)} blobs")
    for change in report.coerced:
        click.echo(f"coerced  {change.blob}: {dims(change.old)} to {dims(change.new)}")
    for title, items in (("changed", report.changed), ("new", report.new)):
        for blob, how in items.items():
            click.echo(f"{title:8} {blob}: {how}")
    checked = [str(check) for check in checks]
    for title, lines in (("dropped", report.dropped), ("note", report.notes), ("checked", checked)):
        for line in lines:
            click.echo(f"{title:8} {line}")
