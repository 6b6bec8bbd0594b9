"""The published nets by name: `make_net("voc-fcn8s", "train")`. Importing this brings in no torch.

A net is a function from a split and a `Form` to a NetParameter; `NETS` says which, with what belongs to its
name: splits, solver recipe, and the nets whose weights it starts from. Names of FCNs are the folders of
shelhamer/fcn.berkeleyvision.org at 1305c73; of what it did not ship, names in the same manner.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from caffe_weights.caffe_pb2 import NetParameter, SolverParameter
from caffe_weights.errors import NetError
from reproduce.nets import data, solvers
from reproduce.nets.architecture import FILTERS
from reproduce.nets.architecture import PUBLISHED as PUBLISHED_ARCHITECTURE
from reproduce.nets.autodeeplab import auto_deeplab
from reproduce.nets.blocks import PUBLISHED, Form
from reproduce.nets.caffenet import alexnet, caffenet, fcn_alexnet
from reproduce.nets.data import CHANNELS, Data
from reproduce.nets.deconvnet import CLASSES, RELEASED, SOLVERS, deconvnet, deconvnet_solver
from reproduce.nets.fcn import early_fusion, late_fusion, pool4_alone, two_headed, vgg_fcn
from reproduce.nets.googlenet import fcn_googlenet, googlenet
from reproduce.nets.resnet import fcn_resnet34, resnet34
from reproduce.nets.solvers import Recipe, make_solver
from reproduce.nets.vgg import vgg16
from surgery.deploy import deploy_net

__all__ = ["NETS", "Entry", "Form", "find", "make_net", "named_solver"]

Build = Callable[..., NetParameter]  # (split, form), or of a net with splits of its own (split, form, side)

DEPLOY = "deploy"
SIZE = (500, 500)  # of the published deploy net


@dataclass(frozen=True)
class Own:
    """What a net has that is built whole in each of its splits, data layers included, for square crops.

    `solvers` are the splits that `solver` has one for.
    """

    splits: tuple[str, ...]
    classes: int
    solvers: tuple[str, ...]
    solver: Callable[[str], SolverParameter]


@dataclass(frozen=True)
class Entry:
    """One net: `build(split, form)`, what it is, and for an FCN its data, solver recipe and predecessors.

    `own`: it is no FCN and no classifier, but has splits of its own.

    `starts_from` names one net, or one for each stream. `published`: its prototxts were. `size` is that of
    the deploy form's pictures, where none is given.
    """

    build: Build
    words: str
    data: Data | None = None
    recipe: Recipe | None = None
    starts_from: tuple[str, ...] = ()
    size: tuple[int, int] = SIZE
    own: Own | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """What `make_net` takes as split."""
        if self.own:
            return self.own.splits
        return (*self.data.splits, DEPLOY) if self.data else (DEPLOY,)

    @property
    def published(self) -> bool:
        """Whether the reference shipped this net's prototxts."""
        return self.own is not None or (self.recipe is not None and self.recipe.published)

    @property
    def classes(self) -> int | None:
        """Published number of classes that it labels pixels with; None of a classifier."""
        return self.own.classes if self.own else self.data.classes if self.data else None


def make_net(
    name: str, split: str = DEPLOY, size: tuple[int, int] | None = None, form: Form = PUBLISHED
) -> NetParameter:
    """The net `name` for a split, its crops filled; a new message.

    `size` (height, width) is that of the deploy form's inputs, by default the entry's or a classifier's own.
    NetError for an unknown name or split, or a size that does not fit.
    """
    entry = find(name)
    if form.architecture is not None and not name.startswith("auto-deeplab"):
        raise NetError(name, "an architecture was given", "none", "only Auto-DeepLab has one")
    if split not in entry.splits:
        near = " or ".join(entry.splits)
        raise NetError(f"split {split}", f"{name} has none", near, "choose one of its splits")
    if entry.own:
        if size is not None and size[0] != size[1]:
            raise NetError("size", f"{size[0]}x{size[1]}", f"a square: {name} takes crops")
        return entry.build(split, form, *([size[0]] if size else []))
    if split != DEPLOY:
        if size is not None:
            raise NetError(f"split {split}", "a size was given", f"none but for {DEPLOY}",
                           "its data layer takes pictures as they come")  # fmt: skip
        return entry.build(split, form)
    if entry.data is None:
        return _classifier(entry, size, form)
    net = entry.build(next(iter(entry.data.splits)), form)
    shapes = {top: (1, CHANNELS[top], *(size or entry.size)) for top in entry.data.inputs}
    return deploy_net(net, shapes, keep_dropout=False)


def named_solver(name: str, split: str | None = None) -> SolverParameter:
    """The solver of the FCN `name`, or of a split of deconvnet. NetError for a net that has none."""
    entry = find(name)
    if entry.own:
        wanted = " or ".join(entry.own.solvers)
        if split not in entry.own.solvers:
            found = f"split {split}" if split else "no split"
            raise NetError(f"solver of {name}", found, wanted, "name the split")
        return entry.own.solver(split)
    if split is not None:
        raise NetError(f"solver of {name}", f"split {split}", "none: it has one solver")
    if entry.recipe is None or entry.data is None:
        have = ", ".join(key for key, other in NETS.items() if other.recipe or other.own)
        raise NetError(name, "a classifier, which has no solver here", f"one of {have}")
    train, score = entry.data.splits
    return make_solver(entry.recipe, (train, score))


def find(name: str) -> Entry:
    """The entry of a net; NetError with the nearest names."""
    if name in SEARCHED:
        return SEARCHED[name]
    if name not in NETS:
        near = difflib.get_close_matches(name, NETS, n=3)
        raise NetError(f"net {name}", "not a net of this toolkit",
                       " or ".join(near) or "one of " + ", ".join(NETS), "see fcn net --list")  # fmt: skip
    return NETS[name]


def _classifier(entry: Entry, size: tuple[int, int] | None, form: Form) -> NetParameter:
    net = entry.build(DEPLOY, form)
    own = tuple(net.layer[0].input_param.shape[0].dim[2:])
    if size is not None and size != own:
        do = "fcn convert-weights --convolutional cuts it for other sizes"
        raise NetError("size", f"{size[0]}x{size[1]}", f"{own[0]}x{own[1]}, the classifier's own", do)
    return net


def _vgg(source: Data, stride: int, recipe: Recipe, start: str, words: str, **options: bool) -> Entry:
    build: Build = partial(vgg_fcn, source, stride, **options)  # type: ignore[arg-type]
    return Entry(build, words, source, recipe, (start,))


def _two(stride: int, recipe: Recipe, start: str) -> Entry:
    words = f"SIFT Flow, 33 semantic and 3 geometric classes, {stride}s"
    return Entry(partial(two_headed, data.SIFTFLOW, stride), words, data.SIFTFLOW, recipe, (start,))


def _ours(build: Callable[..., NetParameter], stride: int, recipe: Recipe, start: str, words: str) -> Entry:
    return Entry(partial(build, data.VOC, stride), words, data.VOC, recipe, (start,))


def _auto_deeplab(filters: int | None, words: str) -> Entry:
    architecture = PUBLISHED_ARCHITECTURE if filters else None
    build = partial(auto_deeplab, architecture, data.CITYSCAPES, filters=filters)
    return Entry(build, words, data.CITYSCAPES, solvers.AUTO_DEEPLAB, size=(1025, 2049))


_GOOGLENET = solvers.ours(solvers.VOC_ALEXNET, 5e-5)
_RESNET = solvers.ours(solvers.VOC_ALEXNET)

NETS: dict[str, Entry] = {
    "vgg16": Entry(vgg16, "VGG16 classifier"),
    "caffenet": Entry(caffenet, "CaffeNet classifier"),
    "alexnet": Entry(alexnet, "AlexNet classifier"),
    "googlenet": Entry(googlenet, "GoogLeNet classifier"),
    "resnet34": Entry(resnet34, "ResNet-34 classifier"),
    "voc-fcn32s": _vgg(data.VOC, 32, solvers.VOC_32S, "vgg16", "PASCAL VOC, 21 classes, 32s"),
    "voc-fcn16s": _vgg(data.VOC_DEEPER, 16, solvers.VOC_16S, "voc-fcn32s", "PASCAL VOC, 21 classes, 16s"),
    "voc-fcn8s": _vgg(data.VOC, 8, solvers.VOC_8S, "voc-fcn16s", "PASCAL VOC, 21 classes, 8s"),
    "voc-fcn8s-atonce": _vgg(
        data.VOC, 8, solvers.VOC_AT_ONCE, "vgg16", "PASCAL VOC, 8s learned at once", at_once=True),
    "voc-fcn-alexnet": Entry(
        partial(fcn_alexnet, data.VOC), "PASCAL VOC, FCN-AlexNet", data.VOC, solvers.VOC_ALEXNET,
        ("caffenet",)),
    "nyud-fcn32s-color": _vgg(data.NYUD_COLOR, 32, solvers.NYUD, "vgg16", "NYUD, 40 classes, colour"),
    "nyud-fcn32s-hha": _vgg(data.NYUD_HHA, 32, solvers.NYUD, "vgg16", "NYUD, 40 classes, HHA"),
    "nyud-fcn32s-color-d": Entry(
        partial(early_fusion, data.NYUD_COLOR_DEPTH), "NYUD, 40 classes, colour and depth, fused early",
        data.NYUD_COLOR_DEPTH, solvers.NYUD, ("vgg16",)),
    "nyud-fcn32s-color-hha": Entry(
        partial(late_fusion, data.NYUD_COLOR_HHA), "NYUD, 40 classes, colour and HHA, fused late",
        data.NYUD_COLOR_HHA, solvers.NYUD_FUSED, ("nyud-fcn32s-color", "nyud-fcn32s-hha")),
    "siftflow-fcn32s": _two(32, solvers.SIFTFLOW_32S, "vgg16"),
    "siftflow-fcn16s": _two(16, solvers.SIFTFLOW_16S, "siftflow-fcn32s"),
    "siftflow-fcn8s": _two(8, solvers.SIFTFLOW_8S, "siftflow-fcn16s"),
    "pascalcontext-fcn32s": _vgg(
        data.PASCAL_CONTEXT, 32, solvers.CONTEXT_32S, "vgg16", "PASCAL-Context, 60 classes, 32s"),
    "pascalcontext-fcn16s": _vgg(
        data.PASCAL_CONTEXT, 16, solvers.CONTEXT_16S, "pascalcontext-fcn32s",
        "PASCAL-Context, 60 classes, 16s"),
    "pascalcontext-fcn8s": _vgg(
        data.PASCAL_CONTEXT, 8, solvers.CONTEXT_8S, "pascalcontext-fcn16s", "PASCAL-Context, 60 classes, 8s"),
    "deconvnet": Entry(
        deconvnet, "PASCAL VOC, DeconvNet, crops of 224 x 224",
        own=Own(tuple(RELEASED), CLASSES, tuple(SOLVERS), deconvnet_solver)),
    "voc-fcn-googlenet": _ours(
        fcn_googlenet, 32, _GOOGLENET, "googlenet", "PASCAL VOC, FCN-GoogLeNet, 32s; never shipped"),
    "voc-fcn-googlenet-16s": _ours(
        fcn_googlenet, 16, solvers.ours(_GOOGLENET, 5e-7), "voc-fcn-googlenet",
        "PASCAL VOC, FCN-GoogLeNet, 16s; ours"),
    "voc-fcn-googlenet-8s": _ours(
        fcn_googlenet, 8, solvers.ours(_GOOGLENET, 5e-9), "voc-fcn-googlenet-16s",
        "PASCAL VOC, FCN-GoogLeNet, 8s; ours"),
    "voc-fcn32s-fixed": _vgg(
        data.VOC, 32, solvers.ours(solvers.VOC_32S), "vgg16", "ablation: only the score layer learns",
        fixed=True),
    "voc-fcn-pool4": Entry(
        partial(pool4_alone, data.VOC), "ablation: scores of pool4 alone", data.VOC,
        solvers.ours(solvers.VOC_16S), ("voc-fcn32s",)),
    "voc-fcn8s-learned": _vgg(
        data.VOC, 8, solvers.ours(solvers.VOC_8S), "voc-fcn16s",
        "ablation: 8s, interpolation between skips learned (CVPR paper)", learned=True),
    "voc-fcn32s-resnet34": _ours(
        fcn_resnet34, 32, _RESNET, "resnet34", "PASCAL VOC, FCN on ResNet-34, 32s; ours"),
    "voc-fcn16s-resnet34": _ours(
        fcn_resnet34, 16, solvers.ours(_RESNET, 1e-6), "voc-fcn32s-resnet34",
        "PASCAL VOC, FCN on ResNet-34, 16s; ours"),
    "voc-fcn8s-resnet34": _ours(
        fcn_resnet34, 8, solvers.ours(_RESNET, 1e-8), "voc-fcn16s-resnet34",
        "PASCAL VOC, FCN on ResNet-34, 8s; ours"),
    **{f"auto-deeplab-{size}": _auto_deeplab(filters, f"Cityscapes, 19 classes, Auto-DeepLab-{size.upper()}")
       for size, filters in FILTERS.items()},
}  # fmt: skip

# Nets that need an architecture (`Form.architecture`): by name like the others, but not listed.
SEARCHED = {"auto-deeplab": _auto_deeplab(None, "Cityscapes, 19 classes, Auto-DeepLab of an architecture")}
