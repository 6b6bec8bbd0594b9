"""Which pictures `fcn segment` labels, and what it writes for each: folders are expanded, clashes refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from caffe_weights.errors import FileError
from caffe_weights.files import as_file_error

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)


@dataclass(frozen=True)
class Job:
    """A picture, the `number`-th, and where its label map and overlay go."""

    number: int
    image: str
    labels: Path
    overlay: Path | None


def expand(images: Iterable[str]) -> list[str]:
    """The pictures that are named, and for a folder those in it, by name; folders in it are left alone.

    FileError for a folder without pictures, or one that cannot be read.
    """
    found: list[str] = []
    for image in images:
        found += _pictures(Path(image)) if image and Path(image).is_dir() else [image]
    return found


def make_jobs(
    images: Sequence[str], out: Path, with_overlay: bool, force: bool, skip: bool = False
) -> tuple[list[Job], list[str]]:
    """What to write for each picture, by its stem; and with `skip` the pictures that have all of it already.

    FileError where two are one, where a picture would be replaced, or where a file exists without `force`.
    """
    jobs: list[Job] = []
    taken: dict[Path, str] = {}
    skipped: list[str] = []
    for image in images:
        stem = Path(image).stem
        labels, overlay = out / f"{stem}.png", out / f"{stem}_overlay.png" if with_overlay else None
        paths = [path for path in (labels, overlay) if path]
        for path in paths:
            _refuse_twins(path, image, taken)
        if skip and all(path.exists() and not _same(path, image) for path in paths):
            skipped.append(image)
            continue
        for path in paths:
            _refuse_loss(path, image, force or skip)
        jobs.append(Job(len(jobs), image, labels, overlay))
    return jobs, skipped


def _pictures(folder: Path) -> list[str]:
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise as_file_error(folder, error) from None
    found = [str(folder / name) for name in names
             if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")]  # fmt: skip
    if not found:
        raise FileError(str(folder), "no pictures in this folder", ", ".join(sorted(SUFFIXES)))
    return found


def _refuse_twins(path: Path, image: str, taken: dict[Path, str]) -> None:
    if path in taken:
        raise FileError(str(path), f"{taken[path]} and {image} would both be written here",
                        "pictures of different names")  # fmt: skip
    taken[path] = image


def _refuse_loss(path: Path, image: str, force: bool) -> None:
    if path.exists() and not force:
        raise FileError(str(path), "the file exists", do="pass --force to replace it")
    if _same(path, image):
        raise FileError(str(path), "the picture itself would be replaced", do="choose another --out")


def _same(path: Path, image: str) -> bool:
    return path.exists() and Path(image).exists() and path.samefile(image)
