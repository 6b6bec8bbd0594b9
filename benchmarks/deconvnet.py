"""DeconvNet over the proposals of one picture: in batches, and one crop at a time, ours and plain PyTorch's.

  usual    the net in PyTorch's own functions, as a port has it, one crop at a time
  single   ours, one crop at a time
  batched  ours, in batches

Measured is `picture_scores`, crops cut and resized and scores laid over the picture included, on random
weights and a made picture of 375 x 500 with random boxes of 112 pixels and more, by the released rules.
The three must agree. The bound that the project set itself is batches 1.5 times faster than one by one; it is
judged at full width against the usual way, and exit 1 says that it is missed. Next to our own single crops a
batch saves the calls of a hundred layers and the second reading of fc6 and fc6-deconv (822 MB), which is
little on a CPU that one crop of 224 x 224 fills; `single_over_batched` says how little. At full width the
forward pass of one crop is measured too, by time and anonymous memory (bounds 2 s and 2.5 GB). `--clock cpu`
judges by processor time, for a machine that others use; it counts all threads, so give it with `--threads 1`.

    python benchmarks/deconvnet.py [--forms full,narrow] [--proposals 50] [--batch 2] [--threads N] [--save]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from measure import AnonymousPeak, alternate, spread, write_result
from torch import Tensor
from torch.nn import functional as nnf

from reproduce.deconvnet.inference import picture_scores
from reproduce.deconvnet.rules import RELEASED, Rules
from reproduce.images import VOC_MEAN_BGR
from reproduce.net import Net
from reproduce.nets import Form, make_net
from reproduce.tolerances import FULL, worst_difference

FORMS = {"full": Form(), "narrow": Form(8, 64)}
HEIGHT, WIDTH, SIDE = 375, 500, 224
LIMITS = {"usual_over_batched": 1.5, "forward_s": 2.0, "forward_bytes": 2_500_000_000}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def make(form: Form) -> Net:
    """DeconvNet with random weights."""
    net = Net(make_net("deconvnet", form=form), phase="TEST", seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for blobs in net.params.values():
            if blobs[0].ndim == 4 and blobs[0].shape[0] > 1:
                blobs[0].normal_(0, 0.02, generator=generator)
    return net


def forward_of_one(form: Form, repeats: int, clock: Any) -> dict[str, Any]:
    """Time and memory of one crop, the net's weights included."""
    with AnonymousPeak() as peak, torch.no_grad():
        net = make(form)
        crop = torch.zeros(1, 3, SIDE, SIDE)
        seconds = alternate({"forward": lambda: consume(net(data=crop))}, repeats, clock=clock)["forward"]
    return {**spread(seconds), "anonymous_bytes": peak.peak_bytes - peak.before_bytes}


def consume(blobs: dict[str, Tensor]) -> None:
    """Nothing: the blobs are there."""


def made_boxes(count: int) -> np.ndarray:
    """Boxes of 112 pixels and more within the picture."""
    random = np.random.default_rng(1)
    sides = random.integers(RELEASED.least_side, (WIDTH, HEIGHT), (count, 2), endpoint=True)
    starts = random.integers(0, (WIDTH, HEIGHT) - sides, endpoint=True)
    return np.hstack([starts, starts + sides - 1])


def usual(net: Net, x: Tensor) -> Tensor:
    """The scores of crops by PyTorch's functions, one a layer, with the parameters of `net`."""
    indices: dict[str, Tensor] = {}
    for layer in net.definition.layer:
        blobs, window = net.params.get(layer.name, []), layer.convolution_param
        pad = window.pad[0] if window.pad else 0
        if layer.type == "Convolution":
            x = nnf.conv2d(x, blobs[0], blobs[1], padding=pad)
        elif layer.type == "Deconvolution":
            x = nnf.conv_transpose2d(x, blobs[0], blobs[1], padding=pad)
        elif layer.type == "BN":
            x = x * blobs[0] + blobs[1]
        elif layer.type == "ReLU":
            x = nnf.relu(x, inplace=True)
        elif layer.type == "Pooling":
            x, indices[layer.top[1]] = nnf.max_pool2d(x, 2, 2, return_indices=True)
        elif layer.type == "Unpooling":
            x = nnf.max_unpool2d(x, indices[layer.bottom[1]], [2, 2], [2, 2])
    return x


def compare(form: Form, proposals: int, batch: int, repeats: int, clock: Any) -> dict[str, Any]:
    """The three ways over the same boxes, in turn; they must agree."""
    net = make(form)
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    boxes = made_boxes(proposals)
    rules = Rules(RELEASED.aggregate, proposals, RELEASED.least_side, RELEASED.clip, RELEASED.offset)
    kept: dict[str, Tensor] = {}

    def way(name: str, size: int) -> None:
        score = partial(usual, net) if name == "usual" else lambda crops: net(data=crops)["seg-score"]
        kept[name], used = picture_scores(score, image, boxes, SIDE, VOC_MEAN_BGR, rules, size)
        assert used == proposals, f"{used} boxes"

    sizes = {"usual": 1, "single": 1, "batched": batch}
    seconds = alternate(
        {name: partial(way, name, size) for name, size in sizes.items()}, repeats, clock=clock
    )
    apart = max(worst_difference(kept[name].numpy(), kept["usual"].numpy(), False)[0] for name in sizes)
    assert apart < FULL, f"the scores differ by {apart:g}"
    found: dict[str, Any] = {name: spread(values) for name, values in seconds.items()}
    for name in ("usual", "single"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["batched"], strict=True)]
        found[f"{name}_over_batched"] = round(statistics.median(ratios), 3)
    return {"proposals": proposals, "batch": batch, **found, "largest_relative_difference": apart}


def main() -> int:
    """Measure, print, save on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forms", default="full,narrow")
    parser.add_argument("--proposals", type=int, default=50)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = CLOCKS[given.clock]
    result: dict[str, Any] = {"clock": given.clock, "threads": given.threads, "limits": LIMITS, "forms": {}}
    missed = []
    for name in given.forms.split(","):
        row = compare(FORMS[name], given.proposals, given.batch, given.repeats, clock)
        if name == "full":
            row["one_crop"] = forward_of_one(FORMS[name], given.repeats, clock)
            if row["one_crop"]["median_ms"] > 1e3 * LIMITS["forward_s"]:
                missed.append("the forward pass of one crop")
            if row["one_crop"]["anonymous_bytes"] > LIMITS["forward_bytes"]:
                missed.append("the memory of one crop")
            if row["usual_over_batched"] < LIMITS["usual_over_batched"]:
                missed.append("batches next to the usual way")
        result["forms"][name] = row
        print(name, row)
    if given.save:
        print("wrote", write_result("deconvnet", result))
    for words in missed:
        print("missed:", words)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
