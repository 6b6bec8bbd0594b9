"""`fcn crf`: the dense CRF over any scores."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from caffe_weights.errors import FormatError, InputError
from caffe_weights.files import check_output, replace_file
from reproduce.commands.common import fcn_command, force_option, json_option, print_json, progress
from reproduce.visualize import VOC_CLASSES, class_name, percent, shares, write_label_png

if TYPE_CHECKING:
    from reproduce.crf import CrfSettings

PUBLISHED = ("deconvnet", "deeplab-v1", "deeplab-msc-largefov", "deeplab-vgg128", "deeplab-v2",
             "deeplab-v2-fork")  # fmt: skip
SUM_APART = 1e-3  # of probabilities that are to add up to 1


@fcn_command("crf")
@click.argument("scores_path", metavar="SCORES")
@click.argument("image_path", metavar="IMAGE")
@click.option("--out", required=True, metavar="FILE.png", help="The labels, in PASCAL VOC's colours.")
@click.option("--beliefs", default=None, metavar="FILE.npy", help="Also write Q, classes x height x width.")
@click.option("--blob", default=None, help="The array of an .npz. [default: the only one, or 'score']")
@click.option("--probabilities", is_flag=True, help="SCORES are probabilities: no softmax is taken.")
@click.option("--settings", type=click.Choice(PUBLISHED), default="deconvnet", show_default=True,
              help="Those of a published system.")  # fmt: skip
@click.option(
    "--set", "changes", multiple=True, metavar="NAME=VALUE",
    help="Change gaussian_weight, gaussian_sxy, bilateral_weight, bilateral_sxy, bilateral_srgb, iterations,"
    " or normalization (none, before, after, symmetric).")  # fmt: skip
@click.option("--exact", is_flag=True, help="Sum over all pairs; up to 64 x 64 pixels, no pydensecrf2.")
@force_option
@json_option
def command(
    scores_path: str, image_path: str, out: str, beliefs: str | None, blob: str | None, probabilities: bool,
    settings: str, changes: tuple[str, ...], exact: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Sharpen a segmentation by the fully connected CRF: SCORES (.npy or .npz, classes x height x width, as
    `fcn run` writes them) with the IMAGE they are of.

    The kernels' normalisation is part of the settings: the same weights mean different things without it.

    \b
    Keys of --json:
      scores, image, labels, beliefs (null without --beliefs)
      settings   name, origin, the numbers, normalization
      exact, seconds, changed (fraction of pixels whose label the CRF changed)
      classes    label, name, share (fraction of pixels)
    """
    from reproduce.crf import dense_crf, unary_of_probabilities, unary_of_scores
    from reproduce.images import read_image

    chosen = parse_settings(settings, changes)
    for path in filter(None, (out, beliefs)):
        check_output(path, force)
    scores, image = read_scores(scores_path, blob), read_image(image_path)
    if probabilities:
        _check_sums(scores_path, scores)
    start = time.perf_counter()
    with progress("mean field"):
        unary = unary_of_probabilities(scores) if probabilities else unary_of_scores(scores)
        found = dense_crf(unary, image, chosen, exact)
    seconds = time.perf_counter() - start
    labels = found.argmax(0).astype(np.uint8)
    if beliefs is not None:
        with replace_file(beliefs, force) as temporary, open(temporary, "wb") as stream:
            np.save(stream, found)
    write_label_png(labels, out, force)
    names = VOC_CLASSES if len(scores) == len(VOC_CLASSES) else ()
    report = {
        "scores": scores_path, "image": image_path, "labels": out, "beliefs": beliefs,
        "settings": {"name": settings, **vars(chosen)}, "exact": exact, "seconds": seconds,
        "changed": float((labels != scores.argmax(0)).mean()),
        "classes": [{"label": i, "name": class_name(i, names), "share": part} for i, part in shares(labels)],
    }  # fmt: skip
    if as_json:
        print_json(report)
    else:
        _print(report, chosen)


def read_scores(path: str, blob: str | None = None) -> np.ndarray:
    """Scores C x H x W, float32, of an .npy or an .npz; an axis of one picture in front is dropped.

    FileError, FormatError.
    """
    from caffe_weights.zipped import read_npz
    from reproduce.definition import read_array

    if path.lower().endswith(".npz"):
        arrays = read_npz(path)
        name = blob or ("score" if "score" in arrays else next(iter(arrays), ""))
        if name not in arrays or (blob is None and len(arrays) > 1 and name != "score"):
            raise FormatError(path, f"the arrays {', '.join(arrays)}", "one of scores", "name it with --blob")
        scores = arrays[name]
    else:
        scores = read_array(path)
    if scores.ndim == 4 and scores.shape[0] == 1:
        scores = scores[0]
    if scores.ndim != 3 or not 2 <= scores.shape[0] <= 255 or scores.dtype.kind not in "fiu":
        found = f"an array of {' x '.join(map(str, scores.shape))}, {scores.dtype}"
        wanted = "scores of 2 to 255 classes x height x width"
        raise FormatError(path, found, wanted, "name another with --blob")
    return np.asarray(scores, np.float32)


def parse_settings(name: str, changes: tuple[str, ...]) -> CrfSettings:
    """Published settings with changes NAME=VALUE. InputError."""
    from reproduce.crf import SETTING_NAMES, find_settings

    values: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or key not in (*SETTING_NAMES, "normalization"):
            raise InputError("--set", repr(change), f"NAME=VALUE with {', '.join(SETTING_NAMES)} or"
                             " normalization")  # fmt: skip
        try:
            kind = {"normalization": str, "iterations": int}.get(key, float)
            values[key] = kind(text)
        except ValueError:
            raise InputError(f"--set {key}", repr(text), "a number") from None
    return find_settings(name, **values)


def _check_sums(path: str, scores: np.ndarray) -> None:
    sums = scores.sum(axis=0)
    if not (np.abs(sums - 1) < SUM_APART).all() or scores.min() < 0:
        raise FormatError(path, f"values that sum to {sums.min():.4g} to {sums.max():.4g}",
                          "probabilities that sum to 1", "leave out --probabilities")  # fmt: skip


def _print(report: dict[str, Any], settings: CrfSettings) -> None:
    click.echo(f"{report['settings']['name']}: {settings.words()}")
    classes = ", ".join(f"{item['name']} {percent(item['share'])}" for item in report["classes"][:8])
    click.echo(f"{percent(report['changed'])} of the pixels changed: {classes}")
    click.echo(f"wrote {report['labels']}" + (f" and {report['beliefs']}" if report["beliefs"] else ""))
