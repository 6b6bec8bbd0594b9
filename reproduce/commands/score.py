"""`fcn score`: the four metrics of label maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from caffe_weights.errors import InputError
from reproduce.commands.common import fcn_command, json_option, print_json, progress, read_labels
from reproduce.label_maps import find_pairs, read_label_map
from reproduce.score import ABSENT_RULES, VOID, ClassScore, Scores, histogram, score
from reproduce.visualize import VOC_CLASSES, class_name

TITLES = {
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "mean_iu": "mean IU",
    "frequency_weighted_iu": "frequency weighted IU",
}


@fcn_command("score")
@click.argument("prediction")
@click.argument("truth")
@click.option("--classes", type=int, required=True, help="How many: labels are 0 to CLASSES - 1.")
@click.option("--ignore", type=int, multiple=True, default=(VOID,), show_default=True,
              help="A label of the truth that does not count; may be given again.")  # fmt: skip
@click.option("--absent", type=click.Choice(list(ABSENT_RULES)), default="zero", show_default=True,
              help="A class the truth has nowhere: zero, if it is predicted it has IU 0 in the mean, as in"
              " the reference; skip, it is left out of the mean.")  # fmt: skip
@click.option("--names", "names_path", metavar="FILE", help="Names of the classes, one a line, from 0.")
@click.option("--ids", "ids_path", metavar="FILE", help="Of folders, score only these stems, one a line.")
@json_option
def command(
    prediction: str, truth: str, classes: int, ignore: tuple[int, ...], absent: str, names_path: str | None,
    ids_path: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Score a PREDICTION against the TRUTH: two label maps, or two folders of them with equal file names.

    A label map is a PNG with a palette (its indices are the labels), gray, or RGB in PASCAL VOC's colours.

    \b
    Keys of --json (fractions; null where nothing counts):
      prediction, truth, images, classes, ignore, pixels
      pixel_accuracy, mean_accuracy, mean_iu, frequency_weighted_iu
      absent, absent_means       the rule behind mean_iu, in words
      mean_iu_zero, mean_iu_skip   mean_iu under either rule
      per_class   label, name, truth, predicted, correct (pixels), accuracy, iu
    """
    names = read_labels(names_path)
    if names and len(names) < classes:
        raise InputError(str(names_path), f"{len(names)} names", f"{classes}, one for each class")
    ids = [line for line in read_labels(ids_path) if line] if ids_path else None
    pairs = find_pairs(prediction, truth, ids)
    counts = _count(pairs, classes, ignore)
    scores = score(counts, absent)
    if not scores.pixels:
        raise InputError(truth, "no pixel that counts", "labels that are not ignored")
    known = names or (VOC_CLASSES if classes == len(VOC_CLASSES) else ())
    report = {"prediction": prediction, "truth": truth, "images": len(pairs), "classes": classes,
              "ignore": list(ignore), "pixels": scores.pixels, **scores.metrics(),
              "absent": absent, "absent_means": ABSENT_RULES[absent],
              **{f"mean_iu_{rule}": score(counts, rule).mean_iu for rule in ABSENT_RULES},
              "per_class": [class_row(row, known) for row in scores.per_class]}  # fmt: skip
    if as_json:
        print_json(report)
    else:
        print_scores(report, scores)


def _count(pairs: list[tuple[Path, Path]], classes: int, ignore: tuple[int, ...]) -> np.ndarray:
    counts = np.zeros((1, 1), np.int64)
    with progress("scoring", len(pairs)) as step:
        for prediction, truth in pairs:
            found, wanted = read_label_map(prediction), read_label_map(truth)
            with _naming(prediction, truth):
                counts = counts + histogram(wanted, found, classes, ignore)
            step()
    return counts


@contextmanager
def _naming(prediction: Path, truth: Path) -> Iterator[None]:
    """Put the file in place of the word in errors about truth or prediction."""
    try:
        yield
    except InputError as error:
        kind, _, place = error.where.partition(" at ")
        path = {"prediction": prediction, "truth": truth}.get(kind)
        if path is None:
            raise
        where = f"{path}: {place}" if place else str(path)
        raise InputError(where, error.found, error.wanted, error.do) from None


def class_row(row: ClassScore, names: Any) -> dict[str, Any]:
    """A class for --json."""
    pixels = {"truth": row.truth, "predicted": row.predicted, "correct": row.correct}
    return {"label": row.label, "name": class_name(row.label, names), **pixels,
            "accuracy": row.accuracy, "iu": row.iu}  # fmt: skip


def print_scores(report: dict[str, Any], scores: Scores) -> None:
    """The metrics and the table of classes, from the keys of --json."""
    images = "1 image" if report["images"] == 1 else f"{report['images']} images"
    click.echo(f"{images}, {report['pixels']} pixels")
    for name, title in TITLES.items():
        click.echo(f"{title:<22} {_percent(report[name]):>7}")
    other = next(rule for rule in ABSENT_RULES if rule != scores.absent)
    click.echo(f"mean IU by rule {scores.absent}: {ABSENT_RULES[scores.absent]};"
               f" by rule {other} {_percent(report[f'mean_iu_{other}'])}")  # fmt: skip
    _print_classes(report["per_class"])


def _print_classes(per_class: list[dict[str, Any]]) -> None:
    rows = [row for row in per_class if row["truth"] or row["predicted"]]
    width = max(5, *(len(row["name"]) for row in rows))
    click.echo(f"\nlabel  {'class':<{width}} {'truth':>12} {'predicted':>12} {'accuracy':>9} {'IU':>8}")
    for row in rows:
        pixels = f"{row['truth']:>12} {row['predicted']:>12}"
        parts = f"{_percent(row['accuracy']):>9} {_percent(row['iu']):>8}"
        click.echo(f"{row['label']:>5}  {row['name']:<{width}} {pixels} {parts}")
    if len(rows) < len(per_class):
        click.echo(f"{len(per_class) - len(rows)} more: absent from truth and prediction, not counted")


def _percent(part: float) -> str:
    return f"{part:.2%}" if part == part else "-"
