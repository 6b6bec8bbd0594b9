"""`fcn inspect`: print what `reproduce.inspection` finds."""

from __future__ import annotations

from collections.abc import Sequence

import click

from reproduce.cli import EXIT_CHECK_FAILED
from reproduce.commands.common import dialect_option, fcn_command, json_option, print_json, progress
from reproduce.inspection import Inspection, LayerRow, inspect_file


@fcn_command("inspect")
@click.argument("file")
@click.option(
    "--check", is_flag=True, help="Scan the values: NaN, infinities, all-zero filters. Exit 1 if any."
)
@dialect_option
@json_option
@click.pass_context
def command(ctx: click.Context, file: str, check: bool, dialect: str, as_json: bool) -> None:
    """List what FILE holds: a prototxt, a weight file of any format, or a mean image.

    Needs no torch (but for .pt and .pth) and reads no values unless asked to --check them.

    \b
    Keys of --json:
      file, bytes       the file and its size
      kind              net, solver, weights or mean
      format            with the version where the format has one, and the
                        fork's dialect where it is in one
      net_name          the net's own name
      layers            name, type, bottoms, tops, shapes (of the tops),
                        parameters (their shapes), dtypes, parameter_count
      parameter_count, parameter_bytes    null where not known
      unknown_types     layer types the runtime cannot execute
      notes             what is worth knowing
      checked           whether the values were scanned
      problems          what is wrong; with --check the exit code is 1
    """
    with progress("checking" if check else "reading"):
        found = inspect_file(file, check, dialect)
    if as_json:
        print_json(found.as_dict())
    else:
        click.echo("\n".join(report(found)))
    if check and found.problems:
        ctx.exit(EXIT_CHECK_FAILED)


def report(found: Inspection) -> list[str]:
    """The inspection as lines for people."""
    title = f"{found.file}: {found.format}" + (f' "{found.net_name}"' if found.net_name else "")
    lines = [f"{title}, {found.bytes:,} bytes", "", *_table(found.layers)]
    if found.parameter_count is not None:
        lines += ["", f"{len(found.layers)} layers, {found.parameter_count:,} parameters,"
                      f" {found.parameter_bytes:,} bytes of values"]  # fmt: skip
    if found.unknown_types:
        lines.append(f"unknown layer types: {', '.join(found.unknown_types)}")
    lines += [note if found.kind == "solver" else f"note: {note}" for note in found.notes]
    lines += [f"problem: {problem}" for problem in found.problems]
    if found.checked and not found.problems:
        lines.append(
            "checked: no NaN, no infinities, no all-zero filters" if found.kind == "weights" else "checked"
        )
    return lines


def _table(layers: Sequence[LayerRow]) -> list[str]:
    if not layers:
        return []
    rows = [("layer", "type", "output", "parameters")]
    for layer in layers:
        parameters = "  ".join(_blob(*blob) for blob in zip(layer.parameters, layer.dtypes, strict=True))
        rows.append((layer.name, layer.type, "  ".join(map(_dims, layer.shapes)), parameters))
    used = [i for i in range(4) if any(row[i] for row in rows[1:])]
    widths = [max(len(row[i]) for row in rows) for i in used]
    return ["  ".join(row[i].ljust(w) for i, w in zip(used, widths, strict=True)).rstrip() for row in rows]


def _blob(shape: tuple[int, ...], dtype: str) -> str:
    return _dims(shape) + ("" if dtype == "float32" else f" {dtype}")


def _dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
