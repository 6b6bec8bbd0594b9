"""What the exact shortcut over the constant border saves: FCN-8s at full width, with it and without.

Three ways, in one process, in turn, on the same random weights:

  with      the net as it runs by default
  first     the same, but no rims are known: the first image of a size
  without   frame=False

and a training step (forward, loss, backward) with and without. Scores are compared in the same run: within
the tolerance of the table, and equal labels wherever the two best scores leave no doubt. Gradients are told,
not judged: at full width one unit in millions lies so near zero that rounding decides whether its ReLU lets a
gradient through, with the shortcut or between any two kernels. The bounds are those the project set itself:
1.4 times faster at 500x500 and 1.7 times at 256x256. Exit 1 when one is missed.

On a machine that others use meanwhile wall times tell nothing: there `--cpu` takes one thread and counts the
processor time of this process. `load` says how busy the machine was.

    python benchmarks/frame.py [--repeats 5] [--cpu] [--narrow 1] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measure import alternate, spread, write_result

from caffe_weights.weights import Weights
from reproduce.net import Net
from reproduce.nets import Form, make_net
from reproduce.tolerances import FULL
from surgery.interpolation import bilinear_weights
from surgery.shapes import infer_shapes

Clock = Callable[[], float]

SIZES = ((500, 500), (375, 500), (256, 256))
TRAINING_SIZE = (256, 256)
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
LIMITS = {"500x500": 1.4, "256x256": 1.7}


def random_weights(name: str, form: Form) -> Weights:
    """He-scaled random weights with some bias, bilinear up-sampling."""
    rng = np.random.default_rng(0)
    net, weights = make_net(name, form=form), Weights()
    shapes = infer_shapes(net).layers
    for layer in net.layer:
        blobs = shapes[layer.name].params
        if layer.type == "Deconvolution":
            weights[layer.name] = [bilinear_weights(blobs[0])]
        elif blobs:
            scale = np.float32(np.sqrt(2 / np.prod(blobs[0][1:])))
            weights[layer.name] = [rng.standard_normal(shape, np.float32) * scale for shape in blobs]
    return weights


def picture(size: tuple[int, int]) -> torch.Tensor:
    """A random picture with the mean off, (1, 3, height, width)."""
    return torch.from_numpy(np.random.default_rng(1).uniform(-120, 130, (1, 3, *size)).astype(np.float32))


def measure_inference(
    nets: dict[str, Net], size: tuple[int, int], repeats: int, clock: Clock
) -> dict[str, Any]:
    x, scores = picture(size), {}

    def run(name: str, fresh: bool = False) -> Callable[[], None]:
        def way() -> None:
            shortcut = nets[name]._frame
            if fresh and shortcut is not None:
                shortcut.clear()
            with torch.no_grad():
                scores[name] = nets[name](data=x)["score"]

        return way

    ways = {"first": run("with", fresh=True), "with": run("with"), "without": run("without")}
    seconds = alternate(ways, repeats, clock=clock)
    return {
        **{name: spread(values) for name, values in seconds.items()},
        "without_over_with": ratio(seconds, "without", "with"),
        "without_over_first": ratio(seconds, "without", "first"),
        "gflop": gflop(nets["with"], size),
        **differences(scores["with"], scores["without"]),
    }


def measure_training(
    nets: dict[str, Net], size: tuple[int, int], repeats: int, clock: Clock
) -> dict[str, Any]:
    x = picture(size)
    gradients: dict[str, list[torch.Tensor]] = {}

    def run(name: str) -> Callable[[], None]:
        def way() -> None:
            nets[name].zero_grad()
            score = nets[name](data=x)["score"]
            torch.logsumexp(score, 1).sum().backward()
            gradients[name] = [p.grad for p in nets[name].parameters() if p.grad is not None]

        return way

    seconds = alternate({name: run(name) for name in nets}, repeats, clock=clock)
    pairs = zip(gradients["with"], gradients["without"], strict=True)
    apart = [relative(got, want) for got, want in pairs]
    return {
        "size": words(size),
        **{name: spread(values) for name, values in seconds.items()},
        "without_over_with": ratio(seconds, "without", "with"),
        "median_gradient_difference": statistics.median(apart),
        "worst_gradient_difference": max(apart),
    }


def differences(got: torch.Tensor, want: torch.Tensor, bound: float = FULL) -> dict[str, Any]:
    """Worst difference of the scores, and in how many pixels the label differs, doubtful ones apart."""
    largest = float(want.abs().max())
    best = want.topk(2, dim=1).values
    sure = best[:, 0] - best[:, 1] > 2 * bound * largest
    other = got.argmax(1) != want.argmax(1)
    worst = relative(got, want)
    assert worst <= bound and not bool((other & sure).any()), f"scores differ by {worst:.2g}"
    return {"worst_difference": worst, "pixels": other.numel(), "labels_other": int(other.sum())}


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    return round(statistics.median(seconds[slow]) / statistics.median(seconds[fast]), 3)


def gflop(net: Net, size: tuple[int, int]) -> dict[str, float]:
    counted = net.flops({"data": (1, 3, *size)})
    parts = {"without": counted.plain, "regions": counted.regions, "rims": counted.rims}
    return {name: round(value / 1e9, 2) for name, value in parts.items()}


def words(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def run(repeats: int, form: Form, clock: str = "wall") -> dict[str, Any]:
    weights = random_weights("voc-fcn8s", form)
    net = make_net("voc-fcn8s", form=form)
    nets = {"with": Net(net, weights), "without": Net(net, weights, frame=False)}
    # one set of parameters, so that both find the same of them in the cache
    for name, parameter in nets["with"].named_parameters():
        dict(nets["without"].named_parameters())[name].data = parameter.data
    del weights
    before = os.getloadavg()[0]
    sizes = {words(size): measure_inference(nets, size, repeats, CLOCKS[clock]) for size in SIZES}
    training = measure_training(nets, TRAINING_SIZE, max(1, repeats // 2), CLOCKS[clock])
    return {
        "net": "voc-fcn8s",
        "narrow": form.narrow,
        "clock": clock,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "load": {"before": round(before, 2), "after": round(os.getloadavg()[0], 2)},
        "sizes": sizes,
        "training": training,
    }


def missed(result: dict[str, Any]) -> list[str]:
    """The limits that a result does not keep."""
    found = {name: result["sizes"][name]["without_over_with"] for name in LIMITS}
    return [f"{name}: {found[name]} times faster, limit {limit}" for name, limit in LIMITS.items()
            if found[name] < limit]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--narrow", type=int, default=1, help="divide the widths by this, for a trial")
    parser.add_argument("--save", action="store_true", help="write the committed result file")
    parser.add_argument("--cpu", action="store_true", help="one thread, by its processor time")
    arguments = parser.parse_args()
    if arguments.cpu:
        torch.set_num_threads(1)
    result = run(arguments.repeats, Form(arguments.narrow), "cpu" if arguments.cpu else "wall")
    failures = missed(result)
    result |= {"limits": LIMITS, "missed": failures}
    print(json.dumps(result, indent=1))
    if arguments.save:
        write_result("frame", result)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
