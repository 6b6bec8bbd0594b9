"""`fcn run`: feed arrays and pictures, keep blobs."""

from __future__ import annotations

import time
from typing import Any

import click
import numpy as np

from caffe_weights.errors import InputError, in_net
from caffe_weights.files import replace_file
from caffe_weights.zipped import write_npz
from reproduce.commands.common import (
    crop_option,
    device_option,
    fcn_command,
    force_option,
    frame_option,
    json_option,
    make_preprocess,
    precision_option,
    preprocess_options,
    print_json,
    progress,
    say,
)
from reproduce.definition import Definition, check_blobs, load_definition, only_input, read_array
from reproduce.images import mean_note, read_image


@fcn_command("run")
@click.argument("prototxt")
@click.argument("weights")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="[NAME=]FILE",
    help="An .npy (N x C x H x W, taken as it is) or a picture for input NAME; may be repeated.",
)
@click.option("--blob", "blobs", multiple=True, metavar="NAME", help="Keep this blob too; may be repeated.")
@click.option("--out", required=True, metavar="FILE.npz", help="Where the blobs go, by name.")
@click.option("--phase", type=click.Choice(["TEST", "TRAIN"]), default="TEST", show_default=True)
@preprocess_options(None)
@device_option
@crop_option
@frame_option
@precision_option
@force_option
@json_option
def command(
    prototxt: str, weights: str, inputs: tuple[str, ...], blobs: tuple[str, ...], out: str, phase: str,
    mean: str | None, scale: float, color: str | None, size: tuple[int, int] | None,
    device: str, crop: str, frame: bool | None, precision: str, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run PROTOTXT with WEIGHTS and write its output blobs, and those asked for, to an .npz.

    A net with data or loss layers runs in its deploy form unless all its inputs, labels too, are given. NAME
    may be left out where the net has one input. --mean, --scale, --color and --size are for pictures.

    \b
    Keys of --json:
      net, weights, out, device, precision    as given
      phase                        TEST or TRAIN
      inputs                       name -> shape
      blobs                        name -> shape, min, max, mean
      seconds                      the forward pass alone
      peak_memory_bytes            the greatest memory in use, on CUDA what PyTorch had allocated
      notes                        what was done to the inputs
    """
    if not out.lower().endswith(".npz"):
        raise InputError("--out", repr(out), "a name that ends in .npz")
    with progress("running the net"):
        named = [item.partition("=") if _is_named(item) else ("", "", item) for item in inputs]
        definition = load_definition(prototxt, [name for name, _, _ in named if name], phase)
        arrays, notes = read_inputs(definition, named, (mean, scale, color, size))
        check_blobs(definition, blobs)
        with replace_file(out, force) as temporary:
            from reproduce.inference import (  # torch: so late that --help and bad input are quick
                build,
                forward,
            )
            from reproduce.memory import peak_bytes

            shapes = {name: array.shape for name, array in arrays.items()}
            net = build(definition, weights, shapes, crop, device, frame, precision)
            start = time.perf_counter()
            with in_net(prototxt):
                results = forward(net, arrays, blobs)
            seconds = time.perf_counter() - start
            with open(temporary, "wb", buffering=0) as stream:
                write_npz(results, stream)
    report = {
        "net": prototxt, "weights": weights, "out": out, "device": device, "precision": precision,
        "phase": phase,
        "inputs": {name: list(array.shape) for name, array in arrays.items()},
        "blobs": {name: _summary(array) for name, array in results.items()},
        "seconds": seconds, "peak_memory_bytes": peak_bytes(device), "notes": notes,
    }  # fmt: skip
    for note in notes:
        say(f"note: {note}")
    if as_json:
        print_json(report)
    else:
        _print(report)


def read_inputs(
    definition: Definition, named: list[tuple[str, str, str]], picture_options: tuple[Any, ...]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays by input name from (name, "=", file) triples, and remarks. InputError where they do not fit."""
    arrays: dict[str, np.ndarray] = {}
    notes: list[str] = []
    for name, _, path in named:
        name = name or only_input(definition, "say which with --input NAME=FILE")
        if name not in definition.inputs:
            raise InputError("--input", f"no input {name!r}", f"one of {', '.join(definition.inputs)}")
        if name in arrays:
            raise InputError("--input", f"two files for input {name!r}", "one")
        if path.lower().endswith(".npy"):
            arrays[name] = read_array(path)
            _check_axes(path, arrays[name], definition.inputs[name])
        else:
            shape = definition.inputs[name] or (1, 1 if picture_options[2] == "gray" else 3, 0, 0)
            preprocess = make_preprocess(shape[1] if len(shape) > 1 else 0, *picture_options)
            arrays[name] = preprocess(read_image(path))
            note = mean_note(preprocess.mean, arrays[name].shape[2:])
            notes += [f"{path}: {preprocess.words()}"] + ([note] if note else [])
    missing = [name for name in definition.inputs if name not in arrays]
    if missing:
        raise InputError(
            "--input", f"nothing for input {', '.join(missing)}", "a file for each input of the net"
        )
    return arrays, notes


def _check_axes(path: str, array: np.ndarray, declared: tuple[int, ...] | None) -> None:
    if declared is not None and array.ndim != len(declared):
        raise InputError(path, f"shape {'x'.join(map(str, array.shape)) or 'of a single value'}",
                         f"{len(declared)} axes, as {'x'.join(map(str, declared))}")  # fmt: skip


def _is_named(item: str) -> bool:
    """Whether NAME= stands before the file; a file whose own name holds '=' is written ./file."""
    name, equals, _ = item.partition("=")
    return bool(equals) and not name.startswith((".", "/"))


def _summary(array: np.ndarray) -> dict[str, Any]:
    if not array.size:
        return {"shape": list(array.shape), "min": None, "max": None, "mean": None}
    wide = array.astype(np.float64)
    return {
        "shape": list(array.shape),
        "min": float(wide.min()),
        "max": float(wide.max()),
        "mean": float(wide.mean()),
    }


def _print(report: dict[str, Any]) -> None:
    for name, shape in report["inputs"].items():
        click.echo(f"input {name}: {'x'.join(map(str, shape))}")
    for name, blob in report["blobs"].items():
        values = f"  {blob['min']:.6g} to {blob['max']:.6g}" if blob["min"] is not None else ""
        click.echo(f"blob {name}: {'x'.join(map(str, blob['shape']))}{values}")
    peak = f"{report['peak_memory_bytes'] / 1e9:.2f} GB at most"
    click.echo(f"wrote {report['out']} ({report['seconds']:.2f} s on {report['device']}, {peak})")
