"""`fcn parity`: hold a net against another run of it, blob by blob."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from caffe_weights.errors import InputError
from caffe_weights.files import replace_file
from reproduce.cli import EXIT_CHECK_FAILED
from reproduce.commands.common import (
    Size,
    crop_option,
    device_option,
    fcn_command,
    force_option,
    json_option,
    print_json,
    progress,
)

if TYPE_CHECKING:
    from reproduce.parity.case import Request
    from reproduce.parity.report import Report


@fcn_command("parity")
@click.argument("prototxt")
@click.argument("weights")
@click.option(
    "--against",
    required=True,
    metavar="ORACLE",
    help="opencv, caffe:PYTHON, blobs:FILE, float64 or self[:KEY=VALUE,...]; see above.",
)
@click.option("--against-net", metavar="PROTOTXT", default=None, help="The other side's own definition.")
@click.option("--against-weights", metavar="FILE", default=None, help="The other side's own weights.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="[NAME=]IMAGE|NPY|random[:SEED]",
    help="What goes into both; may be repeated. [default: what blobs:FILE holds, else random]",
)
@click.option("--size", type=Size(), default=None, help="Resize pictures to this, or draw random ones so.")
@click.option("--mean", metavar="B,G,R|FILE.binaryproto", default=None, help="Taken off pictures.")
@click.option(
    "--scale",
    type=float,
    default=1.0,
    show_default=True,
    help="Multiplies pictures after the mean is taken off, and random ones.",
)
@click.option(
    "--color", type=click.Choice(["bgr", "rgb", "gray"]), default=None, help="Order of channels of pictures."
)
@click.option("--phase", type=click.Choice(["TEST", "TRAIN"]), default="TEST", show_default=True)
@click.option("--backward", is_flag=True, help="Compare gradients too.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="Replaces that of the table (1e-5; full width 2e-5, gradients 2e-5, opencv 1e-4).",
)
@click.option(
    "--judge/--no-judge",
    default=True,
    show_default=True,
    help="Say which side is nearer to our net in float64.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds that caffe:PYTHON may take.",
)
@click.option("--html", metavar="FILE", default=None, help="Write the report as one page too.")
@device_option
@crop_option
@force_option
@json_option
def command(
    prototxt: str, weights: str, against: str, against_net: str | None, against_weights: str | None,
    inputs: tuple[str, ...], size: tuple[int, int] | None, mean: str | None, scale: float, color: str | None,
    phase: str, backward: bool, tolerance: float | None, judge: bool, timeout_s: float, html: str | None,
    device: str, crop: str, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare PROTOTXT with WEIGHTS, as run here, with another run of it, and name the first guilty layer.

    \b
    Oracles:
      opencv        OpenCV 4's dnn (inference, deploy form)
      caffe:PYTHON  an interpreter that can import caffe, or a command line that starts one
      blobs:FILE    blobs stored in an .npz or HDF5 file, as fcn run writes them
      float64       our own net in double precision
      self:...      our own net with device=, precision=float64|tf32|bf16|fp16, threads=, frame=on

    Both sides are fed the same arrays. Every content of every blob is compared in the order of execution,
    also those that in-place layers replace. A net with data or loss layers runs in its deploy form, unless
    labels are given or --backward asks for them; labels that nobody gave are random.

    Exit codes: 0 all in tolerance, 1 not, 2 could not compare.

    \b
    Keys of --json:
      net, weights, against_net, against_weights, phase, backward    as given
      ours, theirs         the two sides, in words
      inputs               name -> shape, sha256
      tolerance, gradient_tolerance, channels    what holds; channels: of each channel too
      passed, compared     the verdict; how many blobs and gradients both sides have
      guilty, guilty_gradient, also[]    layer (null if several are suspect), suspects, shows_in,
                           inputs_agreed, inputs_worst, own, hints
      nearer_to_float64    ours, theirs, equal, null
      blobs[], gradients[] name, layer, type, state, in_place, output, shape, their_shape, difference,
                           own, from_float64, flips, remark
      difference           relative, relative_at, relative_values, absolute, absolute_at,
                           absolute_values, of_largest, ulp, ulp_of_largest, share, elements, probed
      flips                labels, flipped, clear, gap, at, equal_share
      notes                what was done, and what could not be compared
    """
    if not -float("inf") < scale < float("inf"):
        raise InputError("--scale", str(scale), "a finite number")
    with progress("running both sides"):
        from reproduce.parity.case import Request  # torch: so late that --help is quick
        from reproduce.parity.report import as_dict, lines

        request = Request(
            prototxt, weights, against_net, against_weights, inputs, size, phase, backward, crop,
            picture=(mean, scale, color),
        )  # fmt: skip
        report = _compare(request, html, force, (against, tolerance, judge, timeout_s, device))
    if as_json:
        print_json(as_dict(report))
    else:
        click.echo("\n".join(lines(report)))
    if not report.passed:
        raise click.exceptions.Exit(EXIT_CHECK_FAILED)


def _compare(request: Request, html: str | None, force: bool, options: tuple[Any, ...]) -> Report:
    """Compare, and write the page if one is wanted; that it may be is seen before anything runs."""
    from reproduce.parity.check import check
    from reproduce.parity.page import page

    if html is None:
        return check(request, *options)
    with replace_file(html, force) as temporary:
        report = check(request, *options)
        temporary.write_text(page(report), encoding="utf-8")
    return report
