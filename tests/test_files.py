from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path

import pytest
import torch

from caffe_weights.errors import FileError
from caffe_weights.files import open_input, replace_file


def test_the_file_appears_complete_and_alone(tmp_path: Path) -> None:
    out = tmp_path / "a.npz"
    with replace_file(out) as sibling:
        assert sibling.parent == tmp_path and sibling.suffix == ".npz" and not out.exists()
        sibling.write_bytes(b"new")
    assert out.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with replace_file(tmp_path / "a") as sibling:
            sibling.unlink()
            sibling.touch(0o600)  # as writers do that rename a private file of their own
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_existing_output_is_kept_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "a"
    out.write_bytes(b"old")
    with pytest.raises(FileError, match="the file exists; pass --force to replace it"), replace_file(out):
        pass
    assert out.read_bytes() == b"old"
    with replace_file(out, force=True) as sibling:
        sibling.write_bytes(b"new")
    assert out.read_bytes() == b"new"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, failure: type[BaseException]) -> None:
    out = tmp_path / "a"
    out.write_bytes(b"old")
    with pytest.raises(failure), replace_file(out, force=True) as sibling:
        _write_half(sibling, failure)
    assert out.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def _write_half(path: Path, failure: type[BaseException]) -> None:
    path.write_bytes(b"half")
    raise failure


def test_a_full_disk_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught, replace_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(caught.value) == f"{tmp_path / 'a'}: no space left on the disk"
    assert os.listdir(tmp_path) == []


def test_torchs_error_on_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, old[1]))
    try:
        with pytest.raises(FileError) as caught, replace_file(tmp_path / "a.pt") as sibling:
            torch.save({"a": torch.zeros(10_000)}, sibling)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert str(caught.value) == f"{tmp_path / 'a.pt'}: cannot be written; is the disk full?"
    assert os.listdir(tmp_path) == []


def test_an_error_about_another_file_names_that_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="other: no such file"), replace_file(tmp_path / "a"):
        (tmp_path / "other").read_bytes()


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replace_file(tmp_path / "link", force=True) as sibling:
        sibling.write_bytes(b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "round").symlink_to(tmp_path / "round")
    cases: list[tuple[Path | str, str]] = [
        (tmp_path, "this is a folder"),
        (tmp_path / "missing" / "a", "no folder .*missing; make it first"),
        (tmp_path / "file" / "a", "no folder"),
        (Path(os.devnull), "not a regular file"),
        (tmp_path / ("n" * 300), "too long"),
        ("a\0b", "null"),
        (tmp_path / "round", "the symbolic links go round in a circle"),
    ]
    for bad, words in cases:
        with pytest.raises(FileError, match=words), replace_file(bad, force=True):
            raise AssertionError("must not get here")
    assert sorted(os.listdir(tmp_path)) == ["file", "round"]


def test_inputs_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cases: list[tuple[Path | str, str]] = [
        (tmp_path / "missing", "missing: no such file$"),
        (tmp_path, "this is a folder; wanted a file"),
        (tmp_path / "pipe", "not a regular file"),
        ("a\0b", "null"),
    ]
    for bad, words in cases:
        with pytest.raises(FileError, match=words):
            open_input(bad)


def test_an_input_opens(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"bytes")
    with open_input(str(tmp_path / "a")) as file:
        assert file.read() == b"bytes"
