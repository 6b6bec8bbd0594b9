"""What the commands share: the decorator, option types, `--json`, progress, pre-processing options."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from caffe_weights.errors import FileError, FormatError, InputError
from caffe_weights.files import open_input
from reproduce.cli import OneLineErrors

if TYPE_CHECKING:
    from reproduce.images import Preprocess

SHOW_AFTER_S = 2.0
MOST_LABEL_BYTES = 1 << 22


class Size(click.ParamType):
    """HxW in pixels as (height, width)."""

    name = "HxW"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Two positive numbers."""
        parts = value.lower().split("x") if isinstance(value, str) else value
        sizes = _positive(parts, 2)
        if not sizes:
            self.fail(f"{value!r}; wanted HEIGHTxWIDTH, as 500x375", param, ctx)
        return sizes[0], sizes[1]


class Dimensions(click.ParamType):
    """C,H,W as (channels, height, width)."""

    name = "C,H,W"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Three positive numbers."""
        sizes = _positive(value.split(",") if isinstance(value, str) else value, 3)
        return (
            sizes
            if sizes
            else self.fail(f"{value!r}; wanted CHANNELS,HEIGHT,WIDTH, as 3,224,224", param, ctx)
        )


def fcn_command(name: str, in_list: str | None = None) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command with our errors and `-h`; `in_list` is its line in the help of a group."""
    settings = {"help_option_names": ["-h", "--help"]}
    return click.command(name, cls=OneLineErrors, context_settings=settings, short_help=in_list)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
force_option = click.option("--force", is_flag=True, help="Replace files that exist.")
dialect_option = click.option(
    "--dialect", default="auto", show_default=True, metavar="NAME",
    help="The fork's dialect of a caffemodel: found by itself, or bvlc, deconvnet, kersner, segnet, ...",
)  # fmt: skip
net_option = click.option("--net", "net_path", required=True, metavar="PROTOTXT", help="The net definition.")
weights_option = click.option(
    "--weights", "weights_path", required=True, metavar="FILE", help="Its weights, in any format we read."
)
device_option = click.option(
    "--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda, cuda:1, ..."
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "bf16", "fp16"]),
    default="float32",
    show_default=True,
    help="tf32: CUDA rounds the factors of products; bf16, fp16: convolutions in halves, losses in float32.",
)
crop_option = click.option(
    "--crop",
    type=click.Choice(["bvlc", "auto"]),
    default="bvlc",
    show_default=True,
    help="What a Crop layer without crop_param means: offset 0 as in BVLC Caffe, or the automatic alignment"
    " of the older fork that early FCN and HED prototxts were written for.",
)
frame_option = click.option(
    "--no-frame",
    "frame",
    is_flag=True,
    callback=lambda context, option, given: False if given else None,
    help="Compute the whole border that a large padding makes, though most of it is the same for every image."
    " Takes longer and gives the same up to rounding.",
)
labels_option = click.option(
    "--labels", default=None, metavar="FILE", help="Names of the classes, one a line, from 0."
)


def read_labels(path: str | None) -> tuple[str, ...]:
    """The lines of a text file; () for None. FormatError for what is no UTF-8 text of sensible size."""
    if path is None:
        return ()
    with open_input(path) as stream:
        data = stream.read(MOST_LABEL_BYTES + 1)
    try:
        names = tuple(line.strip() for line in data.decode("utf-8-sig").splitlines())
    except UnicodeDecodeError:
        names = ()
    if not any(names) or len(data) > MOST_LABEL_BYTES or "\0" in data.decode("latin-1"):
        raise FormatError(path, "no list of names", "UTF-8 text, one name a line")
    return names


def preprocess_options(default_mean: str | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--mean, --scale, --color, --size; read them with `make_preprocess`."""
    mean_help = (
        "Taken off each pixel (0..255): one number a channel in the order of --color, or a mean image."
    )
    options = (
        click.option("--mean", metavar="B,G,R|FILE.binaryproto", default=None,
                     help=f"{mean_help} [default: {default_mean or 'nothing'}]"),
        click.option("--scale", type=float, default=1.0, show_default=True,
                     help="Multiplies after the mean is taken off; 0.00390625 brings 0..255 to [0, 1)."),
        click.option("--color", type=click.Choice(["bgr", "rgb", "gray"]), default=None,
                     help="Order of channels. [default: bgr, or gray for a net of one input channel]"),
        click.option("--size", type=Size(), default=None, help="Resize pictures to this many pixels."),
    )  # fmt: skip

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def make_preprocess(
    channels: int,
    mean: str | None,
    scale: float,
    color: str | None,
    size: tuple[int, int] | None,
    default_mean: tuple[float, ...] | None = None,
) -> Preprocess:
    """Pre-processing for a net whose input has `channels` channels. InputError where --color does not fit.

    `default_mean` (BGR) holds where no --mean is given and the net takes colour.
    """
    import numpy as np

    from reproduce.images import CHANNELS, Preprocess, parse_mean

    color = color or ("gray" if channels == 1 else "bgr")
    if CHANNELS[color] != channels:
        raise InputError(
            f"--color {color}", f"{CHANNELS[color]} channels", f"{channels}, as the net's input has",
            "give an .npy to fcn run" if channels not in (1, 3) else "choose another --color",
        )  # fmt: skip
    values = parse_mean(mean) if mean else None
    if values is None and default_mean and color != "gray":
        values = np.array(default_mean[::-1] if color == "rgb" else default_mean)
    if not np.isfinite(scale):
        raise InputError("--scale", str(scale), "a finite number")
    return Preprocess(color, values, scale, size)


def make_folder(path: Path) -> None:
    """Make a folder for results, with those above it; FileError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise FileError(str(path), "a file of this name exists", "a folder") from None
    except OSError as error:
        raise FileError(str(path), (error.strerror or str(error)).lower(), "a folder to write to") from None


def print_json(result: object) -> None:
    """One JSON document on standard output; NaN and infinities become null, as JSON has none."""
    click.echo(json.dumps(_finite(result), indent=2))


def say(text: str) -> None:
    """A remark on standard error."""
    click.echo(text, err=True)


@contextmanager
def progress(words: str, total: int | None = None, unit: str = "") -> Iterator[Callable[[], None]]:
    """Show progress on standard error once two seconds are over; yields the step function.

    Nothing where standard error is no terminal. Without `total` a bar only says that work goes on. `unit`:
    also show how many there were and how fast, such as images/s.
    """
    bar = _LateBar(words, total, unit)
    timer = threading.Timer(SHOW_AFTER_S, bar.show)
    timer.daemon = True
    timer.start()
    try:
        yield bar.step
    finally:
        timer.cancel()
        bar.close()


class _LateBar:
    def __init__(self, words: str, total: int | None, unit: str = "") -> None:
        self.words, self.total, self.unit, self.done = words, total, unit, 0
        self.start = time.monotonic()
        self.lock = threading.Lock()
        self.bar: Any = None
        self.closed = False

    def show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(file=sys.stderr)
        with self.lock:
            if self.closed or not console.is_interactive:  # rich would leave an empty line in a file
                return
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
                       TextColumn("{task.fields[rate]}"))  # fmt: skip
            self.bar = Progress(*columns, console=console, transient=True)
            self.bar.add_task(self.words, total=self.total, completed=self.done, rate=self.rate())
            self.bar.start()

    def step(self) -> None:
        with self.lock:
            self.done += 1
            if self.bar is not None:
                self.bar.update(self.bar.task_ids[0], completed=self.done, rate=self.rate())

    def rate(self) -> str:
        """How many are done, and how many a second, in the unit; "" without one."""
        passed = max(time.monotonic() - self.start, 1e-9)
        return f"{self.done}/{self.total}, {self.done / passed:.3g} {self.unit}" if self.unit else ""

    def close(self) -> None:
        with self.lock:
            self.closed = True
            if self.bar is not None:
                self.bar.stop()


def _positive(parts: Any, count: int) -> tuple[int, ...]:
    """`count` positive whole numbers, or () where the parts are something else."""
    try:
        sizes = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        return ()
    return sizes if len(sizes) == count and min(sizes) > 0 and max(sizes) < 1 << 20 else ()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value
