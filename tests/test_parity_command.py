"""`fcn parity`: exit codes, its JSON, its page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from caffe_nets import colours_net, save_net, set_blobs
from cli_helpers import Fcn, make_models, refused, run_in


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    """net.* as in cli_helpers; other.caffemodel swaps two classes; evil.* has a name that is markup."""
    make_models(tmp_path)
    other = colours_net()
    set_blobs(other, "score", [np.eye(3)[[1, 0, 2]].reshape(3, 3, 1, 1)])
    save_net(tmp_path, other, "other")
    evil = colours_net()
    evil.layer[1].name = evil.layer[1].top[0] = "<script>alert(1)</script>&"
    save_net(tmp_path, evil, "evil")
    return run_in(tmp_path, monkeypatch)


def test_agreement_exits_with_0(fcn: Fcn) -> None:
    result = fcn("parity", "net.prototxt", "net.caffemodel", "--against", "float64", "--input", "x.png")
    assert result.exit_code == 0, result.output
    assert "agree: 2 of 2 compared blobs" in result.stdout


def test_disagreement_exits_with_1_and_names_the_layer(fcn: Fcn) -> None:
    result = fcn("parity", "net.prototxt", "net.caffemodel", "--against", "self",
                 "--against-weights", "other.caffemodel", "--input", "x.png")  # fmt: skip
    assert result.exit_code == 1
    assert "guilty: score (Convolution)" in result.stdout
    assert "its inputs still agreed (0)" in result.stdout
    assert "parameter 0 differs between the two sides" in result.stdout
    assert "labels of score: 3 of 4 flipped" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--against", "nobody"), ("--against", "opencv")),
        (("--against", "caffe:no-such-python"), ("no such program",)),
        (("--against", "blobs:absent.npz"), ("absent.npz",)),
        (("--against", "float64", "--against-net", "absent.prototxt"), ("absent.prototxt",)),
        (("--against", "float64", "--against-net", "dense.prototxt"), ("layer ip",)),
        (("--against", "float64", "--tolerance", "0"), ("--tolerance",)),
        (("--against", "float64", "--html", "no/such/page.html"), ("page.html",)),
    ],
)
def test_what_could_not_be_compared_exits_with_2(
    fcn: Fcn, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(fcn("parity", "net.prototxt", "net.caffemodel", *arguments), *words)


def test_json_has_the_keys_that_help_names(fcn: Fcn) -> None:
    result = fcn("parity", "net.prototxt", "net.caffemodel", "--against", "self", "--json", "--backward",
                 "--against-weights", "other.caffemodel")  # fmt: skip
    report = json.loads(result.stdout)
    assert report["passed"] is False
    assert report["guilty"]["layer"] == "score"
    assert report["guilty"]["inputs_agreed"] is True
    text = fcn("parity", "--help").stdout
    described = set(re.findall(r"\w+", text[text.index("Keys of --json") :]))
    blob = report["blobs"][-1]
    parts = (report, report["guilty"], blob, blob["difference"], blob["flips"])
    assert {key for part in parts for key in part} <= described


def test_a_converted_net_is_held_against_its_original(fcn: Fcn) -> None:
    """The fully connected layer of dense.* cut to a convolution: its blob has two more axes of length 1."""
    made = fcn("convert-weights", "dense.caffemodel", "cut.caffemodel", "--net", "dense.prototxt",
               "--convolutional")  # fmt: skip
    assert made.exit_code == 0, made.output
    result = fcn("parity", "dense.prototxt", "dense.caffemodel", "--against", "float64", "--against-net",
                 "cut.prototxt", "--against-weights", "cut.caffemodel")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "theirs 1x2x1x1" in result.stdout


class Tags(HTMLParser):
    """Counts tags and keeps every address that is loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]


def test_the_page_needs_nothing_else_and_escapes_names(fcn: Fcn, tmp_path: Path) -> None:
    result = fcn("parity", "evil.prototxt", "evil.caffemodel", "--against", "float64", "--html", "page.html")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    tags = Tags(text)
    assert "script" not in tags.names
    assert tags.addresses == []
    assert "url(" not in text and "@import" not in text
    assert tags.names.count("rect") == tags.names.count("tr") - 1 == 2
    assert "&lt;script&gt;" in text


def test_a_page_that_exists_is_kept_without_force(fcn: Fcn, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("mine")
    arguments = ("parity", "net.prototxt", "net.caffemodel", "--against", "float64", "--html", "page.html")
    refused(fcn(*arguments), "page.html")
    assert (tmp_path / "page.html").read_text() == "mine"
    assert fcn(*arguments, "--force").exit_code == 0
