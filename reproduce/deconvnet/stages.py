"""The training data of DeconvNet's two stages, made from a VOC or SBD tree, or one without instance maps.

The paper (section 4.1) as recalled, not checked: stage 1 is a crop of the tight box of each object, 1.2 times
as large, on which all but the centred object's class is background; stage 2 are proposals that overlap an
object, enlarged alike, with all labels. Rare classes are balanced by repeating. The lists themselves and the
code that made them were not released: the overlap that counts, how often a line is repeated, and that void
stays void are ours. Files are as `reproduce.deconvnet.seg_data` reads them.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from caffe_weights.errors import FormatError, InputError
from caffe_weights.files import PathLike, as_file_error, replace_file
from reproduce.data.base import VOID, Dataset
from reproduce.data.files import read_labels, read_mat, whole
from reproduce.deconvnet.boxes import CONTEXT, enlarged, propose
from reproduce.deconvnet.seg_data import cut_array
from reproduce.visualize import write_label_png

STAGE_1, STAGE_2 = "stage_1_train_imgset", "stage_2_train_imgset"  # the authors' folders of lists
GROUNDS = ("background", "ground")
PROPOSALS = 500  # sliding windows a picture
JPEG_QUALITY = 95
Step = Callable[[], None]


@dataclass(frozen=True)
class Instance:
    """One object: its class, and its tight box x1, y1, x2, y2, both ends belonging to it."""

    label: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Line:
    """A line of a list and the classes, ground apart, that can be seen there."""

    text: str
    labels: frozenset[int]


def make_stage_1(
    dataset: Dataset, out: Path, name: str = "train", repeats: int = 1, step: Step | None = None
) -> int:
    """Write the crops of all objects of a split, their labels, and the list `name`; the number of its lines.

    Lines of rare classes are repeated, at most `repeats` times. InputError, FileError, FormatError.
    """
    _check_ground(dataset)
    lines = []
    for identity in dataset.ids:
        image, labels = dataset.image(identity), dataset.label(identity)
        for number, instance in enumerate(instances(dataset, identity, labels)):
            box = enlarged(np.array([instance.box]), CONTEXT)[0]
            alone = np.where((labels == instance.label) | (labels == VOID), labels, 0)
            picture = _name(out, "crops", f"{identity}_{number}", dataset.path(dataset.inputs[0], identity))
            label = _name(out, "crop_labels", f"{identity}_{number}", "x.png")
            _write_picture(cut_array(image, box, 0), Path(f"{out}{picture}"))
            write_label_png(cut_array(alone, box, VOID), f"{out}{label}", force=True)
            lines.append(Line(f"{picture} {label}", frozenset({instance.label})))
        if step is not None:
            step()
    return _write_list(out / STAGE_1 / f"{name}.txt", lines, repeats)


def make_stage_2(
    dataset: Dataset,
    out: Path,
    source: PathLike = "auto",
    name: str = "train",
    overlap: float = 0.5,
    repeats: int = 1,
    step: Step | None = None,
    edge_model: PathLike | None = None,
) -> int:
    """Write pictures, labels and the list of windows, the proposals that overlap an object; how many lines.

    `source` and `edge_model` are those of `propose`; `overlap` is the intersection over union that a
    proposal has at least with an object's enlarged box. Pictures are linked where the disk allows it.
    """
    if not 0 < overlap <= 1:
        raise InputError("overlap", f"{overlap:g}", "above 0, up to 1")
    lines = []
    for identity in dataset.ids:
        original = dataset.existing(dataset.inputs[0], identity)
        labels = dataset.label(identity)
        picture, label = _name(out, "images", identity, original), _name(out, "labels", identity, "x.png")
        _link(original, Path(f"{out}{picture}"))
        write_label_png(labels, f"{out}{label}", force=True)
        found = instances(dataset, identity, labels)
        boxes = propose(source, dataset.image(identity), identity, PROPOSALS, edge_model).boxes
        objects = enlarged(np.array([item.box for item in found]).reshape(-1, 4), CONTEXT)
        for box in boxes[overlaps(boxes, objects).max(axis=1, initial=0) >= overlap]:
            seen = np.unique(cut_array(labels, box, VOID))
            shown = frozenset(int(value) for value in seen if value not in (0, VOID))
            lines.append(Line(f"{picture} {label} " + " ".join(str(int(value)) for value in box), shown))
        if step is not None:
            step()
    return _write_list(out / STAGE_2 / f"{name}.txt", lines, repeats)


def instances(dataset: Dataset, identity: str, labels: np.ndarray) -> list[Instance]:
    """The objects of a picture: VOC's and SBD's own; elsewhere each connected region of a class is one."""
    reader = {"voc": _voc_objects, "sbd": _sbd_objects}.get(dataset.kind, _regions)
    return [Instance(label, _tight(mask)) for label, mask in reader(dataset, identity, labels)]


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each of N boxes with each of M others, N x M."""
    first, second = boxes[:, np.newaxis], others[np.newaxis]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2]) + 1
    both = np.clip(sides, 0, None).prod(axis=-1)
    areas = [(array[..., 2:] - array[..., :2] + 1).prod(axis=-1) for array in (first, second)]
    return np.asarray(both / (areas[0] + areas[1] - both))


def repeated(lines: Sequence[Line], most: int) -> list[str]:
    """Each line as often as its rarest class is rarer than the most frequent one, rounded, at most `most`."""
    counts = Counter(label for line in lines for label in line.labels)
    top = max(counts.values(), default=1)
    result = []
    for line in lines:
        rarest = min((counts[label] for label in line.labels), default=top)
        result += [line.text] * max(1, min(most, round(top / rarest)))
    return result


Masks = Iterator[tuple[int, np.ndarray]]


def _voc_objects(dataset: Dataset, identity: str, labels: np.ndarray) -> Masks:
    """SegmentationObject: an index an object; its class is the one of most of its pixels."""
    path = dataset.root / "SegmentationObject" / f"{identity}.png"
    objects = read_labels(path)
    _same_size(path, objects, labels)
    for index in np.unique(objects):
        mask = (objects == index) & (labels != 0) & (labels != VOID)
        if index not in (0, VOID) and mask.any():
            yield int(np.bincount(labels[mask]).argmax()), mask


def _sbd_objects(dataset: Dataset, identity: str, labels: np.ndarray) -> Masks:
    """inst/<id>.mat: an index an object, and the class of each."""
    path = dataset.root / "inst" / f"{identity}.mat"
    objects = whole(read_mat(path, "GTinst", "Segmentation"), path)
    _same_size(path, objects, labels)
    classes = read_mat(path, "GTinst", "Categories").reshape(-1)
    for index in range(1, int(objects.max(initial=0)) + 1):
        mask = objects == index
        if mask.any():
            if index > len(classes) or not 0 < classes[index - 1] < len(dataset.classes):
                raise FormatError(str(path), f"no class of object {index}", "one in GTinst.Categories")
            yield int(classes[index - 1]), mask


def _regions(dataset: Dataset, identity: str, labels: np.ndarray) -> Masks:
    from scipy import ndimage

    for label in np.unique(labels):
        if label in (0, VOID):
            continue
        regions, count = ndimage.label(labels == label, structure=np.ones((3, 3)))
        for index in range(1, count + 1):
            yield int(label), regions == index


def _tight(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _check_ground(dataset: Dataset) -> None:
    if dataset.classes[0] not in GROUNDS:
        raise InputError(f"data set {dataset.kind}", f"class 0 is {dataset.classes[0]}", "a background",
                         "stage 1 puts other objects there; make stage 2 alone, by --stage 2")  # fmt: skip


def _same_size(path: Path, objects: np.ndarray, labels: np.ndarray) -> None:
    if objects.shape != labels.shape:
        sizes = ["x".join(map(str, array.shape)) for array in (objects, labels)]
        raise FormatError(str(path), f"{sizes[0]} pixels", f"{sizes[1]}, as the label map")


def _name(out: Path, folder: str, stem: str, like: PathLike) -> str:
    """A file's name as in a list, from '/'; its folder is made."""
    try:
        (out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise as_file_error(out / folder, error) from None
    return f"/{folder}/{stem}{Path(like).suffix.lower()}"


def _write_picture(image: np.ndarray, path: Path) -> None:
    jpeg = path.suffix in (".jpg", ".jpeg")
    with replace_file(path, force=True) as temporary:
        how = {"quality": JPEG_QUALITY, "subsampling": 0} if jpeg else {}
        Image.fromarray(image).save(temporary, "JPEG" if jpeg else "PNG", **how)


def _link(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    try:
        target.unlink(missing_ok=True)
        os.link(source, target)
    except OSError:
        with replace_file(target, force=True) as temporary:
            shutil.copyfile(source, temporary)


def _write_list(path: Path, lines: Sequence[Line], repeats: int) -> int:
    if not lines:
        raise InputError(str(path), "no line: no object, or no proposal that overlaps one", "some",
                         "give other proposals, or a smaller --overlap")  # fmt: skip
    texts = repeated(lines, repeats)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path, force=True) as temporary:
        temporary.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return len(texts)
