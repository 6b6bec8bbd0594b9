"""`fcn evaluate`: the four metrics and the loss of a published net on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from caffe_weights.errors import InputError
from reproduce.commands.common import (
    device_option,
    fcn_command,
    force_option,
    frame_option,
    json_option,
    make_folder,
    precision_option,
    print_json,
    progress,
    weights_option,
)
from reproduce.commands.net import architecture_option, form_options, given_architecture
from reproduce.commands.score import class_row, print_scores
from reproduce.score import ABSENT_RULES, score


@fcn_command("evaluate")
@click.argument("name")
@weights_option
@click.option("--data", required=True, metavar="KIND:DIR", help="The data set.")
@click.option("--split", default="", help="What to score on. [default: the split that KIND is scored on]")
@click.option("--pictures", type=click.IntRange(0), default=0, help="Only the first so many. [default: all]")
@click.option("--absent", type=click.Choice(list(ABSENT_RULES)), default="zero", show_default=True,
              help="What a class counts that the truth has nowhere, as in fcn score.")  # fmt: skip
@click.option("--out", metavar="DIR", help="Write the label maps here, ID.png in VOC's colours.")
@click.option(
    "--workers", type=click.IntRange(0), default=2, show_default=True, help="Processes that decode."
)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True,
              help="Pictures of equal size at a time.")  # fmt: skip
@architecture_option
@form_options
@precision_option
@device_option
@frame_option
@force_option
@json_option
def command(
    name: str, weights_path: str, data: str, split: str, pictures: int, absent: str, out: str | None,
    workers: int, batch: int, architecture: str | None, narrow: int, fc: int | None, classes: int | None,
    precision: str, device: str, frame: bool | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Score the net NAME with its weights on a data set, in the order of the list.

    \b
    Keys of --json (fractions; null where nothing counts):
      net, weights, data, split, split_sha256, images, loss (mean over images),
              precision, seconds, images_per_second, peak_memory_bytes
      heads   one for each output: scores, label (blobs), classes, pixels,
              pixel_accuracy, mean_accuracy, mean_iu, frequency_weighted_iu,
              absent, absent_means, mean_iu_zero, mean_iu_skip, per_class
              as in fcn score
    """
    from caffe_weights.export import read_weights
    from reproduce.data import parse_data
    from reproduce.evaluate import evaluate, published_net
    from reproduce.gpu import arrange
    from reproduce.inference import pick_device
    from reproduce.memory import peak_bytes
    from reproduce.precision import Precision
    from reproduce.run_files import DataChoice, form_for

    kind, folder = parse_data(data)
    form = form_for(name, kind, narrow, fc, classes, given_architecture(architecture))
    choice = DataChoice(kind, folder, split)
    place = pick_device(device)
    how = Precision(precision, place)
    net, feed = published_net(name, read_weights(weights_path), choice, form, place, workers, frame)
    dataset = feed.dataset
    count = min(pictures or len(dataset.ids), len(dataset.ids))
    if out is not None:
        make_folder(Path(out))
    net = how.prepare(arrange(net, place, precision))
    with progress(f"scoring {name}", count, "images/s") as step:
        found = evaluate(net, feed, count, Path(out) if out else None, step, force, how, batch)
    feed.close()
    rows = [_head(head.scores, head.label, counts, absent, dataset) for head, counts in found.counts]
    report = {"net": name, "weights": weights_path, "data": data, "split": dataset.split.name,
              "split_sha256": dataset.split.sha256, "images": count, "loss": found.loss,
              "precision": precision, "seconds": found.seconds,
              "images_per_second": count / max(found.seconds, 1e-9),
              "peak_memory_bytes": peak_bytes(place), "heads": rows}  # fmt: skip
    if as_json:
        print_json(report)
        return
    click.echo(f"{name} on {kind} {dataset.split.name}: loss {found.loss:.6g}, "
               f"{report['images_per_second']:.3g} images/s, "
               f"{peak_bytes(place) / 1e9:.2f} GB at most")  # fmt: skip
    for row, (_, counts) in zip(rows, found.counts, strict=True):
        if len(rows) > 1:
            click.echo(f"\n{row['label']}")
        print_scores({**row, "images": count}, score(counts, absent))


def _head(scores_blob: str, label: str, counts: Any, absent: str, dataset: Any) -> dict[str, Any]:
    scores = score(counts, absent)
    if not scores.pixels:
        raise InputError(f"label {label}", "no pixel that counts", "labels that are not void")
    names = dataset.class_names.get(label, dataset.classes)
    known = names if len(names) == len(counts) else ()
    return {
        "scores": scores_blob, "label": label, "classes": len(counts), "pixels": scores.pixels,
        **scores.metrics(), "absent": absent, "absent_means": ABSENT_RULES[absent],
        **{f"mean_iu_{rule}": score(counts, rule).mean_iu for rule in ABSENT_RULES},
        "per_class": [class_row(row, known) for row in scores.per_class],
    }  # fmt: skip
