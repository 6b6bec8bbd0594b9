"""The timings that the papers print, measured again on the device at hand.

What is run: the forward pass of Table 1's three nets and of FCN-8s at 500x500 (as it runs by default, and
`plain`, without the shortcut over the constant border); section 3.1's AlexNet (here CaffeNet) as classifier
of 227x227, alone and in a batch of 100, and cut fully convolutional on 500x500, forward, and backward alone
(gradients of all parameters, none of the picture). Weights are random. `naive` is what 3.1 argues with: 100
crops, each classified, against one map of 10x10.

Milliseconds do not compare over ten years, fractions do: `fraction_then` is what the published time makes of
the K40c's 4.29 TFLOP/s for the arithmetic Caffe does, `fraction` what our time makes of the best rate of a
large float32 matrix product between the cases, for the arithmetic executed. Published numbers come from the
claims table. In the same run: the cut net agrees with the classifier, the shortcut with the plain way.

On a machine that others use meanwhile `--cpu-time` takes one thread and counts the processor time of this
process; `load` says how busy it was.

    python benchmarks/published_timings.py [--device cpu|cuda] [--repeats 5] [--cpu-time] [--save] [--table]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from frame import random_weights
from measure import RESULTS, alternate, processor, spread, write_result
from torch import Tensor

from reproduce.net import Net
from reproduce.nets import Form, make_net
from reproduce.nets.blocks import PUBLISHED
from reproduce.published.claims import load_claims
from reproduce.tolerances import FULL
from surgery.convolutionize import convolutionize

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
K40C_FLOP_PER_S = 4.29e12  # float32 peak, by its maker
CROPS = 100  # of the naive way: one for each cell of the map


@dataclass(frozen=True)
class Case:
    """One thing to time: a net, its input and the claims about it, by pass. `cut`: fully convolutional."""

    net: str
    side: int
    claims: tuple[str, ...]
    backward: tuple[str, ...] = ()
    batch: int = 1
    cut: bool = False
    blob: str = "score"


CASES = {
    "fcn-alexnet": Case("voc-fcn-alexnet", 500, ("F15.T1-02", "F16.T1-02")),
    "fcn-vgg16": Case("voc-fcn32s", 500, ("F15.T1-08", "F16.T1-08")),
    "fcn-googlenet": Case("voc-fcn-googlenet", 500, ("F15.T1-14", "F16.T1-14")),
    "fcn-8s": Case("voc-fcn8s", 500, ("F15.T3-07", "F16.T4-07", "F15.S5-05", "F15.S5-06", "F16.ABS-03")),
    "batch": Case("caffenet", 227, ("F15.S31-01",), ("F15.S31-05",), CROPS, blob="fc8"),
    "single": Case("caffenet", 227, ("F15.S31-07",), blob="fc8"),
    "map": Case("caffenet", 500, ("F15.S31-02",), ("F15.S31-06",), cut=True, blob="fc8"),
}  # fmt: skip
WORDS = {
    "fcn-alexnet": "FCN-AlexNet, 500x500",
    "fcn-vgg16": "FCN-VGG16 (32s), 500x500",
    "fcn-googlenet": "FCN-GoogLeNet, 500x500",
    "fcn-8s": "FCN-8s, 500x500",
    "batch": "AlexNet, a crop of a batch of 100",
    "single": "AlexNet, a crop by itself",
    "map": "AlexNet cut, 500x500 to 10x10",
}


class Bench:
    """Where and how often things are timed."""

    def __init__(self, device: str, repeats: int, clock: str, form: Form) -> None:
        self.device, self.repeats, self.form = torch.device(device), repeats, form
        self.clock = CLOCKS[clock]

    def time(self, ways: dict[str, Callable[[], Any]], before: Callable[[], Any]) -> dict[str, list[float]]:
        """Seconds of each way; on a GPU until all of it is done."""
        return alternate(
            {name: self._finished(way) for name, way in ways.items()}, self.repeats,
            self._finished(before), self.clock)  # fmt: skip

    def _finished(self, way: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            way()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return run

    def matrix_rate(self, side: int = 4096) -> float:
        """FLOP a second of a product of two float32 matrices."""
        a = torch.rand(side, side, device=self.device)
        seconds = self.time({"product": lambda: a @ a}, lambda: None)["product"]
        return 2 * side**3 / statistics.median(seconds)

    def picture(self, case: Case) -> Tensor:
        """Random pictures with the mean off."""
        shape = case.batch, 3, case.side, case.side
        values = np.random.default_rng(1).uniform(-120, 130, shape).astype(np.float32)
        return torch.from_numpy(values).to(self.device)


def nets_of(case: Case, bench: Bench) -> dict[str, Net]:
    """The net as it runs by default, and without the shortcut where it takes one."""
    definition, weights = make_net(case.net, form=bench.form), random_weights(case.net, bench.form)
    if case.cut:
        classifier = Net(definition, weights).to(bench.device)
        definition, cut, _ = convolutionize(definition, weights)
        assert cut is not None
        weights = cut
    net = Net(definition, weights).to(bench.device)
    if case.cut:
        agree(classifier, net, bench)
    nets = {"ours": net}
    if gflop(net, case)["executed"] < gflop(net, case)["plain"]:
        nets["plain"] = Net(definition, frame=False).to(bench.device)
        nets["plain"].share_with(net)
    return nets


def measure(case: Case, bench: Bench) -> dict[str, Any]:
    """The timings of a case, forward and where the paper has it backward, with what its claims say."""
    nets, x = nets_of(case, bench), bench.picture(case)
    found: dict[str, Tensor] = {}

    def forward(name: str) -> Callable[[], None]:
        def way() -> None:
            with torch.no_grad():
                found[name] = nets[name](data=x, keep=case.blob)[case.blob]

        return way

    seconds = bench.time({name: forward(name) for name in nets}, lambda: None)
    if "plain" in nets:
        assert worst(found["ours"], found["plain"]) <= FULL
    result = {
        "net": case.net,
        "input": f"{case.batch}x3x{case.side}x{case.side}",
        "map": "x".join(map(str, found["ours"].shape[2:])),
        "gflop": gflop(nets["ours"], case),
        "forward": {name: spread(values) for name, values in seconds.items()},
    }
    if case.backward:
        result["backward"] = spread(backward(nets["ours"], x, case, bench))
    return result


def backward(net: Net, x: Tensor, case: Case, bench: Bench) -> list[float]:
    """Seconds of backward passes, the forward pass before each not counted."""
    loss: list[Tensor] = []

    def before() -> None:
        net.zero_grad()
        loss[:] = [net(data=x, keep=case.blob)[case.blob].sum()]

    return bench.time({"backward": lambda: loss[0].backward()}, before)["backward"]


def agree(classifier: Net, cut: Net, bench: Bench) -> None:
    """The cut net gives at the classifier's own size what the classifier gives."""
    x = bench.picture(CASES["single"])
    with torch.no_grad():
        want, got = (net(data=x, keep="fc8")["fc8"] for net in (classifier, cut))
    assert worst(got.flatten(1), want) <= FULL


def worst(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))


def gflop(net: Net, case: Case) -> dict[str, float]:
    counted = net.flops({"data": (case.batch, 3, case.side, case.side)})
    return {"plain": round(counted.plain / 1e9, 3), "executed": round(counted.regions / 1e9, 3)}


def published(cases: dict[str, Any]) -> dict[str, Any]:
    """For each claim of a time: ours beside the printed one, and what that is of the K40c's peak."""
    claims, result = load_claims(), {}
    for name, case in CASES.items():
        for way, ids in (("forward", case.claims), ("backward", case.backward)):
            for claim in (claims[one] for one in ids):
                ours = median_ms(cases[name], way) / case.batch
                entry: dict[str, Any] = {"case": name, "pass": way, "ours_ms": round(ours, 3)}
                if claim.numbers:
                    printed = claim.number * (1000 if claim.unit == "s" else 1)
                    entry |= {"published_ms": printed, "published_over_ours": round(printed / ours, 4)}
                    if way == "forward" and claim.id.startswith("F15"):
                        flop = 1e9 * cases[name]["gflop"]["plain"] / case.batch
                        entry["fraction_then"] = round(flop / (1e-3 * printed) / K40C_FLOP_PER_S, 3)
                result[claim.id] = entry
    return result


def naive(cases: dict[str, Any]) -> dict[str, float]:
    """How many times faster one map is than 100 crops, and from which share of the crops on."""
    whole, crops = cases["map"], cases["batch"]
    forward, backward = (median_ms(crops, way) / median_ms(whole, way) for way in ("forward", "backward"))
    both = [median_ms(case, "forward") + median_ms(case, "backward") for case in (whole, crops)]
    ratios = {
        "forward": forward,
        "backward": backward,
        "one_by_one": CROPS * median_ms(cases["single"], "forward") / median_ms(whole, "forward"),
        "break_even_forward": 1 / forward,
        "break_even_both": both[0] / both[1],
    }
    return {name: round(value, 3) for name, value in ratios.items()}


def median_ms(case: dict[str, Any], way: str) -> float:
    found = case[way]
    return float((found["ours"] if way == "forward" else found)["median_ms"])


def run(device: str = "cpu", repeats: int = 5, clock: str = "wall", form: Form = PUBLISHED) -> dict[str, Any]:
    """All cases, and what they say of the claims."""
    bench, load = Bench(device, repeats, clock, form), os.getloadavg()[0]
    rates, cases = [bench.matrix_rate()], {}
    for name, case in CASES.items():
        cases[name] = measure(case, bench)
        rates.append(bench.matrix_rate())
    for found in cases.values():
        rate = 1e9 * found["gflop"]["executed"] / (1e-3 * median_ms(found, "forward"))
        found["fraction"] = round(rate / max(rates), 3)
    return {
        "device": torch.cuda.get_device_name() if bench.device.type == "cuda" else processor(),
        "narrow": form.narrow,
        "clock": clock,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "load": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "matrix_gflop_per_s": [round(rate / 1e9, 1) for rate in rates],
        "cases": cases,
        "naive": naive(cases),
        "claims": published(cases),
    }


def table(result: dict[str, Any]) -> list[str]:
    """Lines of the Markdown table of `docs/published-timings.md`: the claims of 2015, one a case and pass."""
    lines = ["| what | printed, ms | of the K40c's peak | ours, ms | of the measured rate |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, case in CASES.items():
        for way, ids in (("forward", case.claims), ("backward", case.backward)):
            for claim in (result["claims"][one] for one in ids[:1]):
                then = f"{claim['fraction_then']:.0%}" if way == "forward" else ""
                now = f"{result['cases'][name]['fraction']:.0%}" if way == "forward" else ""
                lines.append(f"| {WORDS[name]}, {way} | {claim['published_ms']:g} | {then} |"
                             f" {claim['ours_ms']:.0f} | {now} |")  # fmt: skip
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--narrow", type=int, default=1, help="divide the widths by this, for a trial")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, by its processor time")
    parser.add_argument("--save", action="store_true", help="write the committed result file")
    parser.add_argument(
        "--table", action="store_true", help="print the committed result as a table, and stop"
    )
    arguments = parser.parse_args()
    if arguments.table:
        print(*table(json.loads((RESULTS / "published_timings.json").read_text())), sep="\n")
        return 0
    if arguments.cpu_time:
        torch.set_num_threads(1)
    clock = "cpu" if arguments.cpu_time else "wall"
    result = run(arguments.device, arguments.repeats, clock, Form(arguments.narrow))
    print(json.dumps(result, indent=1))
    if arguments.save:
        write_result("published_timings", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
