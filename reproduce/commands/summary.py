"""`fcn summary`: shapes, parameters, cost and geometry of every layer of a net, without torch."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import click

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import NetError
from caffe_weights.filtering import filter_net
from caffe_weights.upgrade import load_net
from reproduce.commands.common import Size, fcn_command, json_option, print_json
from reproduce.commands.net import architecture_option, form_options, given_architecture
from reproduce.nets import CHANNELS, NETS, SEARCHED, Form, make_net
from surgery.deploy import deploy_net
from surgery.shapes import Shape, declared_shapes, is_source, needed_inputs
from surgery.summary import Row, Summary, summarize

HEADINGS = ("layer", "type", "output", "parameters", "multiply-adds", "activations", "field", "stride",
            "offset")  # fmt: skip


@fcn_command("summary")
@click.argument("net", metavar="NAME|PROTOTXT")
@click.option(
    "--size", type=Size(), default=None, help="Input size. [default: the net's own; 500x500 by NAME]"
)
@architecture_option
@form_options
@json_option
def command(
    net: str, size: tuple[int, int] | None, architecture: str | None, narrow: int, fc: int | None,
    classes: int | None, as_json: bool,
) -> None:  # fmt: skip
    """List the layers of a published net (NAME, see fcn net --list) or of a PROTOTXT in its deploy form.

    A multiply-add is one multiplication with its addition in a convolution, up-sampling or fully connected
    layer; types of layers with other arithmetic are named as not counted. Activations are what Caffe keeps in
    a forward pass. Field, stride and offset: receptive field, step from unit to unit, and centre of the first
    unit, in input pixels; `-` where a layer keeps no grid, or sees through one that keeps none.

    \b
    Keys of --json:
      net       the name or file
      layers    name, type, shapes, parameters, multiply_adds, activation_bytes,
                receptive_field, stride, offset (height, width; null: no grid)
      total     parameters, parameters_without_up_sampling, up_sampling_parameters,
                batch_norm_statistics, multiply_adds, activation_bytes
      uncounted types of layers whose arithmetic is not in multiply_adds
    """
    form = Form(narrow, fc, classes, given_architecture(architecture))
    if net in NETS or net in SEARCHED:
        definition = make_net(net, size=size, form=form)
    elif form != Form():
        raise NetError(net, "a width or number of classes for a prototxt", "a published net's name")
    else:
        definition = _read(net, size)
    found = summarize(definition)
    if as_json:
        print_json(_as_dict(net, found))
    else:
        click.echo("\n".join([*_table(found), "", *_totals(found)]))


def _read(path: str, size: tuple[int, int] | None) -> NetParameter:
    """The deploy form of a prototxt, its pictures of `size` where that is given."""
    if "." not in path and "/" not in path:
        near = ", ".join(NETS)
        raise NetError(f"net {path}", "neither a published net nor a prototxt", f"a file, or one of {near}")
    net = filter_net(load_net(path), "TEST")
    shapes: dict[str, Shape] = {}
    for layer in net.layer if size else ():
        for top, shape in zip(layer.top, declared_shapes(layer) if is_source(layer) else (), strict=False):
            if shape is None or len(shape) == 4:
                shapes[top] = (*(shape[:2] if shape else (1, CHANNELS.get(top, 3))), *(size or ()))
    try:
        return deploy_net(net, shapes)
    except NetError:
        missing = ", ".join(needed_inputs(net))
        if size or not missing:
            raise
        raise NetError(path, f"it does not say how large {missing} is", "HxW", "pass --size") from None


def _table(found: Summary) -> list[str]:
    rows = [HEADINGS, *(_cells(row) for row in found.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    return [
        "  ".join([c.ljust(w) if i < 3 else c.rjust(w)
                   for i, (c, w) in enumerate(zip(row, widths, strict=True))])
        for row in rows
    ]  # fmt: skip


def _cells(row: Row) -> tuple[str, ...]:
    shapes = " ".join("x".join(map(str, shape)) for shape in row.shapes)
    numbers = (row.parameters, row.multiply_adds, row.activation_bytes)
    return (row.name, row.type, shapes or "-", *(f"{n:,}" if n else "-" for n in numbers),
            _pair(row.receptive_field), _pair(row.stride), _pair(row.offset))  # fmt: skip


def _pair(values: tuple[int, int] | tuple[Fraction, Fraction] | None) -> str:
    """One value where height and width agree, `-` for none."""
    numbers = [float(value) for value in values or ()]
    return "x".join(f"{number:g}" for number in dict.fromkeys(numbers)) or "-"


def _totals(found: Summary) -> list[str]:
    without = found.parameters - found.up_sampling_parameters
    lines = [
        f"parameters      {found.parameters:,}; {without:,} without up-sampling layers",
        *(
            [f"learnable       {found.parameters - found.statistics:,} without BatchNorm's statistics"]
            if found.statistics
            else []
        ),
        f"multiply-adds   {found.multiply_adds:,}",
        f"activations     {found.activation_bytes:,} bytes",
    ]
    if found.uncounted:
        lines.append(f"not counted     the arithmetic of {', '.join(found.uncounted)}")
    return lines


def _as_dict(net: str, found: Summary) -> dict[str, Any]:
    rows = []
    for row in found.rows:
        pairs = {key: [float(v) for v in pair] if (pair := getattr(row, key)) else None
                 for key in ("stride", "offset")}  # fmt: skip
        rows.append({**vars(row), **pairs})
    total = {
        "parameters": found.parameters,
        "parameters_without_up_sampling": found.parameters - found.up_sampling_parameters,
        "up_sampling_parameters": found.up_sampling_parameters,
        "batch_norm_statistics": found.statistics,
        "multiply_adds": found.multiply_adds,
        "activation_bytes": found.activation_bytes,
    }
    return {"net": net, "layers": rows, "total": total, "uncounted": list(found.uncounted)}
