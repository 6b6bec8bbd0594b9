"""`fcn segment`: label maps and overlays of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from caffe_weights.errors import InputError, in_net
from reproduce.commands.common import (
    crop_option,
    device_option,
    fcn_command,
    force_option,
    frame_option,
    json_option,
    labels_option,
    make_folder,
    make_preprocess,
    precision_option,
    preprocess_options,
    print_json,
    progress,
    read_labels,
    say,
    weights_option,
)
from reproduce.commands.proposal_options import CROPPED, make_segmenter, proposal_options
from reproduce.images import VOC_MEAN_BGR, resize, write_image
from reproduce.nets import NETS
from reproduce.picture_jobs import expand, make_jobs
from reproduce.visualize import (
    VOC_CLASSES,
    class_name,
    overlay,
    percent,
    shares,
    with_legend,
    write_label_png,
)

if TYPE_CHECKING:
    from reproduce.labelling import Labelled, Outcome
    from reproduce.recognition import PublishedNet

MOST_NAMED = 5  # pictures that an error message names


@fcn_command("segment")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--net",
    "net_path",
    default=None,
    metavar="NAME|PROTOTXT",
    help="The net. [default: recognised from the weights, for nets of fcn net --list]",
)
@weights_option
@click.option("--out", required=True, metavar="DIR", help="Where STEM.png and STEM_overlay.png go.")
@click.option(
    "--overlay", "with_overlay", is_flag=True, help="Also write the picture with colours and legend."
)
@click.option("--blob", default=None, help="The score blob. [default: the only output, or 'score']")
@labels_option
@preprocess_options("the published VOC mean, 104.00699,116.66877,122.67892")
@device_option
@crop_option
@frame_option
@click.option(
    "--dense",
    type=click.Choice(["shift-and-stitch", "atrous"]),
    default=None,
    help="Score each pixel without interpolation. The time grows with the square of the net's stride:"
    " 1024 for 32s.",
)
@proposal_options
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True,
              help="Threads that read pictures, and as many that write.")  # fmt: skip
@click.option("--skip-existing", is_flag=True, help="Leave out pictures whose files are all written already.")
@precision_option
@force_option
@json_option
def command(
    images: tuple[str, ...], net_path: str | None, weights_path: str, out: str, with_overlay: bool,
    blob: str | None, labels: str | None, mean: str | None, scale: float, color: str | None,
    size: tuple[int, int] | None, device: str, crop: str, frame: bool | None, dense: str | None, force: bool,
    skip_existing: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Label every pixel of each IMAGE and write the labels as an indexed PNG in PASCAL VOC's colours.

    Of a folder all pictures in it are labelled. The published recipe by default: BGR, minus the mean, the
    picture's own size. Names in the legend are those of --labels, or VOC's for a net of 21 classes.

    DeconvNet sees crops: --proposals says where, and --faithful does as its authors' code did. --ensemble
    adds an FCN, --crf sharpens; both serve other nets, too.

    \b
    Keys of --json:
      net (file, or name where it was recognised), weights, blob, preprocess
                what was run
      precision, skipped (pictures that --skip-existing left out)
      images    image, labels, overlay (null without --overlay), height, width,
                seconds (its share of the net's time), classes: label, name,
                share (fraction of pixels)
      failed    image, error: what could not be read; the exit code is then 2
      seconds, images_per_second    from the first picture to the last file
      notes     what was done to the inputs
    """
    from reproduce.inference import picture_net  # torch: so late that --help is quick
    from reproduce.labelling import label_pictures

    jobs, skipped = make_jobs(expand(images), Path(out), with_overlay, force, skip_existing)
    names = read_labels(labels)
    named = net_path if net_path in NETS and not Path(str(net_path)).exists() else None
    known_net = None if net_path and not named else _recognized(weights_path, named)
    net_name = str(known_net or net_path)
    precision = options["precision"]
    source, preferred = (known_net.definition, known_net.score) if known_net else (net_name, "score")
    picture = picture_net(source, weights_path, device, crop, blob, preferred, color, size, frame, precision)
    cropped = known_net is not None and known_net.recognized.name == CROPPED
    usual_mean = known_net.mean if known_net and not cropped else VOC_MEAN_BGR
    preprocess = make_preprocess(picture.channels, mean, scale, color, size, usual_mean)
    options |= {"dense": dense, "size": size}
    segmenter = make_segmenter(picture, preprocess, cropped, device, options)
    finish = _finisher(labels, names, size, force or skip_existing)
    with progress("segmenting", len(jobs), "images/s") as step, in_net(net_name):
        outcome = label_pictures(jobs, segmenter, finish, options["batch"] or 1, options["workers"], step)
    report = {"net": net_name, "weights": weights_path, "blob": picture.output, "precision": precision,
              "preprocess": preprocess.words(), "skipped": skipped} | as_dict(outcome)  # fmt: skip
    for note in outcome.notes:
        say(f"note: {note}")
    if as_json and (outcome.rows or not outcome.failed):
        print_json(report)
    elif not as_json:
        _print(f"{weights_path}: {net_name}" if known_net else "", outcome, skipped)
    refuse_failed(outcome)


def _finisher(
    labels_path: str | None, names: tuple[str, ...], size: tuple[int, int] | None, force: bool
) -> Callable[[Labelled], dict[str, Any]]:
    """What writes the files of a picture and gives its row of the report."""

    def finish(done: Labelled) -> dict[str, Any]:
        if labels_path and len(names) < done.classes:
            raise InputError(labels_path, f"{len(names)} names", f"{done.classes}, one for each class")
        known = names or (VOC_CLASSES if done.classes == len(VOC_CLASSES) else ())
        job = done.picture.job
        make_folder(job.labels.parent)
        write_label_png(done.labels, job.labels, force)
        if job.overlay is not None:
            _write_overlay(_resized(done.picture.image, size), done.labels, names, known, job.overlay, force)
        return _row(done, known)

    return finish


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """The part of the report that says what became of the pictures."""
    return {
        "images": outcome.rows,
        "failed": [{"image": job.image, "error": str(error)} for job, error in outcome.failed],
        "seconds": outcome.seconds, "images_per_second": outcome.images_per_second, "notes": outcome.notes,
    }  # fmt: skip


def refuse_failed(outcome: Outcome) -> None:
    """InputError that names what could not be read, if anything."""
    if not outcome.failed:
        return
    errors = [error for _, error in outcome.failed]
    if not outcome.rows and len(errors) == 1:
        raise errors[0]
    words = "; ".join(str(error) for error in errors[:MOST_NAMED])
    more = f" and {len(errors) - MOST_NAMED} more" if len(errors) > MOST_NAMED else ""
    rest = f"; the other {len(outcome.rows)} are written" if outcome.rows else ""
    raise InputError("", f"{len(errors)} of {len(errors) + len(outcome.rows)} pictures not labelled:"
                     f" {words}{more}{rest}")  # fmt: skip


def _write_overlay(
    shown: np.ndarray, found: np.ndarray, names: Any, known: Any, path: Path, force: bool
) -> None:
    """The picture with its labels' colours and a legend; a background, where there is one, stays clear."""
    background = 0 if not names or names[0].lower() == "background" else None
    coloured = overlay(shown, found, background=background)
    write_image(with_legend(coloured, found, known), path, force)


def _recognized(weights_path: str, name: str | None) -> PublishedNet:
    from caffe_weights.export import read_weights
    from reproduce.recognition import published_net

    found = published_net(read_weights(weights_path))
    if name is not None and name not in (found.recognized.name, *found.recognized.alternatives):
        raise InputError(weights_path, f"weights of {found}", name, "give its weights, or its prototxt")
    return found


def _resized(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """The picture as the label map lies on it."""
    if size is None or image.shape[:2] == size:
        return image
    return np.rint(resize(image.transpose(2, 0, 1), size)).astype(np.uint8).transpose(1, 2, 0)


def _row(done: Labelled, names: Any) -> dict[str, Any]:
    job, labels = done.picture.job, done.labels
    classes = [{"label": i, "name": class_name(i, names), "share": part} for i, part in shares(labels)]
    return {
        "image": job.image, "labels": str(job.labels), "overlay": str(job.overlay) if job.overlay else None,
        "height": labels.shape[0], "width": labels.shape[1], "seconds": done.seconds, "classes": classes,
    }  # fmt: skip


def _print(head: str, outcome: Outcome, skipped: list[str]) -> None:
    if head and (outcome.rows or skipped):
        click.echo(head)
    for row in outcome.rows:
        classes = ", ".join(f"{item['name']} {percent(item['share'])}" for item in row["classes"][:8])
        more = len(row["classes"]) - 8
        click.echo(f"{row['image']}: {classes}" + (f" and {more} more" if more > 0 else ""))
        click.echo(f"  wrote {row['labels']}" + (f" and {row['overlay']}" if row["overlay"] else ""))
    if skipped:
        click.echo(f"skipped {len(skipped)} that exist")
    if len(outcome.rows) > 1:
        click.echo(f"{len(outcome.rows)} pictures, {outcome.images_per_second:.3g} images/s")
