"""`fcn demo`: the main job on the small model that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from reproduce.cli import EXIT_CHECK_FAILED
from reproduce.commands.common import fcn_command, json_option, make_folder, print_json, progress

if TYPE_CHECKING:
    from reproduce.demo import DemoResult


@fcn_command("demo")
@click.option("--out", default="demo-output", show_default=True, metavar="DIR", help="Where the results go.")
@json_option
@click.pass_context
def command(ctx: click.Context, out: str, as_json: bool) -> None:
    """Convert a small Caffe model, cut it fully convolutional, check it, and read a strip of digits with it.

    Then segment canvases of digits with narrow FCN-32s, 16s and 8s. Leaves the models, strip.png,
    segmentation.png and report.md in DIR; files of an earlier demo are replaced. Exit code 1 if a check
    fails.

    \b
    Keys of --json:
      out, parameter_count, seconds
      bits_equal                       to safetensors and back
      worst_difference, tolerance      classifier against its convolutional
                                       form, relative to the largest value
      alone_right, alone_count         held-out digits read one by one
      truth, read                      the digits of strip.png
      strips_right, strips_count       more strips, read without any error
      digits_right, digits_count       digits on them, by the nearest field
      canvases, segmentation           how many, and by net, 32s, 16s, 8s:
                                       pixel_accuracy, mean_accuracy, mean_iu,
                                       frequency_weighted_iu
      passed                           whether both checks hold
    """
    from reproduce.demo import run_demo  # torch: so late that --help is quick

    make_folder(Path(out))
    with progress("running the demo"):
        result = run_demo(Path(out))
    if as_json:
        print_json(result.as_dict())
    else:
        click.echo("\n".join(lines(result)))
    if not result.passed:
        ctx.exit(EXIT_CHECK_FAILED)


def lines(result: DemoResult) -> list[str]:
    """The result for people."""
    from reproduce.demo import next_commands

    mark = {True: "ok  ", False: "FAIL"}
    close = result.worst_difference <= result.tolerance
    return [
        f"{mark[result.bits_equal]}  caffemodel -> safetensors -> caffemodel:"
        f" {result.parameter_count:,} parameters, {'all bits equal' if result.bits_equal else 'bits differ'}",
        f"{mark[close]}  classifier = 1x1 of its fully convolutional form: largest difference"
        f" {result.worst_difference:.1e} (allowed {result.tolerance:.0e})",
        f"      digits it never saw, one by one: {result.alone_right} of {result.alone_count} right",
        f"      a strip of {len(result.truth)}: truth {result.truth}",
        f"      {'':{len(str(len(result.truth)))}}            read {result.read}",
        f"      {result.strips_count} more strips: {result.strips_right} without an error,"
        f" {result.digits_right} of {result.digits_count} digits right",
        f"      {result.canvases} canvases of digits they never saw, mean IU: "
        + ", ".join(f"FCN-{stride} {found['mean_iu']:.3f}" for stride, found in result.segmentation.items()),
        "",
        f"See {result.out}/strip.png, segmentation.png and report.md ({result.seconds:.1f} s). Next:",
        *("  " + line for line in next_commands(result.out)),
    ]
