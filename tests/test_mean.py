"""Mean files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from wire_bytes import blob, field, floats

from caffe_weights.errors import FormatError
from caffe_weights.mean import read_mean

BAD = {
    "empty": (b"", "an empty file"),
    "no image": (blob((3,), 1, 2, 3), "a blob of 3; wanted one image"),
    "two images": (blob((2, 1, 1, 1), 1, 2), "a blob of 2 x 1 x 1 x 1"),
    "cut": (blob((1, 1, 2), 1, 2)[:-1], "cut off or damaged|no binaryproto"),
    "no values": (field(5, floats()), "with 0 values"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_mean_is_refused(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    (tmp_path / "m.binaryproto").write_bytes(data)
    with pytest.raises(FormatError, match=message) as error:
        read_mean(tmp_path / "m.binaryproto")
    assert "\n" not in str(error.value)


def test_one_value_a_channel_is_a_mean(tmp_path: Path) -> None:
    (tmp_path / "m.binaryproto").write_bytes(blob((1, 3, 1, 1), 104, 117, 123))
    assert read_mean(tmp_path / "m.binaryproto").ravel().tolist() == [104, 117, 123]
