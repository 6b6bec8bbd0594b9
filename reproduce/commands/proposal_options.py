"""The options of `fcn segment` that make DeconvNet's whole system: proposals, ensemble, CRF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from caffe_weights.errors import InputError
from reproduce.commands.common import make_preprocess
from reproduce.commands.crf import PUBLISHED, parse_settings
from reproduce.images import VOC_MEAN_BGR

if TYPE_CHECKING:
    from reproduce.deconvnet.rules import Rules
    from reproduce.deconvnet.segmenter import Member, Segmenter
    from reproduce.images import Preprocess
    from reproduce.inference import PictureNet

CROPPED = "deconvnet"  # the published net that needs proposals
NAMES = ("proposals", "edge_model", "most", "least_side", "aggregate", "batch", "faithful", "ensemble",
         "ensemble_weights", "ensemble_rule", "crf", "crf_changes")  # fmt: skip

_OPTIONS = (
    click.option("--proposals", default=None, metavar="SOURCE",
                 help="Label crops and put them together: a file of boxes (.mat, .npz, .csv), a folder of"
                 " STEM.mat, ..., edgeboxes, windows, or auto. [default: auto for DeconvNet, else none]"),
    click.option("--edge-model", default=None, metavar="FILE",
                 help="Structured forest for edgeboxes. [default: edges are gradients]"),
    click.option("--max-proposals", "most", type=click.IntRange(1), default=50, show_default=True),
    click.option("--least-side", type=click.IntRange(1), default=None, metavar="PX",
                 help="Skip smaller boxes. [default: 1, or 112 with --faithful]"),
    click.option("--aggregate", type=click.Choice(["max", "sum", "mean"]), default=None,
                 help="What becomes of the scores of overlapping crops. [default: max]"),
    click.option("--batch", type=click.IntRange(1), default=None,
                 help="Pictures of equal size, or crops, at a time. [default: 1; of crops 2, on a GPU 16]"),
    click.option("--faithful", is_flag=True,
                 help="DeconvNet as released: boxes under 112 pixels are skipped, scores clipped at 0, the"
                 " result is read one pixel off, the ensemble multiplies scores, pictures are padded."),
    click.option("--ensemble", default=None, metavar="NAME|PROTOTXT",
                 help="A second net that sees the whole picture, such as voc-fcn8s."),
    click.option("--ensemble-weights", default=None, metavar="FILE", help="Its weights."),
    click.option("--ensemble-rule", type=click.Choice(["product-scores", "mean-probability"]), default=None,
                 help="[default: mean-probability, the paper's; product-scores, the released one, with"
                 " --faithful]"),
    click.option("--crf", is_flag=False, flag_value="deconvnet", default=None, metavar="[SETTINGS]",
                 help=f"Sharpen by the dense CRF: {', '.join(PUBLISHED)}. [without a word: deconvnet]"),
    click.option("--crf-set", "crf_changes", multiple=True, metavar="NAME=VALUE",
                 help="As --set of fcn crf."),
)  # fmt: skip


def proposal_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """All of them; they arrive by the names in NAMES."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def make_segmenter(
    picture: PictureNet, preprocess: Preprocess, cropped: bool, device: str, options: dict[str, Any]
) -> Segmenter:
    """What the options ask for; `cropped`: the net was recognised as one of crops.

    InputError where they do not fit each other.
    """
    source = options["proposals"] or ("auto" if cropped else None)
    _check(options, source)
    from reproduce.deconvnet.segmenter import Proposing, Segmenter

    proposing = None
    if source:
        proposing = Proposing(source, _rules(options), options["batch"], options["edge_model"])
    crf = None
    if options["crf"] or options["crf_changes"]:
        crf = parse_settings(options["crf"] or "deconvnet", options["crf_changes"])
    return Segmenter(picture, preprocess, proposing, _member(options, device), crf, options["dense"])


def _rules(options: dict[str, Any]) -> Rules:
    from dataclasses import replace

    from reproduce.deconvnet.rules import CLEAN, RELEASED

    rules = RELEASED if options["faithful"] else CLEAN
    given = {name: options[name] for name in ("aggregate", "most", "least_side") if options[name] is not None}
    return replace(rules, **given)


def _member(options: dict[str, Any], device: str) -> Member | None:
    if options["ensemble"] is None:
        return None
    from caffe_weights.export import read_weights
    from reproduce.deconvnet.ensemble import PAPER, RELEASED
    from reproduce.deconvnet.segmenter import Member
    from reproduce.inference import picture_net
    from reproduce.recognition import published_net

    name, weights, precision = options["ensemble"], options["ensemble_weights"], options["precision"]
    if Path(name).is_file():
        picture = picture_net(name, weights, device, precision=precision)
        mean: tuple[float, ...] = VOC_MEAN_BGR
    else:
        found = published_net(read_weights(weights))
        if name not in (found.recognized.name, *found.recognized.alternatives):
            raise InputError(weights, f"weights of {found}", name, "give its weights, or its prototxt")
        picture = picture_net(found.definition, weights, device, preferred=found.score, precision=precision)
        mean = found.mean or VOC_MEAN_BGR
    rule = options["ensemble_rule"] or (RELEASED if options["faithful"] else PAPER)
    preprocess = make_preprocess(picture.channels, None, 1.0, None, None, mean)
    return Member(picture, preprocess, rule, options["faithful"])


def _check(options: dict[str, Any], source: str | None) -> None:
    if bool(options["ensemble"]) != bool(options["ensemble_weights"]):
        given = "--ensemble" if options["ensemble"] else "--ensemble-weights"
        raise InputError(given, "given alone", "--ensemble and --ensemble-weights")
    if options["crf"] and options["crf"] not in PUBLISHED:
        raise InputError("--crf", repr(options["crf"]), " or ".join(PUBLISHED))
    whole = [name for name in ("size", "dense") if options[name]]
    parts = [name for name in ("proposals", "ensemble", "crf") if options[name]]
    if whole and parts and not (whole == ["dense"] and parts == ["crf"]):
        raise InputError(f"--{whole[0]}", f"given with --{parts[0]}", "one of them")
    if options["dense"] and options["precision"] != "float32":
        raise InputError(f"--precision {options['precision']}", "given with --dense", "float32")
    for name in ("edge_model", "least_side", "aggregate"):
        if options[name] is not None and not source:
            raise InputError(f"--{name.replace('_', '-')}", "given without --proposals", "both")
    if options["faithful"] and not source and not options["ensemble"]:
        raise InputError(
            "--faithful", "given without --proposals or --ensemble", "one of them: it is of DeconvNet"
        )
