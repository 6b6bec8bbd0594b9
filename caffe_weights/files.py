"""Opening what is read and replacing what is written, with errors of one line.

An output appears under its name complete or not at all: it is written beside its place, in the same
folder and so on the same disk, and renamed when the writer is done. Follows no code of Caffe, which
writes in place and leaves half a file behind when the disk is full.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from caffe_weights.errors import FileError

PathLike = str | os.PathLike[str]

_REASONS = {
    errno.ENOENT: "no such file",
    errno.EISDIR: "this is a folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file grows over the limit of the system or the shell",
    errno.ENAMETOOLONG: "the file name is too long",
    errno.ELOOP: "the symbolic links go round in a circle",
}


def open_input(path: PathLike) -> BinaryIO:
    """The file, open for reading bytes; FileError when it is missing, unreadable or no regular file."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise FileError(os.fspath(path), _REASONS[errno.EISDIR], "a file")
        if not stat.S_ISREG(mode):
            raise FileError(os.fspath(path), "not a regular file", do="copy its content to one first")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        raise as_file_error(path, error) from None


@contextmanager
def replace_file(path: PathLike, force: bool = False) -> Iterator[Path]:
    """Write a file as a whole: yields the path of a temporary sibling, renamed to `path` at the end.

    The sibling exists already (empty) and ends like `path`, for writers that go by the extension. It is
    removed when anything is raised inside; a failure to write becomes a FileError. A symbolic link is
    followed, so the file it names is replaced. FileError before anything is written: `path` exists and
    `force` is false, is a folder or a device, or its folder is missing or not writable.
    """
    target = _checked_target(path, force)
    sibling, mode = _create_sibling(target, path)
    try:
        yield sibling
        if stat.S_IMODE(os.stat(sibling).st_mode) != mode:  # the writer made its own, private, file
            os.chmod(sibling, mode)
        os.replace(sibling, target)
    except BaseException as error:
        sibling.unlink(missing_ok=True)
        failure = _system_error(error)
        if failure is not None:
            raise as_file_error(_blamed(failure, sibling, path), failure) from None
        raise


def check_output(path: PathLike, force: bool = False) -> None:
    """FileError where `replace_file` could not write `path`; for the time before long work."""
    sibling, _ = _create_sibling(_checked_target(path, force), path)
    sibling.unlink()


def as_file_error(path: PathLike, error: Exception) -> FileError:
    """An OSError (or the ValueError of an impossible path) in this project's words."""
    if isinstance(error, FileError):
        return error
    reason = _REASONS.get(getattr(error, "errno", None) or 0)
    if reason is None:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
    return FileError(os.fspath(path).replace("\0", "\\0"), reason)


def _checked_target(path: PathLike, force: bool) -> Path:
    try:
        target = Path(os.path.realpath(path))
        if target.is_symlink():
            raise FileError(os.fspath(path), _REASONS[errno.ELOOP])
        if target.is_dir():
            raise FileError(os.fspath(path), "this is a folder", "the name of a file to write")
        if target.exists() and not target.is_file():
            raise FileError(os.fspath(path), "not a regular file", "the name of a file to write")
        if target.exists() and not force:
            raise FileError(os.fspath(path), "the file exists", do="pass --force to replace it")
        if not target.parent.is_dir():
            raise FileError(os.fspath(path), f"no folder {target.parent}", do="make it first")
    except (OSError, ValueError) as error:
        raise as_file_error(path, error) from None
    return target


def _create_sibling(target: Path, path: PathLike) -> tuple[Path, int]:
    """A new empty file beside `target`, with the permissions that the umask gives, and these."""
    sibling = target.with_name(f".{target.stem[:80]}.{os.urandom(4).hex()}{target.suffix}")
    try:
        descriptor = os.open(sibling, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.close(descriptor)
    except OSError as error:
        raise FileError(os.fspath(path), f"cannot be written, {as_file_error('', error)}") from None
    return sibling, mode


def _system_error(error: BaseException) -> OSError | None:
    """What the system said, also where a library made a RuntimeError of it: HDF5 on closing, torch.save."""
    if isinstance(error, OSError):
        return error
    if type(error) is not RuntimeError:
        return None
    if isinstance(error.__context__, OSError):
        return error.__context__
    number = re.search(r"\berrno = (\d+)", str(error))
    if number:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return OSError("cannot be written; is the disk full?") if "inline_container" in str(error) else None


def _blamed(error: OSError, sibling: Path, path: PathLike) -> PathLike:
    """The file an OSError is about: the output, unless the error names another one."""
    name = error.filename
    if isinstance(name, (str, os.PathLike)) and os.fspath(name) not in ("", str(sibling)):
        return os.fspath(name)
    return path
