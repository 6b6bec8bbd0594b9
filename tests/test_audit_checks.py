"""What the audit computes from nets: against arithmetic on paper, and against nets that were changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from caffe_weights.caffe_pb2 import NetParameter, SolverParameter
from reproduce.nets import make_net, named_solver
from reproduce.published.checks import Context, autodeeplab, deconvnet, finding, lists
from reproduce.published.checks import nets as of
from reproduce.published.checks.nets import Nets
from reproduce.published.claims import load_claims
from reproduce.published.registry import CHECKS

Edit = Callable[[NetParameter], None]

NETS, CLAIMS = Nets(), load_claims()

# VGG16 by hand: (in, out) of its 3 x 3 convolutions, then fc6 and fc7
PLANES = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
TRUNK = sum(9 * a * b + b for a, b in pairwise(PLANES))
TRUNK += 49 * 512 * 4096 + 4096 + 4096 * 4096 + 4096
# AlexNet in two groups from conv2 on, but for conv3
ALEXNET = (
    (121 * 3 * 96 + 96) + (25 * 48 * 256 + 256) + (9 * 256 * 384 + 384) + (9 * 192 * 384 + 384)
    + (9 * 192 * 256 + 256) + (36 * 256 * 4096 + 4096) + (4096 * 4096 + 4096)
)  # fmt: skip


@pytest.mark.parametrize(
    ("net", "convolutions", "up"),
    [
        ("voc-fcn32s", TRUNK + 4097 * 21, 21 * 21 * 64 * 64),
        ("voc-fcn16s", TRUNK + (4097 + 513) * 21, 21 * 21 * (4 * 4 + 32 * 32)),
        ("pascalcontext-fcn8s", TRUNK + (4097 + 513 + 257) * 60, 60 * 60 * (16 + 16 + 256)),
        ("siftflow-fcn8s", TRUNK + (4097 + 513 + 257) * 36, (33 * 33 + 3 * 3) * (16 + 16 + 256)),
        ("voc-fcn-alexnet", ALEXNET + 4097 * 21, 21 * 21 * 63 * 63),
    ],
)
def test_parameters_by_hand(net: str, convolutions: int, up: int) -> None:
    found = [of.parameters(NETS, net, *kinds) for kinds in (("Convolution",), ("Deconvolution",), ())]
    assert found == [convolutions, up, convolutions + up]


def test_googlenets_layers_by_hand() -> None:
    # a stem of three, nine modules of six, two deep each, and the score
    assert of.layer_count(NETS, "voc-fcn-googlenet", "Convolution") == 3 + 9 * 6 + 1
    assert of.depth(NETS, "voc-fcn-googlenet") == 3 + 9 * 2 + 1
    assert of.depth(NETS, "voc-fcn-alexnet") == 5 + 2 + 1
    assert of.depth(NETS, "voc-fcn8s") == 13 + 2 + 1  # the skips are shorter ways


def test_receptive_fields_by_hand() -> None:
    field, step, seen = 1, 1, []
    for convolutions in (2, 2, 3, 3, 3):
        field, step = field + 2 * step * convolutions + step, 2 * step
        seen.append(field)
    assert of.receptive_fields(NETS, "voc-fcn32s", *(f"pool{i}" for i in range(1, 6))) == tuple(seen)
    assert of.receptive_fields(NETS, "voc-fcn32s", "fc6") == (field + 6 * step,)
    assert of.largest_stride(NETS, "voc-fcn8s") == step


def test_grids_by_hand() -> None:
    def alexnet(side: int, pad: int) -> int:
        side = (side + 2 * pad - 11) // 4 + 1
        for _ in range(3):  # the pools round up; the convolutions between keep the size
            side = -(-(side - 3) // 2) + 1
        return side - 5

    inputs = ((227, 0), (500, 0), (500, 100), (331, 7))
    assert of.grids(NETS, "caffenet", *inputs) == tuple(alexnet(*one) for one in inputs)
    assert of.grids(NETS, "vgg16", (224, None), (256, 1)) == (1, 2)


def test_the_kernel_that_a_finer_pool5_wants() -> None:
    # pool5 sees 212 pixels at step 32; with stride 1 as many at step 16
    kernel = -(-(212 + 6 * 32 - 212) // 16) + 1
    assert of.wider_kernel(NETS, "voc-fcn32s", "pool5", "fc6") == (kernel, kernel)
    # the paper's 14 is that of a net without pool5: what conv5_3 sees, and 13 steps of 16
    assert of.receptive_fields(NETS, "voc-fcn32s", "conv5_3", "fc6") == (404 - 13 * 16, 404)


def test_deconvnets_parameters_by_hand() -> None:
    ways = list(pairwise(PLANES))
    there = sum(9 * a * b + b for a, b in ways) + 49 * 512 * 4096 + 4096 + 4096 * 4096 + 4096 + 64 * 21 + 21
    back = [(512, 512)] * 3 + [(512, 512), (512, 512), (512, 256), (256, 256), (256, 256), (256, 128)]
    back += [(128, 128), (128, 64), (64, 64), (64, 64)]
    up = 49 * 4096 * 512 + 512 + sum(9 * a * b + b for a, b in back)
    norms = 2 * (sum(b for _, b in ways) + 2 * 4096 + 512 + sum(b for _, b in back))
    found = [of.parameters(NETS, "deconvnet", *kinds) for kinds in (("Convolution",), ("Deconvolution",), ())]
    assert found == [there, up, there + up + norms]


def test_a_row_of_deconvnets_table() -> None:
    row = f"3x3 s1 p1 28x28x256 {9 * 512 * 256 + 256}"
    assert deconvnet.table_row(NETS, "deconvnet", "deconv4_3") == row


def test_the_released_ensemble_is_told_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert deconvnet.ensemble_rule(NETS) == "deconv_score .* max(0, fcn_score)"
    monkeypatch.setattr(deconvnet.ensemble, "product_scores", lambda deconv, fcn: deconv + fcn)
    assert deconvnet.ensemble_rule(NETS) == "deconv_score + fcn_score"


@pytest.mark.parametrize(("size", "plain", "printed"), [("S", 320.45, 333.25), ("L", 662.42, 695.03)])
def test_auto_deeplabs_multiply_adds(size: str, plain: float, printed: float) -> None:
    claim = {"S": "AD.T2-02", "L": "AD.T2-10"}[size]
    found = CHECKS[claim](CLAIMS[claim], Context(NETS))
    assert isinstance(found.value, int)
    assert abs(found.value / (1e9 * printed) - 1) < 0.001
    assert not CLAIMS[claim].agrees(found.value)
    assert f"{plain} B" in found.reason


def test_the_search_space_by_hand() -> None:
    assert autodeeplab.paths(NETS, 1, 4, 8) == 2
    assert autodeeplab.paths(NETS, 3, 4) == 5  # 4 4 4, 4 4 8, 4 8 4, 4 8 8, 4 8 16
    assert autodeeplab.cells(NETS) == (2 * 8 * 3 * 8 * 4 * 8 * 5 * 8 * 6 * 8) ** 2
    assert autodeeplab.edges(NETS) == (2 + 3 + 4 + 5 + 6, 160)


@pytest.mark.parametrize(("name", "count"), [("nyud_test", 654), ("siftflow_trainval", 2486)])
def test_lists(name: str, count: int) -> None:
    assert lists.list_length(NETS, name) == count


def setting(path: str, value: float, *layers: str) -> Edit:
    """The edit that sets a field of some layers."""

    def edit(net: NetParameter) -> None:
        for layer in net.layer:
            if layer.name in layers:
                *parents, last = path.split(".")
                message = layer
                for parent in parents:
                    message = getattr(message, parent)
                if isinstance(getattr(message, last), (int, float)):
                    setattr(message, last, value)
                else:
                    getattr(message, last)[:] = [value]

    return edit


def without_fc7(net: NetParameter) -> None:
    kept = [layer for layer in net.layer if layer.name not in ("fc7", "relu7", "drop7")]
    del net.layer[:]
    net.layer.extend(kept)
    next(layer for layer in net.layer if layer.name == "score_fr").bottom[:] = ["fc6"]


def ordinary_bias(net: NetParameter) -> None:
    next(layer for layer in net.layer if layer.name == "score_fr").param[1].lr_mult = 1


def filled(net: NetParameter) -> None:
    for layer in net.layer:
        if layer.name == "score_fr":
            layer.convolution_param.weight_filler.type = "xavier"


CONV = "convolution_param"


def both(*numbers: int) -> set[str]:
    """Claims of Table 1 in either paper: layers, parameters, field, stride from 3 on, then 9, 15."""
    return {f"{paper}.T1-{number:02}" for paper in ("F15", "F16") for number in numbers}


def rows(*numbers: int) -> set[str]:
    """Rows of DeconvNet's Table 2."""
    return {f"DN.T2-{number:02}" for number in numbers}


# the change -> the net that is changed, how, and the claims it must turn, those and no others
CHANGES: dict[str, tuple[str, Edit, set[str]]] = {
    "one more channel": (
        "voc-fcn32s", setting(f"{CONV}.num_output", 65, "conv1_1"), {"RS.PC-01", "RS.PC-03"}),
    "a thousand fewer in fc6": (
        "voc-fcn32s", setting(f"{CONV}.num_output", 3096, "fc6"), {"RS.PC-01", "RS.PC-03", *both(10)}),
    "stride 1 in pool3": (
        "voc-fcn32s", setting("pooling_param.stride", 1, "pool3"),
        {"RS.RF-02", "RS.RF-03", "RS.RF-08", "RS.CR-01", "DN.A-10", *both(11, 12)}),
    "another pad": (
        "voc-fcn32s", setting(f"{CONV}.pad", 90, "conv1_1"), {"RS.TX-02", "RS.CR-01", "RS.RF-08"}),
    "up-sampling by 62": (
        "nyud-fcn32s-color", setting(f"{CONV}.kernel_size", 62, "upscore"),
        {"RS.CR-01", "RS.PC-18", "RS.PC-19"}),
    "up-sampling by 18": (
        "voc-fcn8s-atonce", setting(f"{CONV}.kernel_size", 18, "upscore8"), {"RS.CR-06"}),
    "a kernel of 5": (  # what the skips share shifts the image alone
        "voc-fcn8s", setting(f"{CONV}.kernel_size", 5, "conv3_2"), {"RS.CR-06", "RS.PC-09", "RS.PC-11"}),
    "one head wider": (
        "siftflow-fcn8s", setting(f"{CONV}.num_output", 4097, "fc7"), {"RS.PC-25", "RS.PC-27"}),
    "one group": (
        "voc-fcn-alexnet", setting(f"{CONV}.group", 1, "conv2"), {"RS.PC-13", "RS.PC-15"}),
    "no fc7": ("voc-fcn-alexnet", without_fc7, {"RS.PC-13", "RS.PC-15", "RS.PC-16", *both(3, 4)}),
    "a smaller average pool": (
        "googlenet", setting("pooling_param.kernel_size", 5, "pool5/7x7_s1"), {"RS.RF-05", *both(17)}),
    "one more channel in GoogLeNet": (
        "voc-fcn-googlenet", setting(f"{CONV}.num_output", 65, "conv1/7x7_s2"), {"RS.PC-29"}),
    "stride 3 in pool2": (
        "caffenet", setting("pooling_param.stride", 3, "pool2"), {"F15.S31-03", "RS.RF-06"}),
    "one class less": (
        "pascalcontext-fcn32s", setting(f"{CONV}.num_output", 59, "score_fr", "upscore"), {"RS.TX-04"}),
    "another scale": (
        "voc-fcn8s-atonce", setting("scale_param.filler.value", 0.1, "scale_pool3"), {"RS.AT-02"}),
    "a filled score layer": ("voc-fcn32s", filled, {"F15.S43-08"}),
    "one class more": (
        "deconvnet", setting(f"{CONV}.num_output", 22, "seg-score-voc"),
        {"DN.T2-40", "DN.A-05", "DN.A-06", "DN.A-07"}),
    "a wider deconvolution": (
        "deconvnet", setting(f"{CONV}.num_output", 513, "deconv5_1"),
        {*rows(23, 24), "DN.A-05", "DN.A-06", "DN.A-08"}),
    "an unpooling to 56 by steps of 1": (
        "deconvnet", setting("unpooling_param.stride", 1, "unpool3"), {*rows(30)}),
    "pool1 over 3": (
        "deconvnet", setting("pooling_param.kernel_size", 3, "pool1"), {*rows(3)}),
    "a stem of stride 8": (
        "auto-deeplab-s", setting(f"{CONV}.stride", 2, "stem2"),
        {"AD.T2-01", "AD.TR-05", "AD.G-01", "AD.G-02", "AD.G-07"}),
    "a wider stem": (
        "auto-deeplab-s", setting(f"{CONV}.num_output", 256, "stem3"), {"AD.T2-03", "AD.TR-05"}),
    "a wider branch": ("auto-deeplab-l", setting(f"{CONV}.num_output", 300, "aspp0"), {"AD.T2-11"}),
    "another epsilon": (
        "auto-deeplab-s", setting("batch_norm_param.eps", 1e-5, "cell0_last_bn"), {"AD.G-08"}),
    "an ordinary bias": ("voc-fcn32s", ordinary_bias, {"F15.S43-07"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_net_turns_its_claims(name: str) -> None:
    net, edit, claims = CHANGES[name]
    assert turned(net, changed(net, edit)) == claims


def test_a_changed_solver_turns_its_claims() -> None:
    def solver(name: str, *split: str) -> SolverParameter:
        found = named_solver(name, *split)
        if name == "voc-fcn-alexnet":
            found.momentum = 0.99
        if name == "voc-fcn16s":
            found.base_lr *= 10
        return found

    claims = {"F15.S43-05", "F16.T2b-01", "RS.SV-03", "F15.S42-04"}
    assert turned("solvers", Nets(solver=solver)) == claims


SETTINGS: list[tuple[Any, str, Any, set[str]]] = [
    (deconvnet, "RELEASED", replace(deconvnet.RELEASED, most=51), {"DN.RP-05", "DN.TR-13"}),
    (deconvnet, "SETTINGS", {"deconvnet": replace(deconvnet.SETTINGS["deconvnet"], bilateral_sxy=21)},
     {"DN.RP-10"}),
    (autodeeplab.settings, "HEAD_REACH", 48, {"AD.S-10"}),
    (autodeeplab.settings, "Settings", partial(autodeeplab.settings.Settings, epochs=60), {"AD.S-11"}),
    (autodeeplab.space, "CHOICES", autodeeplab.space.OPERATIONS,
     {"AD.S-03", "AD.S-05", "AD.S-25", "AD.S-26"}),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name", "value", "claims"), SETTINGS)
def test_a_changed_setting_turns_its_claims(
    module: Any, name: str, value: Any, claims: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    about = [claim for claim in CHECKS if claim.startswith(("DN.RP", "DN.TR", "AD.S"))]
    before = {claim: asked_and_good()[claim][1] for claim in about}
    monkeypatch.setattr(module, name, value)
    assert {claim for claim in about if agrees(claim, NETS) != before[claim]} == claims


def test_a_changed_list_turns_its_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in lists.SPLITS.iterdir():
        text = path.read_text()
        (tmp_path / path.name).write_text(text if path.name != "nyud_val.txt" else text + "img_0\n")
    monkeypatch.setattr(lists, "SPLITS", tmp_path)
    about_lists = [claim for claim in CHECKS if claim.startswith(("RS.LS", "F15.DATA", "F15.S43"))]
    after = {claim for claim in about_lists if agrees(claim, NETS) != asked_and_good()[claim][1]}
    assert after == {"RS.LS-03", "RS.LS-04", "F15.DATA-01", "F15.DATA-03"}


def test_every_architecture_claim_of_the_fcns_has_a_check_or_a_derivation() -> None:
    left = [
        claim for claim in CLAIMS.values()
        if claim.check == "architecture" and claim.id[:3] in ("F15", "F16", "RS.") and claim.id not in CHECKS
    ]  # fmt: skip
    assert len(left) == 18
    assert not [claim.id for claim in left if claim.unit not in ("%", "x", "s", "")]


def test_what_differs_says_why() -> None:
    for claim in (claim for claim, (_, holds) in asked_and_good().items() if not holds):
        found = CHECKS[claim](CLAIMS[claim], Context(NETS))
        assert found.reason, claim
        assert (found.value is None) == bool(found.status), claim


def changed(name: str, edit: Edit) -> Nets:
    """All nets, one of them edited in every split."""

    def make(wanted: str, split: str) -> NetParameter:
        net = make_net(wanted, split)
        if wanted == name:
            edit(net)
        return net

    return Nets(make)


class Watched(Nets):
    """Nets that keep in `asked` which of them were asked for."""

    asked: ClassVar[set[str]] = set()

    def net(self, name: str, split: str = "deploy") -> NetParameter:
        self.asked.add(name)
        return super().net(name, split)

    def once(self, function: Callable[[NetParameter], Any], name: str) -> Any:
        self.asked.add(name)
        return super().once(function, name)

    def settings(self, name: str) -> SolverParameter:
        self.asked.add("solvers")
        return super().settings(name)


@cache
def asked_and_good() -> dict[str, tuple[frozenset[str], bool]]:
    """For each claim the nets that its check asks for, and whether the claim agrees with them as they are."""
    nets, found = Watched(), {}
    for claim in CHECKS:
        nets.asked.clear()
        holds = agrees(claim, nets)
        found[claim] = frozenset(nets.asked), holds
    return found


def turned(name: str, nets: Nets) -> set[str]:
    """The claims about the net `name`, or the `solvers`, whose verdict `nets` turns."""
    return {
        claim for claim, (asked, holds) in asked_and_good().items()
        if name in asked and agrees(claim, nets) != holds
    }  # fmt: skip


def agrees(claim: str, nets: Nets) -> bool:
    value = finding(CHECKS[claim], CLAIMS[claim], Context(nets)).value
    return value is not None and CLAIMS[claim].agrees(value)
