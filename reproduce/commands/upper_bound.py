"""`fcn upper-bound`: the best scores that a prediction of a stride can reach."""

from __future__ import annotations

from typing import Any

import click

from caffe_weights.errors import InputError
from reproduce.commands.common import fcn_command, json_option, print_json, progress
from reproduce.score import ABSENT_RULES, score

FACTORS = "128,64,32,16,8,4"


@fcn_command("upper-bound")
@click.option("--data", required=True, metavar="KIND:DIR", help="The data set.")
@click.option("--split", default="", help="[default: the split that KIND is scored on]")
@click.option("--factors", default=FACTORS, show_default=True, help="How many times smaller.")
@click.option("--rule", type=click.Choice(["nearest", "majority", "bilinear"]), default="nearest",
              show_default=True, help="How a cell gets its label: its centre's, the most frequent, or shares"
              " of classes that are interpolated.")  # fmt: skip
@click.option("--target", default="", help="Which label maps, where there are several. [default: the first]")
@click.option("--pictures", type=click.IntRange(0), default=0, help="Only the first so many. [default: all]")
@click.option("--absent", type=click.Choice(list(ABSENT_RULES)), default="zero", show_default=True,
              help="What a class counts that the truth has nowhere, as in fcn score.")  # fmt: skip
@json_option
def command(
    data: str, split: str, factors: str, rule: str, target: str, pictures: int, absent: str, as_json: bool
) -> None:
    """Make the ground truth of a data set smaller and large again, and score it: Appendix A of the FCN paper.

    The paper's numbers are of a subset of VOC 2011's validation set: mean IU 50.9, 73.3, 86.1, 92.8, 96.4 and
    98.5 for factors 128 to 4. It does not say how the label maps were resized.

    \b
    Keys of --json (fractions; null where nothing counts):
      data, split, split_sha256, target, images, rule, absent
      bounds   one for each factor: factor, pixels, pixel_accuracy,
               mean_accuracy, mean_iu, frequency_weighted_iu,
               mean_iu_zero, mean_iu_skip
    """
    from reproduce.data import DATASETS, open_data, parse_data
    from reproduce.data.base import choose
    from reproduce.upper_bound import upper_bounds

    kind, folder = parse_data(data)
    dataset = open_data(kind, folder, split or DATASETS[kind].score_split)
    part = choose("--target", [target], dataset.targets)[0] if target else dataset.targets[0]
    count = min(pictures or len(dataset.ids), len(dataset.ids))
    with progress(f"resizing the truth of {kind}", count) as step:
        counts = upper_bounds(dataset, part, _factors(factors), rule, count, step)
    rows = [_row(factor, each, absent) for factor, each in counts.items()]
    report = {"data": data, "split": dataset.split.name, "split_sha256": dataset.split.sha256, "target": part,
              "images": count, "rule": rule, "absent": absent, "bounds": rows}  # fmt: skip
    if as_json:
        print_json(report)
        return
    click.echo(f"{kind} {dataset.split.name}, {count} images, {part}, {rule}")
    click.echo("factor  pixel accuracy  mean accuracy  mean IU  frequency weighted IU")
    for row in rows:
        click.echo(f"{row['factor']:>6}  {row['pixel_accuracy']:>14.2%}  {row['mean_accuracy']:>13.2%}"
                   f"  {row['mean_iu']:>7.2%}  {row['frequency_weighted_iu']:>21.2%}")  # fmt: skip


def _row(factor: int, counts: Any, absent: str) -> dict[str, Any]:
    scores = score(counts, absent)
    if not scores.pixels:
        raise InputError("--data", "no pixel that counts", "labels that are not void")
    rules = {f"mean_iu_{rule}": score(counts, rule).mean_iu for rule in ABSENT_RULES}
    return {"factor": factor, "pixels": scores.pixels, **scores.metrics(), **rules}


def _factors(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError("--factors", repr(text), f"whole numbers, as {FACTORS}") from None
