"""Architecture files: what is written is read, what is wrong is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caffe_weights.errors import FileError, FormatError, InputError
from reproduce.nets.architecture import (
    PUBLISHED,
    Architecture,
    parse_architecture,
    read_architecture,
    write_architecture,
)


def test_a_file_is_readable_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_architecture(PUBLISHED, path)
    assert read_architecture(path) == PUBLISHED
    text = path.read_text()
    assert '"strides": [4, 4, 4, 8, 16, 8, 16, 16, 32, 32, 16, 8]' in text
    assert text.splitlines()[3] == '    [["H-2", "atrous 5x5"], ["H-1", "sep 3x3"]],'
    with pytest.raises(FileError, match="a.json"):
        write_architecture(PUBLISHED, path)
    write_architecture(PUBLISHED, path, force=True)


def changed(**changes: Any) -> dict[str, Any]:
    return {**PUBLISHED.as_dict(), **changes}


def with_edge(block: int, source: str, operation: str) -> dict[str, Any]:
    cell = PUBLISHED.as_dict()["cell"]
    cell[block - 1][0] = [source, operation]
    return changed(cell=cell)


BAD: list[tuple[Any, str]] = [
    (changed(strides=[4, 16]), "strides, cell 2: stride 16 after 4; wanted at most twice or half of it"),
    (changed(strides=[8, 8, 4, 16]), "strides, cell 4: stride 16 after 4; wanted at most twice"),
    (changed(strides=[16, 16]), "strides, cell 1: stride 16; wanted 4 or 8: the stem ends at stride 4"),
    (changed(strides=[4, 12]), "strides, cell 2: stride 12; wanted 4, 8, 16 or 32"),
    (changed(strides=[4, True]), "strides, cell 2: stride True; wanted 4, 8, 16 or 32"),
    (changed(strides=[4, [4]]), r"strides, cell 2: stride \[4\]; wanted 4, 8, 16 or 32"),
    (changed(strides=[]), "strides: no cells; wanted at least one"),
    (changed(strides=4), "strides: 4; wanted a list"),
    (with_edge(2, "block 2", "skip"),
     "cell, block 2: the input 'block 2', which is no earlier block; wanted H-1 or H-2 or block 1"),
    (with_edge(1, "block 4", "skip"), "cell, block 1: the input 'block 4', which is no earlier block"),
    (with_edge(3, "H-3", "skip"), "cell, block 3: the input 'H-3'; wanted H-1 or H-2 or block 1 or block 2"),
    (with_edge(5, "H-1", "sep 7x7"), "cell, block 5: the operation 'sep 7x7'; wanted sep 5x5 or sep 3x3"),
    (with_edge(5, "H-1", "zero"), "cell, block 5: the operation 'zero'; wanted "),
    (changed(cell=[]), "cell: no blocks; wanted at least one"),
    (changed(cell=[[["H-1", "skip"]]]), r"cell, block 1: \[\['H-1', 'skip'\]\]; wanted two pairs, as"),
    (changed(cell=[[["H-1", "skip"], ["H-1", 3]]]), "cell, block 1: .* wanted two pairs"),
    (changed(cell=[3]), "cell, block 1: 3; wanted two pairs"),
    (changed(filters=0), "filters: 0; wanted at least 1"),
    (changed(filters="20"), "filters: '20'; wanted a whole number"),
    (changed(filter=3), "architecture: the key 'filter'; wanted strides, cell, filters"),
    ({"strides": [4]}, "architecture: {'strides': .4.}; wanted an object with strides and cell"),
    ([1], "architecture: .1.; wanted an object"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_is_refused_and_where(values: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        parse_architecture(values)
    (tmp_path / "a.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"a.json: {message}"):
        read_architecture(tmp_path / "a.json")


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for data in (b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(FormatError, match="a.json: no JSON"):
            read_architecture(path)
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(FormatError, match="more than 1 MiB"):
        read_architecture(path)
    with pytest.raises(FileError, match="no such file"):
        read_architecture(tmp_path / "none.json")


def test_filters_are_20_where_none_are_given() -> None:
    values = PUBLISHED.as_dict()
    del values["filters"]
    assert parse_architecture(values) == PUBLISHED and PUBLISHED.channels(32) == 160
    assert Architecture((8,), PUBLISHED.cell, 3).levels == (1,)
