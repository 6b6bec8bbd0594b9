"""`fcn data`: what is there of a data set, what is missing, how its classes are spread; DeconvNet's crops."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from caffe_weights.errors import InputError
from reproduce.cli import OneLineErrors
from reproduce.commands.common import fcn_command, json_option, print_json, progress
from reproduce.commands.deconvnet_stages import data_command as deconvnet_command
from reproduce.visualize import percent

if TYPE_CHECKING:
    from reproduce.data import Dataset

MOST_NAMED = 5
KINDS = ("voc", "sbd", "nyud", "siftflow", "pascal-context", "camvid", "cityscapes", "digits")


class DataGroup(OneLineErrors, click.Group):
    """Commands about data sets."""


@click.group("data", cls=DataGroup, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Check a data set; make DeconvNet's training data from one."""


@fcn_command("check", "Say what is there of a data set and what is missing.")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("folder", metavar="DIR")
@click.option("--split", "splits", multiple=True, help="Only this split; may be given again. [default: all]")
@click.option("--quick", is_flag=True, help="Only look whether the files are there; do not read them.")
@click.option("--modalities", metavar="NAMES", default=None,
              help="Of nyud: color,depth,hha. [default: those whose folder is there]")  # fmt: skip
@click.option("--voc", "voc", metavar="DIR", default=None, help="Of pascal-context: the folder of VOC2010.")
@click.option("--sbd", "sbd", metavar="DIR", default=None,
              help="Of voc: derive seg11valid from VOC 2011 and SBD, and check it by its hash.")  # fmt: skip
@json_option
def check_command(
    kind: str, folder: str, splits: tuple[str, ...], quick: bool, modalities: str | None, voc: str | None,
    sbd: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Check the data set in DIR: every file of every list is read, as in training.

    Exit 1 if something is missing, broken, or a list is not the published one.

    \b
    Keys of --json:
      kind, root, layout, inputs, targets, good
      seg11valid   with --sbd: count, sha256 of what VOC 2011 and SBD give
      splits       split, source (of the list), packaged (from this package),
                   count, expected_count, sha256 (of the ids, one a line),
                   is_published (null: hash not known), remarks, good,
                   missing: part -> files, broken: errors, sizes: HxW -> count,
                   classes: target -> pixels, void_pixels, per_class: label,
                   name, pixels, frequency (fraction of labelled pixels)
    """
    from reproduce.data.check import check

    dataset = _open(kind, folder, splits, modalities, voc)
    names = list(splits) or dataset.splits()
    total = sum(len(dataset.read_split(name).ids) for name in names)
    derived = _derive(dataset, sbd)
    with progress(f"checking {kind}", total) as step:
        reports = check(dataset, names, quick, step)
    good = all(report.good for report in reports)
    rows = [report.as_dict(dataset) for report in reports]
    result = {"kind": kind, "root": str(dataset.root), "layout": dataset.layout,
              "inputs": list(dataset.inputs), "targets": list(dataset.targets), "good": good,
              **({"seg11valid": derived} if derived else {}), "splits": rows}  # fmt: skip
    if as_json:
        print_json(result)
    else:
        _print(result)
    return 0 if good else 1


command.add_command(check_command)
command.add_command(deconvnet_command)


def _open(
    kind: str, folder: str, splits: tuple[str, ...], modalities: str | None, voc: str | None
) -> Dataset:
    from reproduce.data import find_kind
    from reproduce.data.nyud import FOLDERS, NYUD

    options: dict[str, Any] = {}
    for name, value, owner in (("--modalities", modalities, "nyud"), ("--voc", voc, "pascal-context")):
        if value is not None and kind != owner:
            raise InputError(name, f"given for {kind}", f"nothing, it belongs to {owner}")
    if voc is not None:
        options["voc"] = voc
    first = splits[0] if splits else ""  # any
    if kind == "nyud":
        root = NYUD.find_root(Path(folder))
        present = [name for name, below in FOLDERS.items() if (root / "data" / below).is_dir()]
        options["modalities"] = modalities.split(",") if modalities else present or ["color"]
    return find_kind(kind)(folder, first, **options)


def _derive(dataset: Dataset, sbd: str | None) -> dict[str, Any] | None:
    """seg11valid from the lists of VOC 2011 and SBD."""
    from reproduce.data.base import ids_hash
    from reproduce.data.sbd import SBD
    from reproduce.data.voc import derive_seg11valid

    if sbd is None:
        return None
    if dataset.kind != "voc":
        raise InputError("--sbd", f"given for {dataset.kind}", "nothing, it belongs to voc")
    ids = derive_seg11valid(dataset.read_split("val").ids, SBD(sbd, "train").ids)
    return {"count": len(ids), "sha256": ids_hash(ids)}


def _print(result: dict[str, Any]) -> None:
    click.echo(f"{result['kind']} in {result['root']}: {', '.join(result['inputs'] + result['targets'])}")
    if "seg11valid" in result:
        click.echo(f"seg11valid derived: {result['seg11valid']['count']} ids, as published")
    for row in result["splits"]:
        _print_split(row)
    click.echo("good" if result["good"] else "not complete, or not as published")


def _print_split(row: dict[str, Any]) -> None:
    known = {True: ", as published", False: "", None: ""}[row["is_published"]]
    click.echo(
        f"\n{row['split']}: {row['count']} ids{known} (sha256 {row['sha256'][:16]}...), {row['source']}"
    )
    for remark in row["remarks"]:
        click.echo(f"  list     {remark}")
    for part, paths in row["missing"].items():
        click.echo(f"  missing  {len(paths)} of {part}: {', '.join(paths[:MOST_NAMED])}"
                   + (", ..." if len(paths) > MOST_NAMED else ""))  # fmt: skip
    for error in row["broken"][:MOST_NAMED]:
        click.echo(f"  broken   {error}")
    if len(row["broken"]) > MOST_NAMED:
        click.echo(f"  broken   and {len(row['broken']) - MOST_NAMED} more")
    if row["sizes"]:
        common = sorted(row["sizes"].items(), key=lambda item: -item[1])[:3]
        more = len(row["sizes"]) - len(common)
        click.echo("  sizes    " + ", ".join(f"{size}: {count}" for size, count in common)
                   + (f", and {more} more" if more else ""))  # fmt: skip
    for part, found in row["classes"].items():
        void = found["void_pixels"] / max(1, found["void_pixels"] + found["pixels"])
        click.echo(f"  {part}: {found['pixels']} labelled pixels, {percent(void)} void")
        for item in found["per_class"]:
            share = item["frequency"]
            click.echo(
                f"    {item['label']:>3} {item['name']:<16} {percent(share) if share == share else '-':>7}"
            )
