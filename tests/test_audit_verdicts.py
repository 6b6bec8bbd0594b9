"""The audit's verdicts: on claims as they are, on changed claims and nets, with weights, data and timings."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from made_data import labels, make_context, make_sbd, make_siftflow, make_voc, picture, write
from made_weights import made_weights

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.errors import FormatError, InputError
from caffe_weights.export import write_weights
from reproduce.cli import load_command
from reproduce.nets import Form, make_net
from reproduce.published import identity, verdicts
from reproduce.published.checks import Context
from reproduce.published.checks.nets import Nets
from reproduce.published.claims import load_claims
from reproduce.published.identity import KnownWeights, content_hash, identify
from reproduce.published.relations import Relation
from reproduce.published.rescoring import Scoring
from reproduce.published.timings import read_timings
from reproduce.published.verdicts import STATUSES, Audit, Given, Verdict, audit
from reproduce.score import histogram, score

CLAIMS = load_claims()
HEAVY = "fcn32s-heavy-pascal.caffemodel"


@cache
def whole() -> Audit:
    return audit()


def one(claim: str, given: Given | None = None) -> Verdict:
    return audit(given=given, only=[claim]).verdicts[claim]


def test_every_claim_has_a_verdict_and_says_how() -> None:
    verdicts = whole().verdicts
    assert list(verdicts) == list(CLAIMS)
    assert {verdict.status for verdict in verdicts.values()} <= STATUSES.keys()
    assert [key for key, verdict in verdicts.items() if not verdict.how] == []
    assert [key for key, verdict in verdicts.items() if verdict.unexplained] == []
    needing = [verdict for verdict in verdicts.values() if verdict.status.startswith("needs")]
    assert [verdict.claim.id for verdict in needing if not verdict.command] == []
    computed = [verdict for verdict in verdicts.values() if verdict.status in ("reproduced", "differs")]
    assert all(verdict.tier and verdict.value is not None for verdict in computed)


def test_no_architecture_claim_needs_anything() -> None:
    found = [verdict for verdict in whole().verdicts.values() if verdict.claim.check == "architecture"]
    assert len(found) == 228
    assert {verdict.claim.id for verdict in found if verdict.status.startswith("needs")} == set()
    about_fcn = [verdict for verdict in found if verdict.claim.id.startswith(("F15", "F16", "RS"))]
    judged = {"reproduced", "differs", "consistent", "inconsistent"}
    assert {verdict.status for verdict in about_fcn} <= judged
    assert len(about_fcn) > 80


def test_totals_by_tier_are_apart_and_recalled_claims_too() -> None:
    found = whole()
    assert found.by_status().total() == 1010
    assert found.by_status(True).total() == 344
    assert found.by_status(True) + found.by_status(False) == found.by_status()
    tiers = found.by_tier()
    assert tiers["recomputed"]["consistent"] == found.by_status()["consistent"]
    assert (
        tiers["recomputed"]["reproduced"] + tiers["transcribed"]["reproduced"]
        == (found.by_status()["reproduced"])
    )
    assert sum(tiers["rescored"].values()) == 0
    assert whole().verdicts["RS.SV-01"].tier == "transcribed"
    assert whole().verdicts["RS.PC-03"].tier == "recomputed"


def test_without_data_the_command_that_checks_is_named() -> None:
    found = whole().verdicts["RS.SC-06"]
    assert found.status == "needs weights and data"
    wanted = "--claim RS.SC-06 --weights voc-fcn-alexnet=fcn-alexnet-pascal.caffemodel --data voc:DIR"
    assert found.command.endswith(wanted)
    assert whole().verdicts["F15.T1-07"].command == (
        "fcn train voc-fcn32s --from WEIGHTS --data voc:DIR --out DIR"
    )
    assert whole().verdicts["DN.T1/Hypercolumn/aero"].how == "Hypercolumn"


def test_the_commands_exist_with_their_options() -> None:
    commands = {verdict.command for verdict in whole().verdicts.values()}
    calls = {re.sub(r"[A-Z]+\d*\.\S+", "ID", call.strip()) for text in commands for call in text.split(";")}
    calls = {call for call in calls if call.startswith("fcn ")}
    assert len(calls) > 30
    for call in calls:
        _, name, *words = call.split()
        command = load_command(name)
        if isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, call


# the claim, its changed value, and the verdicts that must come out
CHANGES = {
    "parameters": ("F15.T1-10", "135", {"F15.T1-10": "differs"}),
    "receptive field": ("F16.T1-05", "356", {"F16.T1-05": "differs"}),
    "an exact count": ("RS.PC-03", "136152918", {"RS.PC-03": "differs"}),
    "a crop": ("RS.CR-03", "28", {"RS.CR-03": "differs"}),
    "a list": ("RS.LS-01", "737", {"RS.LS-01": "differs", "F15.S43-15": "reproduced"}),
    "one of five sizes": ("RS.RF-08", "349 175 87 44 22", {"RS.RF-08": "differs"}),
    "a rate": ("RS.SV-01", "1e-9", {"RS.SV-01": "differs"}),
    "a row of DeconvNet's table": (
        "DN.T2-08", "3x3 s1 p1 56x56x256 590081", {"DN.T2-08": "differs"}),
    "a margin": ("F15.S5-01", "30", {"F15.S5-01": "inconsistent"}),
    "a score others rest on": (
        "F15.T3-06", "72.2",
        {"F15.T3-06": "needs data", "F15.S5-07": "inconsistent", "F15.S5-04": "inconsistent",
         "DN.M-01": "inconsistent", "SD-02": "inconsistent", "F15.S5-08": "consistent"}),
    "a difference": ("F15.S42-01", "3.2", {"F15.S42-01": "inconsistent"}),
    "a share that is right now": ("F15.S43-09", "76", {"F15.S43-09": "consistent"}),
    "a list that is right now": ("F15.DATA-08", "2486", {"F15.DATA-08": "reproduced"}),
    "a gain that is right now": ("DN.M-09", "2.9", {"DN.M-09": "consistent"}),
    "a speed-up": ("AD.CL-03", "2.33", {"AD.CL-03": "inconsistent"}),
    "paths by the rule": ("AD.S-04", "7.5e4", {"AD.S-04": "reproduced"}),
    "a class of a mean": ("DN.T1/DeconvNet/bkg", "72.7", {"DN.T1/DeconvNet/mean": "inconsistent"}),
    "a bound": ("F15.S31-04", "6", {"F15.S31-04": "inconsistent"}),
    "a break-even": ("F15.S43-16", "0.1", {"F15.S43-16": "inconsistent"}),
    "an average": ("AD.T7-03", "61.65", {"AD.T7-03": "inconsistent"}),
    "a third party's digits": (
        "X.WK-23", "65.6126", {"F16.T3-15": "inconsistent", "RS.SC-03": "inconsistent"}),
    "a write-up that is right now": ("SD-02", "62.2", {"SD-02": "consistent"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_claim_turns_its_verdicts(name: str) -> None:
    claim, value, wanted = CHANGES[name]
    assert CLAIMS[claim].value != value
    claims = {**CLAIMS, claim: replace(CLAIMS[claim], value=value)}
    found = audit(claims, only=wanted).verdicts
    assert {key: verdict.status for key, verdict in found.items()} == wanted
    before = {key: verdict.status for key, verdict in whole().verdicts.items() if key in wanted}
    assert before != wanted


def test_a_changed_claim_ends_its_contradiction() -> None:
    claims = {**CLAIMS, "DN.M-09": replace(CLAIMS["DN.M-09"], value="2.9")}
    found = {row.contradiction.id: row.stands for row in audit(claims, only=["DN.M-09"]).contradictions}
    assert found["C21"] is False
    assert found["C8"] is True
    assert audit(claims, only=["DN.M-09"]).verdicts["DN.M-09"].contradictions == ()
    assert whole().verdicts["DN.M-09"].contradictions == ("C21",)


# the net, the layer, the field of its convolution or pooling, the value, and claims that must fail
NETS = {
    "a channel more": ("voc-fcn32s", "conv3_1", "num_output", 257, ("RS.PC-01", "RS.PC-03")),
    "fewer in fc7": ("voc-fcn32s", "fc7", "num_output", 3000, ("F15.T1-10", "RS.PC-03")),
    "a stride": ("voc-fcn32s", "pool4", "stride", 1, ("F15.T1-11", "F15.T1-12", "RS.RF-02")),
    "a pad": ("voc-fcn32s", "conv1_1", "pad", 99, ("RS.TX-02", "RS.CR-01")),
    "a kernel": ("voc-fcn16s", "conv5_3", "kernel_size", 5, ("RS.PC-05", "RS.CR-03")),
    "the up-sampling's kernel": ("voc-fcn8s", "upscore8", "kernel_size", 18, ("RS.PC-10", "RS.CR-06")),
    "a class more": ("voc-fcn-alexnet", "score_fr", "num_output", 22, ("RS.PC-13", "RS.PC-15")),
    "AlexNet's first stride": ("voc-fcn-alexnet", "conv1", "stride", 2, ("F15.T1-05", "F16.T1-06")),
    "GoogLeNet's stem": ("voc-fcn-googlenet", "conv1/7x7_s2", "kernel_size", 5, ("RS.PC-29",)),
    "DeconvNet's fc6": ("deconvnet", "fc6", "num_output", 4095, ("DN.T2-19", "DN.A-05")),
}


@pytest.mark.parametrize("name", NETS)
def test_a_changed_net_fails_its_claims(name: str) -> None:
    wanted, layer, field, value, claims = NETS[name]

    def make(net_name: str, split: str) -> NetParameter:
        net = make_net(net_name, split)
        for found in net.layer if net_name == wanted else ():
            if found.name == layer:
                _set(found, field, value)
        return net

    found = audit(context=Context(Nets(make)), only=claims).verdicts
    assert {key: verdict.status for key, verdict in found.items()} == dict.fromkeys(claims, "differs")
    assert {whole().verdicts[key].status for key in claims} == {"reproduced"}


def test_a_net_that_falls_apart_is_a_verdict() -> None:
    context = Context(Nets(lambda name, split: NetParameter()))
    found = audit(context=context, only=["F15.T1-10"]).verdicts["F15.T1-10"]
    assert found.status not in ("reproduced", "consistent")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two pictures that our own seg11valid list names, with labels of a few classes."""
    return make_voc(tmp_path / "VOC2011", split="seg11valid")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Weights of a narrow voc-fcn32s."""
    path = tmp_path / "made.caffemodel"
    form = Form(NARROW, FC)
    write_weights(made_weights("voc-fcn32s", form), path, make_net("voc-fcn32s", form=form))
    return path


NARROW, FC = 32, 16
SCORING = Scoring(narrow=NARROW, fc=FC)


def given(model: Path, voc: Path, known: list[KnownWeights]) -> Given:
    return Given({"voc-fcn32s": identify("voc-fcn32s", model, known)}, {"voc": voc}, scoring=SCORING)


def test_scores_of_other_weights_reproduce_nothing(model: Path, voc: Path) -> None:
    found = one("RS.SC-01", given(model, voc, []))
    assert (found.status, found.tier) == ("other weights", "rescored")
    assert isinstance(found.value, float)
    assert 0 <= found.value <= 100
    assert HEAVY in found.reason
    assert "no file of the table" in found.how


@pytest.mark.parametrize("by", ["sha1", "content_sha256"])
def test_scores_of_the_published_file_are_compared(model: Path, voc: Path, by: str) -> None:
    unknown = identify("voc-fcn32s", model, [])
    entry = KnownWeights(HEAVY, "voc-fcn32s", "", "", "")
    known = [KnownWeights("", "", "", "", ""), replace(entry, **{by: getattr(unknown, by)})]
    found = one("RS.SC-01", given(model, voc, known))
    assert (found.status, found.tier) == ("differs", "rescored")  # random weights score no 63.6
    assert found.unexplained
    assert f"{HEAVY}, as published" in found.how
    claims = {**CLAIMS, "RS.SC-01": replace(CLAIMS["RS.SC-01"], value=f"{found.value:.2f}")}
    again = audit(claims, given=given(model, voc, known), only=["RS.SC-01"]).verdicts["RS.SC-01"]
    assert again.status == "reproduced"


def test_the_wrong_published_file_is_other_weights(model: Path, voc: Path) -> None:
    sha1 = identify("voc-fcn32s", model, []).sha1
    known = [KnownWeights("fcn-32s-pascal.caffemodel", "voc-fcn32s", sha1, "", "")]
    assert one("RS.SC-01", given(model, voc, known)).status == "other weights"
    assert one("F15.T2-07", given(model, voc, known)).tier == "rescored"


def test_each_metric_is_the_tables(model: Path, voc: Path) -> None:
    ready = given(model, voc, [])
    counts = SCORING.evaluation(ready.weights["voc-fcn32s"], "voc", voc).counts[0][1]
    wanted = [counts.trace() / counts.sum()]
    with np.errstate(invalid="ignore"):
        accuracy = counts.diagonal() / counts.sum(1)
        union = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
    wanted += [np.nanmean(accuracy), np.nanmean(union), np.nansum(counts.sum(1) * union) / counts.sum()]
    found = [one(f"F16.T3-0{i}", ready).value for i in range(1, 5)]
    assert found == pytest.approx([100 * value for value in wanted], abs=1e-4)


def test_half_of_what_it_takes(model: Path, voc: Path) -> None:
    assert one("RS.SC-06", Given(data={"voc": voc})).status == "needs weights"
    weights = {"voc-fcn-alexnet": identify("voc-fcn-alexnet", model, [])}
    assert one("RS.SC-06", Given(weights)).status == "needs data"
    assert one("RS.SC-01", Given(data={"voc": voc})).notes[0].startswith("needs weights: voc-fcn32s")


def test_one_content_hash_for_every_format(model: Path, tmp_path: Path) -> None:
    first = identify("voc-fcn32s", model, [])
    assert first.sha1 == identity._sha1(model)
    for name in ("x.safetensors", "x.npz", "x.caffemodel.h5"):
        write_weights(first.weights, tmp_path / name)
        assert identify("voc-fcn32s", tmp_path / name, []).content_sha256 == first.content_sha256
    old = {"fc": [np.ones((1, 1, 2, 3), np.float32), np.zeros((1, 1, 1, 2), np.float32)]}
    new = {"fc": [np.ones((2, 3), np.float32), np.zeros(2, np.float32)]}
    assert content_hash(old) == content_hash(new)
    assert content_hash(new) != content_hash({"fc": [np.ones((3, 2), np.float32), new["fc"][1]]})
    assert content_hash(new) != content_hash({"fc": [new["fc"][0], new["fc"][1] + 1e-6]})


def test_the_known_files() -> None:
    files = {entry.file: entry for entry in identity.known_weights()}
    assert files["fcn8s-heavy-pascal.caffemodel"].sha1 == "c449ea74dd7d83751d1357d6a8c323fcf4038962"
    assert all(len(entry.sha1) in (0, 40) for entry in files.values())


def test_what_is_counted_in_a_data_set(tmp_path: Path) -> None:
    sbd = make_sbd(tmp_path / "sbd")
    found = one("F15.S43-13", Given(data={"sbd": sbd}))
    assert (found.status, found.value) == ("differs", 3)
    assert one("F15.S43-17", Given(data={"sbd": sbd})).value == "~0/4"  # 21 classes at random
    siftflow = make_siftflow(tmp_path / "sift", split="test")
    absent = one("F15.DATA-10", Given(data={"siftflow": siftflow})).value
    assert isinstance(absent, int)
    assert 0 <= absent < 33
    context = make_context(tmp_path / "context")
    lines = (next(context.rglob("labels.txt"))).read_text().splitlines()
    assert one("F15.ABT-03", Given(data={"pascal-context": context})).value == len(lines)


def test_upper_bounds_are_those_of_the_truth_itself(tmp_path: Path) -> None:
    truth = labels(3, 21, 4, 8)
    root = make_voc(tmp_path / "VOC2011", ["2007_000033"], "seg11valid")
    write(root / "JPEGImages/2007_000033.jpg", picture(0, 4, 8))
    write(root / "SegmentationClass/2007_000033.png", truth, palette=True)
    middles = truth[2:3, 2::4].repeat(4, 0).repeat(4, 1)
    wanted = 100 * score(np.asarray(histogram(truth, middles, 21))).mean_iu
    assert one("F15.AA-06", Given(data={"voc": root})).value == pytest.approx(wanted)


RESULT: dict[str, Any] = {
    "device": "a card", "date": "2026-01-02", "clock": "wall", "narrow": 1,
    "claims": {
        "F15.T1-08": {"ours_ms": 21.0, "case": "fcn-vgg16", "pass": "forward"},
        "F15.S5-06": {"ours_ms": 66.0, "case": "fcn-8s", "pass": "forward"},
        "F16.ABS-03": {"ours_ms": 66.0, "case": "fcn-8s", "pass": "forward"},
        "F15.T3-07": {"ours_ms": 350.0, "case": "fcn-8s", "pass": "forward"},
    },
    "naive": {"forward": 4.5},
}  # fmt: skip


def test_timings_are_measured_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    path.write_text(json.dumps(RESULT))
    ready = Given(timings=read_timings(path))
    found = one("F15.T1-08", ready)
    assert (found.status, found.tier, found.value) == ("measured elsewhere", "measured", 21.0)
    assert found.how == "fcn-vgg16 forward on a card, 2026-01-02: 21 ms, 10 times faster"
    assert one("F15.S5-06", ready).value == pytest.approx(0.066)  # printed in seconds
    assert "5 times faster" in one("F15.S5-06", ready).how
    assert one("F15.T3-07", ready).how.endswith(": 350 ms, 2 times slower")  # printed as ~175 ms
    assert one("F16.ABS-03", ready).status == "measured elsewhere"  # printed in words
    naive = one("F15.S31-04", ready)
    assert (naive.status, naive.value) == ("measured elsewhere", 4.5)
    assert one("F15.T1-02", ready).status == "needs GPU"


def test_the_last_timing_of_each_device_counts(tmp_path: Path) -> None:
    timings = []
    for device, ms in (("a card", 30.0), ("another", 50.0), ("a card", 20.0)):
        row = {**RESULT["claims"]["F15.T1-08"], "ours_ms": ms}
        path = tmp_path / "one.json"
        path.write_text(json.dumps({**RESULT, "device": device, "claims": {"F15.T1-08": row}}))
        timings += read_timings(path)
    found = one("F15.T1-08", Given(timings=timings))
    how = found.how
    assert found.value == 20  # of the last, though another device was heard of later than its first
    assert "on a card, 2026-01-02: 20" in how
    assert "on another, 2026-01-02: 50" in how
    assert "30" not in how


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"claims": []}', '{"claims": {"F15.T1-08": {}}}', '{"claims": {"x": 3}}',
     json.dumps({**RESULT, "narrow": 8}), json.dumps({**RESULT, "naive": 3}),
     json.dumps({**RESULT, "claims": {"F15.T1-08": {"ours_ms": "x", "case": "", "pass": ""}}})],
)  # fmt: skip
def test_no_timings(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(FormatError):
        read_timings(path)


def test_timings_of_no_claim_of_ours_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**RESULT, "claims": {"no such claim": RESULT["claims"]["F15.T1-08"]}}))
    assert one("F15.T1-08", Given(timings=read_timings(path))).status == "needs GPU"


def test_of_several_relations_the_one_that_fails_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """`F15.T3-06` (62.2) is held against itself, which holds, and against another claim, which does not."""
    rows = [Relation("F15.T3-06", "=", "{F15.T3-06}", ""), Relation("F15.T3-06", "=", "{F15.T3-07}", "")]
    monkeypatch.setattr(verdicts, "load_relations", lambda: rows)
    found = one("F15.T3-06")
    assert (found.status, found.how) == ("inconsistent", "≠ ~175 ms")
    assert any(note.startswith("consistent: ") for note in found.notes)


def test_data_that_is_not_there() -> None:
    with pytest.raises(InputError):
        one("F15.S43-13", Given(data={"sbd": Path("nowhere")}))


def _set(layer: object, field: str, value: int) -> None:
    for kind in ("convolution_param", "pooling_param"):
        if layer.HasField(kind):  # type: ignore[attr-defined]
            message = getattr(layer, kind)
            if isinstance(getattr(message, field), int):
                setattr(message, field, value)
            else:
                getattr(message, field)[:] = [value]
