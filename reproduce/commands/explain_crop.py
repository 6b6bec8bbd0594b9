"""`fcn explain-crop`: where crop offsets come from, and whether the file's are right."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from textwrap import fill
from typing import Any

import click

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import in_net
from caffe_weights.filtering import filter_net
from caffe_weights.upgrade import load_net
from reproduce.commands.common import Size, fcn_command, json_option, print_json
from surgery.explain import CropExplanation, explain_crop
from surgery.shapes import declared_shapes, is_source

HEADINGS = ("layer", "cuts", "to the size of", "scale", "shift", "in file", "computed", "before", "after")


@fcn_command("explain-crop")
@click.argument("prototxt")
@click.option("--size", type=Size(), default=None, help="Input size, for the pixels left over on each side.")
@json_option
def command(prototxt: str, size: tuple[int, int] | None, as_json: bool) -> None:
    """Say for each Crop layer of PROTOTXT why its offset is what it is.

    Scale and shift take a pixel of the cut blob to one of the other; before and after are the pixels of the
    cut blob that go on each side. Where the file's offset is not the computed one this is said; the exit code
    is 0 all the same.

    \b
    Keys of --json:
      net, size
      crops    layer, bottoms, ancestor, scale, shift (fractions as text),
               offset_in_file (null: none), offset_computed (null: none fits),
               sizes, slack_before, slack_after (null: size not known),
               chains: layer, type, detail, spacing, start, moved of each layer
               on the way from the ancestor to either bottom;
               problem ("" if all is well), words
    """
    with in_net(prototxt):
        net = filter_net(load_net(prototxt), "TEST")
        found = explain_crop(net, _input_shapes(net, size))
    if as_json:
        crops = [_plain(vars(item)) for item in found]
        print_json({"net": prototxt, "size": list(size) if size else None, "crops": crops})
    elif not found:
        click.echo(f"{prototxt}: no Crop layer")
    else:
        click.echo(
            "\n".join([*_table(found), "", *(fill(item.words, 100) + "\n" for item in found)]).rstrip()
        )


def _input_shapes(net: NetParameter, size: tuple[int, int] | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the image inputs at `size`; three channels where the net does not say how many."""
    if size is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in net.layer:
        for top, shape in zip(layer.top, declared_shapes(layer) if is_source(layer) else (), strict=False):
            if shape is None or len(shape) == 4:
                shapes[top] = (*(shape[:2] if shape else (1, 3)), *size)
    return shapes


def _table(found: Sequence[CropExplanation]) -> list[str]:
    rows = [HEADINGS] + [
        (
            item.layer, *item.bottoms, _values(item.scale), _values(item.shift), _values(item.offset_in_file),
            _values(item.offset_computed), _values(item.slack_before), _values(item.slack_after),
        )
        for item in found
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    lines = []
    for row in rows:
        names = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        lines.append("  ".join(names + numbers))
    return lines


def _values(values: Sequence[int | Fraction] | None) -> str:
    """One value where all axes agree, `-` for none."""
    return " x ".join(map(str, dict.fromkeys(values) if len(set(values)) == 1 else values)) if values else "-"


def _plain(value: Any) -> Any:
    """Dataclasses and tuples as dicts and lists, fractions as text."""
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(vars(value)) if hasattr(value, "__dataclass_fields__") else value
