"""`convert-weights`: print what `reproduce.conversion` did."""

from __future__ import annotations

from collections.abc import Sequence

import click

from reproduce.commands.common import (
    Dimensions,
    dialect_option,
    fcn_command,
    force_option,
    json_option,
    print_json,
    progress,
)
from reproduce.conversion import ConversionReport, convert


@fcn_command("convert-weights")
@click.argument("source")
@click.argument("out")
@click.option(
    "--net",
    "net_path",
    metavar="PROTOTXT",
    default=None,
    help="The net definition: where SOURCE holds none, or one without input shapes, or another is wanted.",
)
@click.option(
    "--convolutional",
    is_flag=True,
    help="Turn fully connected layers into convolutions, in the weights and in the net.",
)
@click.option(
    "--out-net",
    metavar="FILE",
    default=None,
    help="Where --convolutional writes the new net. [default: OUT with .prototxt for its extension]",
)
@click.option(
    "--input-shape",
    type=Dimensions(),
    default=None,
    help="The input the classifier was trained for, where the net does not say.",
)
@dialect_option
@force_option
@json_option
def command(
    source: str, out: str, net_path: str | None, convolutional: bool, out_net: str | None,
    input_shape: tuple[int, ...] | None, dialect: str, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Convert the weights in SOURCE to the format of OUT's extension.

    Formats, in and out: .caffemodel (in: also .caffemodel.gz), .caffemodel.h5, .safetensors, .pt (a state
    dict), .npz. A torchvision VGG16 checkpoint is recognised as a SOURCE. A caffemodel converted to a
    caffemodel is the same file, byte for byte. Nothing is left behind when something fails.

    \b
    Keys of --json:
      source, out, out_net       as given; out_net null without --convolutional
      format_from, format_to     caffemodel, hdf5, safetensors, torch, npz
      layers, parameter_count    layers with weights, values in them
      bytes                      size of OUT
      convolutions               layer, kernel, old_shape, new_shape
      smallest_input, stride     of the fully convolutional net, pixels
      dropped                    blobs that the net has no place for
      notes, warnings
    """
    if out_net and not convolutional:
        raise click.UsageError("--out-net goes with --convolutional")
    if input_shape and not convolutional:
        raise click.UsageError("--input-shape goes with --convolutional")
    with progress("converting"):
        report = convert(source, out, net_path, convolutional, out_net, input_shape, force, dialect)
    if as_json:
        print_json(report.as_dict())
    else:
        click.echo("\n".join(lines(report)))


def lines(report: ConversionReport) -> list[str]:
    """The report for people."""
    result = [f"{report.source} ({report.format_from}) -> {report.out} ({report.format_to})"]
    result.append(
        f"{report.layers} layers with weights, {report.parameter_count:,} parameters, {report.bytes:,} bytes"
    )
    for item in report.convolutions:
        result.append(f"{item.layer} is a convolution now: kernel {_dims(item.kernel)},"
                      f" weights {_dims(item.old_shape)} -> {_dims(item.new_shape)}")  # fmt: skip
    if report.convolutions and report.smallest_input and report.stride:
        result.append(f"takes inputs from {_dims(report.smallest_input)} on, one output every"
                      f" {' x '.join(dict.fromkeys(f'{s:g}' for s in report.stride))} pixels")  # fmt: skip
    if report.out_net:
        result.append(f"net: {report.out_net}")
    if report.dropped:
        result.append(f"not in the net, left out: {', '.join(report.dropped)}")
    return result + [f"note: {x}" for x in report.notes] + [f"warning: {x}" for x in report.warnings]


def _dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
