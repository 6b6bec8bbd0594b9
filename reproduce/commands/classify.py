"""`fcn classify`: the most probable classes of pictures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from caffe_weights.errors import InputError
from reproduce.commands.common import (
    crop_option,
    device_option,
    fcn_command,
    frame_option,
    json_option,
    labels_option,
    make_preprocess,
    net_option,
    precision_option,
    preprocess_options,
    print_json,
    progress,
    read_labels,
    say,
    weights_option,
)
from reproduce.images import VOC_MEAN_BGR, mean_note, read_image


@fcn_command("classify")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@net_option
@weights_option
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many classes to name."
)
@click.option("--blob", default=None, help="The blob to read. [default: the only output, or 'prob']")
@labels_option
@preprocess_options("the published VOC mean, 104.00699,116.66877,122.67892")
@device_option
@crop_option
@frame_option
@precision_option
@json_option
def command(
    images: tuple[str, ...], net_path: str, weights_path: str, top: int, blob: str | None, labels: str | None,
    mean: str | None, scale: float, color: str | None, size: tuple[int, int] | None,
    device: str, crop: str, frame: bool | None, precision: str, as_json: bool,
) -> None:  # fmt: skip
    """Name the --top most probable classes of each IMAGE.

    Without --size a picture is resized to the size that the net declares for its input. Where the output is
    a map, as of a fully convolutional form, the mean over the map is shown. Values are those of the output
    blob: probabilities where the net ends in a Softmax.

    \b
    Keys of --json:
      net, weights, blob, preprocess, precision    what was run
      images    image, positions (how many the mean is over),
                predictions: label, name, score, best first
      notes     what was done to the inputs
    """
    from reproduce.classify import class_scores, top_predictions  # torch: so late that --help is quick
    from reproduce.inference import picture_net

    names = read_labels(labels)
    picture = picture_net(net_path, weights_path, device, crop, blob, "prob", color, size, frame, precision)
    preprocess = make_preprocess(picture.channels, mean, scale, color, size or picture.size, VOC_MEAN_BGR)
    note = mean_note(preprocess.mean, preprocess.size) if preprocess.size else ""
    rows = []
    with progress("classifying", len(images)) as step:
        for path in images:
            scores, positions = class_scores(
                picture.net, picture.input, picture.output, read_image(path), preprocess
            )
            if labels and len(names) < len(scores):
                raise InputError(labels, f"{len(names)} names", f"{len(scores)}, one for each class")
            best = [asdict(item) for item in top_predictions(scores, top, names)]
            rows.append({"image": path, "positions": positions, "predictions": best})
            step()
    if note:
        say(f"note: {note}")
    report = {"net": net_path, "weights": weights_path, "blob": picture.output,
              "preprocess": preprocess.words(), "precision": precision, "images": rows,
              "notes": [note] if note else []}  # fmt: skip
    if as_json:
        print_json(report)
    else:
        _print(rows)


def _print(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        mean = f" (mean over {row['positions']} positions)" if row["positions"] > 1 else ""
        click.echo(f"{row['image']}{mean}")
        for item in row["predictions"]:
            click.echo(f"  {item['score']:10.6g}  {item['label']:4d}  {item['name']}".rstrip())
