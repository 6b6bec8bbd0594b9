"""`fcn segment`: label maps and overlays of pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from caffe_weights.errors import FileError, InputError, in_net
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
    preprocess_options,
    print_json,
    progress,
    read_labels,
    say,
    weights_option,
)
from reproduce.commands.proposal_options import CROPPED, make_segmenter, proposal_options
from reproduce.images import VOC_MEAN_BGR, mean_note, read_image, resize, write_image
from reproduce.nets import NETS
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
    from reproduce.recognition import PublishedNet


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
@force_option
@json_option
def command(
    images: tuple[str, ...], net_path: str | None, weights_path: str, out: str, with_overlay: bool,
    blob: str | None, labels: str | None, mean: str | None, scale: float, color: str | None,
    size: tuple[int, int] | None, device: str, crop: str, frame: bool | None, dense: str | None, force: bool,
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Label every pixel of each IMAGE and write the labels as an indexed PNG in PASCAL VOC's colours.

    The published recipe by default: BGR, minus the mean, the picture's own size. Names in the legend are
    those of --labels, or VOC's for a net of 21 classes.

    DeconvNet sees crops: --proposals says where, and --faithful does as its authors' code did. --ensemble
    adds an FCN, --crf sharpens; both serve other nets, too.

    \b
    Keys of --json:
      net (file, or name where it was recognised), weights, blob, preprocess
                what was run
      images    image, labels, overlay (null without --overlay), height, width,
                seconds, classes: label, name, share (fraction of pixels)
      notes     what was done to the inputs
    """
    from reproduce.inference import picture_net  # torch: so late that --help is quick

    targets = output_paths(images, Path(out), with_overlay, force)
    names = read_labels(labels)
    named = net_path if net_path in NETS and not Path(str(net_path)).exists() else None
    known_net = None if net_path and not named else _recognized(weights_path, named)
    net_name = str(known_net or net_path)
    preferred = known_net.score if known_net else "score"
    source = known_net.definition if known_net else net_name
    picture = picture_net(source, weights_path, device, crop, blob, preferred, color, size, frame)
    cropped = known_net is not None and known_net.recognized.name == CROPPED
    usual_mean = known_net.mean if known_net and not cropped else VOC_MEAN_BGR
    preprocess = make_preprocess(picture.channels, mean, scale, color, size, usual_mean)
    options |= {"dense": dense, "size": size}
    segmenter = make_segmenter(picture, preprocess, cropped, device, options)
    notes, rows = segmenter.notes, []
    with progress("segmenting", len(images)) as step:
        for path, (label_path, overlay_path) in zip(images, targets, strict=True):
            start = time.perf_counter()
            image = read_image(path)
            shown = _resized(image, size)
            note = mean_note(preprocess.mean, shown.shape[:2])
            notes += [note] if note and note not in notes else []
            with in_net(net_name):
                found, classes = segmenter(image, Path(path).stem)
            if labels and len(names) < classes:
                raise InputError(labels, f"{len(names)} names", f"{classes}, one for each class")
            known = names or (VOC_CLASSES if classes == len(VOC_CLASSES) else ())
            make_folder(Path(out))
            write_label_png(found, label_path, force)
            if overlay_path is not None:
                _write_overlay(shown, found, names, known, overlay_path, force)
            rows.append(_row(path, label_path, overlay_path, found, known, time.perf_counter() - start))
            step()
    for note in notes:
        say(f"note: {note}")
    report = {"net": net_name, "weights": weights_path, "blob": picture.output,
              "preprocess": preprocess.words(), "images": rows, "notes": notes}  # fmt: skip
    if as_json:
        print_json(report)
    else:
        if known_net:
            click.echo(f"{weights_path}: {net_name}")
        _print(rows)


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


def output_paths(
    images: tuple[str, ...], out: Path, with_overlay: bool, force: bool
) -> list[tuple[Path, Path | None]]:
    """Label map and overlay of each picture, by its stem. FileError where two are one, or exist."""
    paths: list[tuple[Path, Path | None]] = []
    taken: dict[Path, str] = {}
    for image in images:
        stem = Path(image).stem
        pair = (out / f"{stem}.png", out / f"{stem}_overlay.png" if with_overlay else None)
        for path in filter(None, pair):
            if path in taken:
                raise FileError(str(path), f"{taken[path]} and {image} would both be written here",
                                "pictures of different names")  # fmt: skip
            if path.exists() and not force:
                raise FileError(str(path), "the file exists", do="pass --force to replace it")
            if path.exists() and path.samefile(image):
                raise FileError(str(path), "the picture itself would be replaced", do="choose another --out")
            taken[path] = image
        paths.append(pair)
    return paths


def _resized(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """The picture as the label map lies on it."""
    if size is None or image.shape[:2] == size:
        return image
    return np.rint(resize(image.transpose(2, 0, 1), size)).astype(np.uint8).transpose(1, 2, 0)


def _row(
    image: str, label_path: Path, overlay_path: Path | None, labels: np.ndarray, names: Any, seconds: float
) -> dict[str, Any]:
    classes = [{"label": i, "name": class_name(i, names), "share": part} for i, part in shares(labels)]
    return {
        "image": image, "labels": str(label_path), "overlay": str(overlay_path) if overlay_path else None,
        "height": labels.shape[0], "width": labels.shape[1], "seconds": seconds, "classes": classes,
    }  # fmt: skip


def _print(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        classes = ", ".join(f"{item['name']} {percent(item['share'])}" for item in row["classes"][:8])
        more = len(row["classes"]) - 8
        click.echo(f"{row['image']}: {classes}" + (f" and {more} more" if more > 0 else ""))
        click.echo(f"  wrote {row['labels']}" + (f" and {row['overlay']}" if row["overlay"] else ""))
