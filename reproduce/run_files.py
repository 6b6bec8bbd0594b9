"""The files of a training run of a published net: what `fcn train NAME` writes before it trains.

solver.prototxt is the published solver (`reproduce.nets.solvers`) with what was changed by request,
train.prototxt the net with the data layer that the run reads from, deploy.prototxt what `fcn segment` takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from caffe_weights.caffe_pb2 import FillerParameter, NetParameter, SolverParameter
from caffe_weights.errors import FileError, InputError
from caffe_weights.files import as_file_error, replace_file
from caffe_weights.prototxt import format_net, format_solver
from caffe_weights.weights import Weights
from reproduce.balance import RULES, class_weights, gain_matrix, write_class_weights
from reproduce.data import DATASETS, Dataset, open_data, parse_data
from reproduce.data.python_layers import OURS, own_layer, with_mean
from reproduce.nets import Entry, Form, find, make_net, named_solver
from reproduce.nets.architecture import Architecture
from reproduce.paper_options import PaperOptions, balance_losses, losses, parse_momentum
from surgery.interpolation import bilinear_weights
from surgery.shapes import infer_shapes

LOG = "log.jsonl"
SOLVER, TRAIN, DEPLOY = "solver.prototxt", "train.prototxt", "deploy.prototxt"
INITS = ("xavier", "msra")


@dataclass(frozen=True)
class DataChoice:
    """The data of a run: kind, folder, split ("" for the kind's own), settings of the data layer."""

    kind: str
    folder: Path
    split: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def form_for(
    name: str, kind: str, narrow: int = 1, fc: int | None = None, classes: int | None = None,
    architecture: Architecture | None = None,
) -> Form:  # fmt: skip
    """The form of a net for a data set: its classes are the data set's unless they are given."""
    data = _fcn(name).data
    assert data is not None
    names = next(iter(DATASETS[kind].class_names.values()))
    if classes is None and len(names) != data.classes:
        classes = len(names)
    return Form(narrow, fc, classes, architecture)


def open_for(name: str, choice: DataChoice, default: str) -> tuple[Dataset, dict[str, Any]]:
    """The data set as a net wants it (inputs of NYUD, label sets of SIFT Flow), and its options.

    InputError where the parts do not fit the net's.
    """
    entry = _fcn(name)
    assert entry.data is not None
    options: dict[str, Any] = {}
    source = next(iter(entry.data.splits.values()))
    if choice.kind == "nyud":
        tops = source.settings.get("tops", ["color", "label"])
        options["modalities"] = list(tops[:-1])
    if choice.kind == "siftflow" and len(entry.data.tops) == 2:
        options["targets"] = ["sem"]
    dataset = open_data(choice.kind, choice.folder, choice.split or default, **options)
    if len(dataset.parts) != len(entry.data.tops):
        wanted = f"as many as {name} takes: {', '.join(entry.data.tops)}"
        raise InputError(f"data set {choice.kind}", f"the parts {', '.join(dataset.parts)}", wanted)
    if entry.data.module == OURS:
        options["mean"] = list(entry.data.mean["data"])  # the net's, whatever the data set
        with_mean(dataset, options["mean"])
    return dataset, options


def score_dataset(name: str, data: str | None, choice: DataChoice, split: str) -> Dataset:
    """The data set that a net is scored on while it trains: `data` is KIND:DIR, that of the training else.

    Its number of classes must be the training's.
    """
    kind, folder = parse_data(data) if data is not None else (choice.kind, choice.folder)
    dataset, _ = open_for(name, DataChoice(kind, folder, split), DATASETS[kind].score_split)
    trained = next(iter(DATASETS[choice.kind].class_names.values()))
    if len(dataset.classes) != len(trained):
        raise InputError(
            "--score-data", f"{len(dataset.classes)} classes", f"{len(trained)}, as {choice.kind}"
        )
    return dataset


def train_net(
    name: str, form: Form, choice: DataChoice, init: str | None = None, paper: PaperOptions | None = None
) -> NetParameter:
    """The net to train, reading from our data layer, changed as `paper` says; `init` is the filler of new
    weights, none by default."""
    entry = _fcn(name)
    assert entry.data is not None
    dataset, options = open_for(name, choice, DATASETS[choice.kind].train_split)
    net = make_net(name, entry.splits[0], form=form)
    settings = {"seed": 1337, **options, **dict(choice.settings)}
    folder = dataset_folder(choice.folder)
    net.layer[0].CopyFrom(
        own_layer(net.layer[0].name, entry.data.tops, choice.kind, folder, dataset.split.name, **settings)
    )
    if init in INITS:
        set_fillers(net, init)
    if paper is not None:
        paper.change(net)
    return net


def balance_run(
    out: Path,
    net: NetParameter,
    dataset: Dataset,
    parts: Mapping[str, str],
    rule: str,
    step: Callable[[], None] | None = None,
) -> None:
    """Weight the classes in a net's losses by a rule of `reproduce.balance` or a file, and keep the weights
    in the run's folder; `parts` are the data set's by blob.

    What a run that has begun counted is not counted again. FileError where it has other weights.
    """
    gains = {}
    for label in dict.fromkeys(layer.bottom[1] for layer in losses(net)):
        stem = out.resolve() / f"balance-{rule if rule in RULES else 'file'}-{label}"
        gains[label] = stem.with_suffix(".binaryproto")
        begun = gains[label].exists() and (out / LOG).exists()
        if begun and rule in RULES:
            continue
        weights = class_weights(rule, dataset, parts[label], step)
        matrix = gain_matrix(weights)
        if begun and gains[label].read_bytes() != matrix:
            raise FileError(str(gains[label]), "the run has other class weights", "the same",
                            "choose another --out")  # fmt: skip
        make_folder(out)
        write_class_weights(stem.with_suffix(".txt"), weights, dataset.class_names[parts[label]])
        with replace_file(gains[label], force=True) as temporary:
            temporary.write_bytes(matrix)
    balance_losses(net, gains)


def check_folder(out: Path) -> None:
    """FileError where `make_folder` could not make it; for the time before long work."""
    try:
        there = next(path for path in (out, *out.absolute().parents) if path.exists())
    except OSError as error:
        raise as_file_error(out, error) from None
    if not there.is_dir():
        raise FileError(str(out), "this is a file" if there == out else f"{there} is a file", "a folder")
    if not os.access(there, os.W_OK):
        raise FileError(str(out), f"nothing can be written to {there}", "a folder to write to")


def make_folder(out: Path) -> None:
    """Make the folder of a run. FileError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise as_file_error(out, error) from None


def score_net(name: str, form: Form) -> NetParameter:
    """The net with labels and loss that is scored."""
    return make_net(name, _fcn(name).splits[1], form=form)


def dataset_folder(folder: Path) -> str:
    """A folder as a run names it: absolute, so that it is found from anywhere."""
    return str(folder.resolve())


def set_fillers(net: NetParameter, kind: str) -> None:
    """Random weights by a filler where Caffe's would be zero. Score layers stay at zero."""
    for layer in net.layer:
        if layer.type == "Convolution" and not layer.name.startswith("score"):
            layer.convolution_param.weight_filler.CopyFrom(FillerParameter(type=kind))


def set_bn_fraction(net: NetParameter, fraction: float) -> None:
    """How much of its average each BatchNorm layer keeps in an iteration."""
    for layer in net.layer:
        if layer.type == "BatchNorm":
            layer.batch_norm_param.moving_average_fraction = fraction


def interpolation(name: str, form: Form) -> Weights:
    """The bilinear weights of a net's up-sampling layers, and nothing else."""
    layers = infer_shapes(make_net(name, form=form)).layers.values()
    up = [layer for layer in layers if layer.type == "Deconvolution"]
    return Weights({layer.name: [bilinear_weights(layer.params[0])] for layer in up})


def solver_of(name: str, changes: Sequence[str], seed: int | None = None) -> SolverParameter:
    """The published solver of a net with changes `field=value`, its net being train.prototxt.

    `seed` fixes what the net draws, where the changes do not.
    """
    solver = named_solver(name)
    if seed is not None:
        solver.random_seed = seed
    for unused in ("test_net", "test_iter", "test_interval", "test_initialization"):
        solver.ClearField(unused)
    solver.train_net = TRAIN
    return changed(solver, changes)


def adapted(solver: SolverParameter, momentum: str | None, batch: int, sample: float) -> SolverParameter:
    """The solver with a momentum as `parse_momentum` reads it, for `batch` times iter_size pictures, and with
    1 / `sample` times as many of them, rounded, where only that part of a loss's terms is kept."""
    result = SolverParameter()
    result.CopyFrom(solver)
    if momentum is not None:
        result.momentum = parse_momentum(momentum, batch * solver.iter_size)
    if sample < 1:
        result.iter_size = round(solver.iter_size / sample)
    return result


def changed(solver: SolverParameter, changes: Sequence[str]) -> SolverParameter:
    """The solver with fields set as `base_lr=1e-4`, `type=Adam`, `stepvalue=100,200`. InputError."""
    result = SolverParameter()
    result.CopyFrom(solver)
    for change in changes:
        name, equals, value = (part.strip() for part in change.partition("="))
        if not equals or name not in SolverParameter.DESCRIPTOR.fields_by_name:
            raise InputError("--set", repr(change), "FIELD=VALUE with a field of Caffe's SolverParameter")
        result.ClearField(name)
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        for text in (f"{name}: {value}", f"{name}: [{value}]", f'{name}: "{quoted}"'):
            try:
                result.MergeFrom(text_format.Parse(text, SolverParameter()))
                break
            except text_format.ParseError:
                continue
        else:
            raise InputError("--set", repr(change), f"a value of {name}")
    return result


def write_run(out: Path, name: str, form: Form, net: NetParameter, solver: SolverParameter) -> None:
    """Write the files of a run. FileError where another one has begun in this folder."""
    text = format_net(net)
    make_folder(out)
    try:
        there = (out / TRAIN).read_text(encoding="utf-8") if (out / LOG).exists() else text
    except OSError as error:
        raise as_file_error(out, error) from None
    if there != text:
        raise FileError(str(out / TRAIN), "another net or data set is trained here", "this one",
                        "choose another --out, or the same arguments")  # fmt: skip
    deploy = make_net(name, form=form)
    for file, content in ((TRAIN, text), (SOLVER, format_solver(solver)), (DEPLOY, format_net(deploy))):
        with replace_file(out / file, force=True) as temporary:
            temporary.write_text(content, encoding="utf-8")


def _fcn(name: str) -> Entry:
    entry = find(name)
    if entry.data is None:
        raise InputError(name, "a classifier", "an FCN", "see fcn net --list")
    return entry
