from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from caffe_weights.errors import WeightsError
from caffe_weights.weights import ABSENT, Weights, is_absent
from surgery.transplant import transplant

SHAPES = {"conv1": [(4, 3, 2, 2), (4,)], "relu1": [], "fc6": [(5, 16), (5,)]}


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def source(**changes: list[np.ndarray]) -> Weights:
    blobs = {"conv1": [ramp(4, 3, 2, 2), ramp(4)], "fc6": [ramp(5, 16), ramp(5)]}
    return Weights({**blobs, **changes})


def test_equal_nets_are_copied_bit_for_bit_in_the_target_order() -> None:
    before = Weights(dict(reversed(list(source().items()))), source="a.caffemodel")
    result, report = transplant(before, SHAPES)
    assert list(result) == ["conv1", "fc6"]
    assert result.source == "a.caffemodel"
    for name, blobs in source().items():
        assert all(np.array_equal(x, y) for x, y in zip(result[name], blobs, strict=True))
    assert report.copied == ["conv1.weight", "conv1.bias", "fc6.weight", "fc6.bias"]
    assert not (report.coerced)
    assert not (report.dropped)
    assert not (report.missing)
    assert not (report.legacy)
    assert not (report.renamed)


def test_large_blobs_are_not_copied() -> None:
    before = source()
    result, _ = transplant(before, {**SHAPES, "fc6": [(5, 4, 2, 2), (5,)]}, coerce=True)
    assert all(np.shares_memory(result["fc6"][i], before["fc6"][i]) for i in range(2))


def test_coercion_keeps_the_order_of_values_and_is_reported() -> None:
    result, report = transplant(source(), {**SHAPES, "fc6": [(5, 4, 2, 2), (5,)]}, coerce=True)
    assert result["fc6"][0].shape == (5, 4, 2, 2)
    assert result["fc6"][0].ravel().tolist() == list(range(80))
    assert report.as_dict()["coerced"] == [{"blob": "fc6.weight", "from": [5, 16], "to": [5, 4, 2, 2]}]
    assert "coerced fc6.weight: 5x16 to 5x4x2x2" in str(report)


def test_legacy_shapes_pass_when_their_leading_sizes_are_ones() -> None:
    old = source(fc6=[ramp(1, 1, 5, 16), ramp(1, 1, 1, 5)])
    result, report = transplant(old, SHAPES)
    assert [blob.shape for blob in result["fc6"]] == [(5, 16), (5,)]
    assert report.legacy == ["fc6.weight", "fc6.bias"]
    assert not report.coerced
    scalar, _ = transplant({"prelu": [ramp(1, 1, 1, 1)]}, {"prelu": [()]})
    assert scalar["prelu"][0].shape == ()
    with pytest.raises(WeightsError, match="shape 5x16x1x1; wanted 5x16; coerce=True"):
        transplant(source(fc6=[ramp(5, 16, 1, 1), ramp(5)]), SHAPES)
    with pytest.raises(WeightsError, match="shape 1x1x5x16; wanted 5x4x2x2; coerce=True"):
        transplant(old, {**SHAPES, "fc6": [(5, 4, 2, 2), (5,)]})


def test_two_streams_by_suffix_and_rename() -> None:
    target = {"conv1_hha": [(4, 3, 2, 2), (4,)], "fc": [(5, 16), (5,)]}
    result, report = transplant(source(), target, suffix="_hha", rename={"fc6": "fc"})
    assert list(result) == ["conv1_hha", "fc"]
    assert report.renamed == {"conv1": "conv1_hha", "fc6": "fc"}
    assert "renamed fc6 to fc" in str(report)


def test_what_the_target_lacks_is_dropped_on_request() -> None:
    target: dict[str, Any] = {"conv1": [(4, 3, 2, 2)]}
    result, report = transplant(source(), target, drop=True)
    assert list(result) == ["conv1"]
    assert len(result["conv1"]) == 1
    assert report.dropped == ["conv1.bias", "fc6.weight", "fc6.bias"]


def test_what_the_source_lacks_is_missing_on_request() -> None:
    result, report = transplant(
        source(conv1=[ramp(4, 3, 2, 2)]), {**SHAPES, "score": [(2, 5)]}, allow_missing=True
    )
    assert report.missing == ["conv1.bias", "score.weight"]
    assert "score" not in result
    assert len(result["conv1"]) == 1


def test_blobs_kept_by_another_layer_stay_absent() -> None:
    result, report = transplant(source(fc6=[ABSENT, ramp(5)]), SHAPES)
    assert is_absent(result["fc6"][0])
    assert report.absent == ["fc6.weight"]


def test_layers_without_blobs_do_not_count() -> None:
    _, report = transplant(source(data=[], relu9=[]), SHAPES)
    assert len(report.copied) == 4
    assert not report.dropped


def test_the_report_is_plain_data() -> None:
    report = transplant(source(), {**SHAPES, "fc6": [(16, 5), (5,)]}, coerce=True)[1]
    assert json.loads(json.dumps(report.as_dict())) == {
        "copied": ["conv1.weight", "conv1.bias", "fc6.bias"], "legacy": [], "dropped": [], "missing": [],
        "coerced": [{"blob": "fc6.weight", "from": [5, 16], "to": [16, 5]}], "absent": [], "renamed": {},
    }  # fmt: skip


ERRORS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"fc6": [(5, 17), (5,)]}, {}, "blob fc6.weight: shape 5x16 with 80 values; wanted 5x17 with 85"),
    ({"fc6": [(5, 17), (5,)]}, {"coerce": True}, "blob fc6.weight: shape 5x16 with 80 values; wanted 5x17"),
    ({"fc6": [(16, 5), (5,)]}, {}, "blob fc6.weight: shape 5x16; wanted 16x5; coerce=True reshapes"),
    ({"fc6": [(5, 16)]}, {}, "blob fc6.bias: no blob of this name in the target; wanted the same blobs"),
    ({"fc6": []}, {}, "blob fc6.weight: no blob of this name in the target (and 1 more: fc6.bias)"),
    ({"score": [(2, 5)]}, {}, "blob score.weight: no blob of this name in the source; wanted the same blobs"),
    ({}, {"rename": {"fc7": "x"}}, "rename fc7: no such layer in the source; wanted one of conv1, fc6"),
    ({}, {"rename": {"fc6": "conv1"}}, "layer conv1: both conv1 and fc6 would go there; wanted one"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "options", "message"), ERRORS)
def test_misfits_are_errors_that_name_the_blob(
    target: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightsError, match=re.escape(message)):
        transplant(source(), {**SHAPES, **target}, **options)


def test_errors_name_the_file() -> None:
    weights = Weights(source(), source="old.caffemodel")
    with pytest.raises(WeightsError, match=r"^old\.caffemodel: blob score\.weight: "):
        transplant(weights, {**SHAPES, "score": [(2, 5)]})
