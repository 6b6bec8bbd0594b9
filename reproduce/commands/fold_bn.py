"""`fcn fold-bn`: batch statistics into BN, and BN into the convolutions."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import FileError, InputError, WeightsError
from caffe_weights.export import format_of, read_weights, write_weights
from caffe_weights.files import check_output, replace_file
from caffe_weights.filtering import filter_net
from caffe_weights.prototxt import format_net
from caffe_weights.upgrade import load_net
from caffe_weights.weights import Weights
from caffe_weights.zipped import read_npz
from reproduce.cli import EXIT_CHECK_FAILED
from reproduce.commands.common import (
    device_option,
    fcn_command,
    force_option,
    json_option,
    print_json,
    progress,
    say,
)
from reproduce.definition import map_array
from reproduce.tolerances import FOLDED

if TYPE_CHECKING:
    from reproduce.folding import Report, Source


@fcn_command("fold-bn")
@click.argument("weights")
@click.option("--out", required=True, metavar="FILE", help="Where the weights go, in the format of the name.")
@click.option("--net", "net_path", default=None, metavar="PROTOTXT", help="The net, where WEIGHTS hold none.")
@click.option("--data", default=None, metavar="DIR", help="Crops and lists that fcn data deconvnet made.")
@click.option(
    "--arrays", default=None, metavar="FILE", help="An .npy or .npz of inputs, N x C x H x W, instead."
)
@click.option(
    "--side",
    type=click.IntRange(1),
    default=224,
    show_default=True,
    help="Input of a net that does not say its size.",
)
@click.option("--batches", type=click.IntRange(1), default=501, show_default=True, help="How many batches.")
@click.option("--batch", type=click.IntRange(1), default=28, show_default=True, help="Items in a batch.")
@click.option("--bessel", is_flag=True, help="Variance times m / (m - 1), as was meant but not done.")
@click.option("--into-convolutions", "merge", is_flag=True, help="Take BN into the convolutions too.")
@click.option(
    "--out-net",
    default=None,
    metavar="FILE",
    help="Where the net goes. [default: OUT with .prototxt, if --into-convolutions]",
)
@device_option
@force_option
@json_option
def command(
    weights: str, out: str, net_path: str | None, data: str | None, arrays: str | None, side: int,
    batches: int, batch: int, bessel: bool, merge: bool, out_net: str | None, device: str, force: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Fold the statistics of many batches into the BN layers of WEIGHTS, for BN in mode INFERENCE.

    DeconvNet's BN keeps no statistics. Training ends with this step: means and variances of 501 batches of
    28 crops, averaged, go into scale and shift. Without --bessel as released: the authors' script meant to
    correct the variance, but its division is of whole numbers.

    \b
    Keys of --json:
      weights, out, out_net   as given; out_net null where none is written
      layers                  BN layers that statistics were folded into
      batches, batch          how many and how large; batches 0: none needed
      bessel                  whether the variance was corrected
      merged                  BN layer -> convolution
      kept                    BN layer -> why it stayed
      worst                   largest relative difference of the outputs, in
                              float64, by --into-convolutions; null without
    """
    from reproduce.conversion import default_out_net

    out_net = out_net or (default_out_net(out) if merge else None)
    _check_out([weights, net_path], [out, out_net], force)
    loaded = read_weights(weights)
    definition = _definition(loaded, net_path)
    from reproduce.folding import deploy_form, fold  # torch: so late that bad input is quick

    net = deploy_form(definition, side)
    source, batches = _source(definition, net, data, arrays, batch, batches)
    with progress("folding", batches if source else None) as step:
        done = fold(net, loaded, source, batches, bessel, merge, device, step)
    done.report.batch = batch
    if done.report.worst is not None and not done.report.worst <= FOLDED:
        say(f"check failed: outputs differ by {done.report.worst:.1e}; nothing was written")
        return EXIT_CHECK_FAILED
    with replace_file(out_net, force) if out_net else nullcontext() as file:
        if file is not None:
            file.write_text(format_net(done.net), encoding="utf-8")
        write_weights(done.weights, out, done.net if merge else None, force)
    if as_json:
        print_json({"weights": weights, "out": out, "out_net": out_net, **done.report.as_dict()})
    else:
        _print(done.report, out, out_net)
    return 0


def _check_out(sources: list[str | None], outs: list[str | None], force: bool) -> None:
    """Before any work: FileError, FormatError where an output cannot be written in the end."""
    assert outs[0] is not None
    format_of(outs[0])
    for path in filter(None, outs):
        for source in filter(None, sources):
            if Path(path).exists() and Path(source).exists() and Path(path).samefile(source):
                raise FileError(path, "it would be replaced by its own result", "another name")
        check_output(path, force)


def _definition(weights: Weights, net_path: str | None) -> NetParameter:
    """The net of the prototxt in phase TEST, or the one that came with the weights."""
    if net_path is not None:
        return filter_net(load_net(net_path), "TEST")
    if weights.net is None:
        raise WeightsError(weights.source, "no net definition in this format", "one", "pass it with --net")
    net = NetParameter()
    net.CopyFrom(weights.net)
    for layer in net.layer:  # Caffe saved it filtered: rules that still stand in it are spent
        del layer.include[:], layer.exclude[:], layer.blobs[:]
    return net


def _source(
    definition: NetParameter,
    net: NetParameter,
    data: str | None,
    arrays: str | None,
    batch: int,
    batches: int,
) -> tuple[Source | None, int]:
    from reproduce.folding import arrays_source, data_source

    if data and arrays:
        raise InputError("fold-bn", "--data and --arrays", "one of them")
    inputs = [layer for layer in net.layer if layer.type == "Input"]
    if data:
        return data_source(definition, Path(data), batch, inputs[0].input_param.shape[0].dim[-1]), batches
    return arrays_source(_arrays(arrays, inputs[0].top[0]), batch, batches) if arrays else (None, batches)


def _arrays(path: str, name: str) -> dict[str, np.ndarray]:
    if path.lower().endswith(".npz"):
        return dict(read_npz(path))
    return {name: map_array(path)}


def _print(report: Report, out: str, out_net: str | None) -> None:
    if report.batches:
        how = "corrected" if report.bessel else "not corrected, as released"
        click.echo(f"{len(report.layers)} BN layers folded over {report.batches} batches of {report.batch}"
                   f" (variance {how})")  # fmt: skip
    if report.worst is not None:
        click.echo(
            f"{len(report.merged)} BN layers taken into convolutions; outputs differ by {report.worst:.1e}"
        )
    for layer, why in report.kept.items():
        click.echo(f"kept {layer}: {why}")
    click.echo(f"wrote {out}" + (f" and {out_net}" if out_net else ""))
