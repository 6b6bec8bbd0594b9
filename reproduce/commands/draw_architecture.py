"""`fcn draw-architecture`: path and cell of an Auto-DeepLab as a picture."""

from __future__ import annotations

import click

from reproduce.commands.common import fcn_command, force_option, say


@fcn_command("draw-architecture")
@click.argument("file", required=False)
@click.option("--out", required=True, metavar="PNG", help="The picture.")
@force_option
def command(file: str | None, out: str, force: bool) -> None:
    """Draw the path and the cell of the architecture in FILE (JSON), or the published ones without a FILE.

    The path runs through the trellis of strides as in the paper's Figure 1, the cell is drawn as in its
    Figure 3: inputs on the left, two operations and their sum for each block, the output on the right.
    """
    from reproduce.nets.architecture import PUBLISHED, read_architecture
    from reproduce.search.draw import draw_architecture

    architecture = PUBLISHED if file is None else read_architecture(file)
    draw_architecture(architecture, out, force)
    say(f"wrote {out}")
