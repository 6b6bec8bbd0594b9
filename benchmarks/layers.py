"""Each layer, forward and backward, next to the plain PyTorch operation of the same size.

Two ways, in one process, in turn, after a warm-up: the layer object as a net calls it, and the operation that
somebody would write in PyTorch. `forward` is without gradients, `both` is a forward and a backward pass.
Results are compared in the same run where the plain operation means the same. The bound is the project's own:
convolution, ordinary pooling, LRN, ReLU and softmax loss within 1.1 times. Exit 1 when one is missed. The
others are told; where PyTorch has no operation of the kind, the plain way is the shortest composition.

`net` is a whole small net against a function that calls the same operations: what a layer costs besides.

The process starts itself again with an allocator that keeps what it frees: else page faults, which fall on
one way or the other by chance, are most of what a small operation takes.

On a machine that others use meanwhile wall times tell nothing: there `--cpu` takes one thread and counts the
processor time of this process.

    python benchmarks/layers.py [--repeats 21] [--cpu] [--only REGEX] [--save]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from measure import alternate, write_result
from torch import Tensor
from torch.nn import functional as nnf

from caffe_weights.prototxt import parse_net
from reproduce.net import Net

Plain = Callable[..., Any]
Shape = tuple[int, ...]
LIMIT = 1.1
STEADY = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}  # of glibc
LEAST_S = 0.02  # a timing runs the operation so often that it takes this long
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
MAP, WIDE, FLAT = (2, 64, 112, 112), (8, 96, 55, 55), (64, 4096)


@dataclass(frozen=True)
class Case:
    """A layer and the plain operation on (bottoms..., blobs...). `labels`: classes of the last bottom."""

    kind: str
    shapes: Sequence[Shape]
    settings: str
    plain: Plain
    limited: bool = False
    labels: int = 0
    phase: str = "TEST"
    same: bool = True  # results are compared
    backward: bool = True


def pool(kind: str, more: str = "") -> str:
    return f"pooling_param {{ pool: {kind} {more} }}"


def filled(param: str, more: str) -> str:
    return f'{param} {{ {more} weight_filler {{ type: "xavier" }} }}'


def cross_entropy(x: Tensor, label: Tensor, **options: Any) -> Tensor:
    """The labels come as Caffe has them, float32, here too."""
    return nnf.cross_entropy(x, label.long(), **options)


def accuracy(x: Tensor, label: Tensor) -> Tensor:
    return (x.argmax(1) == label).float().mean()


def lstm(x: Tensor, flags: Tensor, w: Tensor, b: Tensor, hidden: Tensor) -> Tensor:
    state = x.new_zeros(1, x.shape[1], hidden.shape[1])
    # PyTorch's order of the gates is i, f, g, o: the same work, other numbers
    result: Tensor = torch.lstm(x, (state, state), [w, hidden, b, b], True, 1, 0.0, False, False, False)[0]
    return result


def unpool(x: Tensor, mask: Tensor) -> Tensor:
    return nnf.max_unpool2d(x, mask.long(), [2, 2])


BN = "bn_param { scale_filler { value: 1 } bn_mode: LEARN }"
CONV = "num_output: 64 kernel_size: 3 pad: 1"
UP = "num_output: 21 kernel_size: 4 stride: 2 bias_term: false"
CASES: dict[str, Case] = {
    "convolution 3x3": Case("Convolution", [(2, 64, 56, 56)], filled("convolution_param", CONV),
                            lambda x, w, b: nnf.conv2d(x, w, b, 1, 1), True),
    "convolution 1x1": Case("Convolution", [(2, 256, 28, 28)],
                            filled("convolution_param", "num_output: 64 kernel_size: 1"), nnf.conv2d, True),
    "convolution 11x11/4": Case("Convolution", [(2, 3, 227, 227)],
                                filled("convolution_param", "num_output: 96 kernel_size: 11 stride: 4"),
                                lambda x, w, b: nnf.conv2d(x, w, b, 4), True),
    "max pooling 2/2": Case("Pooling", [MAP], pool("MAX", "kernel_size: 2 stride: 2"),
                            lambda x: nnf.max_pool2d(x, 2, 2, ceil_mode=True), True),
    "max pooling 3/2": Case("Pooling", [WIDE], pool("MAX", "kernel_size: 3 stride: 2"),
                            lambda x: nnf.max_pool2d(x, 3, 2, ceil_mode=True), True),
    "average pooling 3/2": Case("Pooling", [WIDE], pool("AVE", "kernel_size: 3 stride: 2"),
                                lambda x: nnf.avg_pool2d(x, 3, 2, ceil_mode=True), True),
    "global average pooling": Case("Pooling", [(8, 512, 14, 14)], pool("AVE", "global_pooling: true"),
                                   lambda x: nnf.avg_pool2d(x, 14), True),
    "lrn across": Case("LRN", [WIDE], "lrn_param { local_size: 5 alpha: 1e-4 }",
                       lambda x: nnf.local_response_norm(x, 5, 1e-4, 0.75, 1.0), True),
    "relu": Case("ReLU", [MAP], "", nnf.relu, True),
    "relu with a slope": Case("ReLU", [MAP], "relu_param { negative_slope: 0.1 }",
                              lambda x: nnf.leaky_relu(x, 0.1), True),
    "softmax loss 1000": Case("SoftmaxWithLoss", [(256, 1000), (256,)], "", cross_entropy, True, 1000),
    "softmax loss map": Case("SoftmaxWithLoss", [(1, 21, 500, 500), (1, 500, 500)],
                             "loss_param { ignore_label: 255 normalization: NONE }",
                             lambda x, t: cross_entropy(x, t, ignore_index=255, reduction="sum"), True, 21),
    "abs": Case("AbsVal", [MAP], "", torch.abs),
    "accuracy": Case("Accuracy", [(64, 1000), (64,)], "", accuracy, labels=1000, backward=False),
    "argmax": Case("ArgMax", [(1, 21, 250, 250)], "argmax_param { axis: 1 }",
                   lambda x: x.max(1, keepdim=True).indices.float(), backward=False),
    "batch norm, stored": Case("BatchNorm", [MAP], "",
                               lambda x, m, v, f: nnf.batch_norm(x, m, v, eps=1e-5)),
    "batch norm, batch": Case("BatchNorm", [MAP], "",
                              lambda x, m, v, f: nnf.batch_norm(x, m.clone(), v.clone(), training=True),
                              phase="TRAIN"),
    "bias": Case("Bias", [MAP], "", lambda x, b: x + b.reshape(-1, 1, 1)),
    "bn, batch": Case("BN", [MAP], BN, lambda x, s, b: nnf.batch_norm(
        x, None, None, s.flatten(), b.flatten(), True, eps=1e-9)),
    "bn, folded": Case("BN", [MAP], BN.replace("LEARN", "INFERENCE"), lambda x, s, b: torch.addcmul(b, x, s)),
    "bnll": Case("BNLL", [MAP], "", nnf.softplus),
    "clip": Case("Clip", [MAP], "clip_param { min: -1 max: 1 }", lambda x: x.clamp(-1, 1)),
    "concat": Case("Concat", [MAP, MAP], "", lambda a, b: torch.cat([a, b], 1)),
    "contrastive loss": Case("ContrastiveLoss", [FLAT, FLAT, (64,)], "",
                             lambda a, b, t: (t * (a - b).square().sum(1) + (1 - t) * nnf.relu(
                                 1 - (a - b).square().sum(1).sqrt()).square()).sum() / 128, labels=2),
    "crop": Case("Crop", [(1, 21, 300, 300), (1, 21, 250, 250)], "crop_param { offset: 19 }",
                 lambda x, like: x[:, :, 19:269, 19:269]),
    "deconvolution 4x4/2": Case("Deconvolution", [(1, 21, 64, 64)], filled("convolution_param", UP),
                                lambda x, w: nnf.conv_transpose2d(x, w, None, 2)),
    "dropout": Case("Dropout", [FLAT], "", lambda x: nnf.dropout(x, 0.5), phase="TRAIN", same=False),
    "elu": Case("ELU", [MAP], "", nnf.elu),
    "eltwise max": Case("Eltwise", [MAP, MAP], "eltwise_param { operation: MAX }", torch.maximum),
    "eltwise product": Case("Eltwise", [MAP, MAP], "eltwise_param { operation: PROD }", torch.mul),
    "eltwise sum": Case("Eltwise", [MAP, MAP], "", torch.add),
    "eltwise accuracy": Case("EltwiseAccuracy", [(1, 21, 250, 250), (1, 1, 250, 250)], "", lambda x, t: (
        accuracy(x, t[:, 0]).reshape(1, 1, 1, 1)), labels=21, backward=False),
    "embed": Case("Embed", [(64, 50)], 'embed_param { input_dim: 5000 num_output: 256 bias_term: false '
                  'weight_filler { type: "xavier" } }', nnf.embedding, labels=5000),
    "euclidean loss": Case("EuclideanLoss", [FLAT, FLAT], "", lambda a, b: (a - b).square().sum() / 128),
    "exp": Case("Exp", [MAP], "", torch.exp),
    "flatten": Case("Flatten", [MAP], "", lambda x: x.flatten(1)),
    "hinge loss": Case("HingeLoss", [(64, 1000), (64,)], "", lambda x, t: nnf.relu(
        1 + x * (1 - 2 * nnf.one_hot(t, 1000))).sum() / 64, labels=1000),
    "im2col": Case("Im2col", [(2, 64, 56, 56)], "convolution_param { kernel_size: 3 }",
                   lambda x: nnf.unfold(x, 3).reshape(2, 576, 54, 54)),
    "inner product": Case(
        "InnerProduct", [FLAT], filled("inner_product_param", "num_output: 1000"), nnf.linear
    ),
    "interp": Case("Interp", [(1, 21, 65, 65)], "interp_param { zoom_factor: 8 }", lambda x: nnf.interpolate(
        x, (513, 513), mode="bilinear", align_corners=True)),
    "log": Case("Log", [MAP], "log_param { shift: 10 }", lambda x: torch.log(x + 10)),
    "lrn within": Case("LRN", [WIDE], "lrn_param { local_size: 5 norm_region: WITHIN_CHANNEL }",
                       lambda x: x * (1 + nnf.avg_pool2d(x * x, 5, 1, 2)) ** -0.75),
    "lstm": Case("LSTM", [(20, 16, 128), (20, 16)], filled("recurrent_param", "num_output: 128"), lstm,
                 labels=2, same=False),
    "mvn": Case("MVN", [MAP], "", lambda x: nnf.instance_norm(x, eps=1e-9)),
    "power": Case("Power", [MAP], "power_param { power: 2 scale: 0.5 shift: 1 }",
                  lambda x: (x * 0.5 + 1) ** 2),
    "prelu": Case("PReLU", [MAP], "", nnf.prelu),
    "reduction": Case("Reduction", [MAP], "reduction_param { axis: 1 }", lambda x: x.sum((1, 2, 3))),
    "scale and bias": Case("Scale", [MAP], "scale_param { bias_term: true }",
                           lambda x, s, b: torch.addcmul(b.reshape(-1, 1, 1), x, s.reshape(-1, 1, 1))),
    "sigmoid": Case("Sigmoid", [MAP], "", torch.sigmoid),
    "sigmoid loss": Case("SigmoidCrossEntropyLoss", [FLAT, FLAT], "", lambda x, t: (
        nnf.binary_cross_entropy_with_logits(x, t.detach(), reduction="sum") / 64)),
    "softmax": Case("Softmax", [(1, 21, 250, 250)], "", lambda x: x.softmax(1)),
    "spp": Case("SPP", [(2, 64, 32, 32)], "spp_param { pyramid_height: 3 }", lambda x: torch.cat(
        [nnf.max_pool2d(x, 32 // n).flatten(1) for n in (1, 2, 4)], 1)),
    "swish": Case("Swish", [MAP], "", nnf.silu),
    "tanh": Case("TanH", [MAP], "", torch.tanh),
    "threshold": Case("Threshold", [MAP], "", lambda x: (x > 0).float(), backward=False),
    "tile": Case("Tile", [(2, 64, 56, 56)], "tile_param { tiles: 4 }", lambda x: x.repeat(1, 4, 1, 1)),
    "unpooling": Case("Unpooling", [(8, 64, 28, 28)] * 2, "unpooling_param { kernel_size: 2 stride: 2 "
                      "unpool_size: 56 }", unpool, labels=56 * 56, same=False),
    "upsample": Case("Upsample", [(8, 64, 28, 28)] * 2, "", unpool, labels=56 * 56, same=False),
}  # fmt: skip


def make(case: Case) -> Net:
    names = [f"x{i}" for i in range(len(case.shapes))]
    lines = [
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        f"{' '.join(f'dim: {n}' for n in shape)} }} }} }}"
        for name, shape in zip(names, case.shapes, strict=True)
    ]
    bottoms = " ".join(f'bottom: "{name}"' for name in names)
    lines.append(f'layer {{ name: "l" type: "{case.kind}" {bottoms} top: "y" {case.settings} }}')
    return Net(parse_net("\n".join(lines)), phase=case.phase, seed=0, frame=False)


def inputs(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """Bottoms as Caffe has them, all float32, and as the plain operation takes them."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in case.shapes]
    plain = list(tensors)
    if case.labels:
        label = torch.randint(case.labels, case.shapes[-1], generator=generator)
        tensors[-1] = label.float()
        plain[-1] = label if case.kind in ("Embed", "HingeLoss") else label.float()
    for tensor in tensors[: len(tensors) - bool(case.labels)]:
        tensor.requires_grad_(case.backward)
    return tensors, plain


def measure(case: Case, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of both ways and their ratio, forward and both ways."""
    net = make(case)
    layer, blobs = net.layer("l"), net.params.get("l", [])
    bottoms, plain = inputs(case)
    ours: Plain = lambda: layer.forward(bottoms, blobs)[0]  # noqa: E731
    theirs: Plain = lambda: case.plain(*plain, *blobs)  # noqa: E731
    if case.kind == "BatchNorm" and case.phase == "TEST":
        with torch.no_grad():
            blobs[1].fill_(1.0), blobs[2].fill_(1.0)
    if case.same:
        torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)
    result = compare("forward", without_gradients(ours), without_gradients(theirs), repeats, clock)
    if case.backward:
        leaves = [x for x in [*bottoms, *blobs] if x.requires_grad]
        seed = torch.ones_like(ours())
        result |= compare("both", both(ours, seed, leaves), both(theirs, seed, leaves), repeats, clock)
    return result


def without_gradients(call: Plain) -> Plain:
    def way() -> None:
        with torch.no_grad():
            call()

    return way


def both(call: Plain, seed: Tensor, leaves: list[Tensor]) -> Plain:
    def way() -> None:
        torch.autograd.grad(call(), leaves, seed, allow_unused=True)

    return way


def compare(
    name: str, ours: Plain, plain: Plain, repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    plain()
    start = clock()
    plain()
    times = min(1000, max(1, math.ceil(LEAST_S / max(clock() - start, 1e-7))))

    def often(call: Plain) -> Callable[[], None]:
        def way() -> None:
            for _ in range(times):
                call()

        return way

    seconds = alternate({"ours": often(ours), "plain": often(plain)}, repeats, clock=clock)
    medians = {way: statistics.median(values) / times for way, values in seconds.items()}
    return {
        f"{name}_ms": round(1e3 * medians["ours"], 4),
        f"{name}_plain_ms": round(1e3 * medians["plain"], 4),
        f"{name}_ratio": round(medians["ours"] / medians["plain"], 3),
    }


SMALL = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 8 dim: 16 dim: 16 } } }
""" + "".join(
    f"""
layer {{ name: "conv{i}" type: "Convolution" bottom: "{"pool" + str(i - 1) if i else "data"}" top: "conv{i}"
        convolution_param {{ num_output: 8 kernel_size: 3 pad: 1 weight_filler {{ type: "msra" }} }} }}
layer {{ name: "relu{i}" type: "ReLU" bottom: "conv{i}" top: "conv{i}" }}
layer {{ name: "pool{i}" type: "Pooling" bottom: "conv{i}" top: "pool{i}"
        pooling_param {{ kernel_size: 2 stride: 2 }} }}
"""
    for i in range(3)
)


def measure_net(repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """A net of nine small layers, where calling them costs as much as what they compute."""
    net = Net(parse_net(SMALL), seed=0, frame=False)
    x = torch.randn(1, 8, 16, 16, requires_grad=True)
    pairs = [net.params[f"conv{i}"] for i in range(3)]

    def plain() -> Tensor:
        y = x
        for weight, bias in pairs:
            y = nnf.max_pool2d(nnf.relu(nnf.conv2d(y, weight, bias, 1, 1)), 2, 2, ceil_mode=True)
        return y

    ours: Plain = lambda: net(data=x)["pool2"]  # noqa: E731
    torch.testing.assert_close(ours(), plain())
    leaves = [x, *net.parameters()]
    seed = torch.ones_like(plain())
    result = compare("forward", without_gradients(ours), without_gradients(plain), repeats, clock)
    result |= compare("both", both(ours, seed, leaves), both(plain, seed, leaves), repeats, clock)
    extra = result["forward_ms"] - result["forward_plain_ms"]
    return result | {"extra_us_a_layer": round(1e3 * extra / 9, 2)}


def missed(result: dict[str, Any]) -> list[str]:
    """The limits that a result does not keep."""
    return [
        f"{name}: {way} {row[f'{way}_ratio']} times plain PyTorch, limit {LIMIT}"
        for name, row in result["layers"].items()
        for way in ("forward", "both")
        if CASES[name].limited and row[f"{way}_ratio"] > LIMIT
    ]


def run(repeats: int, clock: str, only: str = "") -> dict[str, Any]:
    if clock == "cpu":
        torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for name, case in CASES.items():
        if re.search(only, name):
            rows[name] = measure(case, repeats, CLOCKS[clock])
            print(f"{name:24} {words(rows[name])}", file=sys.stderr, flush=True)
    load = round(os.getloadavg()[0], 2)
    result = {
        "clock": clock,
        "load": load,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "layers": rows,
    }
    return result | ({} if only else {"net": measure_net(repeats, CLOCKS[clock])})


def words(row: dict[str, float]) -> str:
    """One line of the table on standard error."""
    parts = [f"{way} {row[f'{way}_ms']:9.3f} ms, {row[f'{way}_ratio']:6.3f} times plain"
             for way in ("forward", "both") if f"{way}_ms" in row]  # fmt: skip
    return "   ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--cpu", action="store_true", help="one thread, processor time")
    parser.add_argument("--only", default="", help="only the cases that this expression finds")
    parser.add_argument("--save", action="store_true", help="write the committed result file")
    arguments = parser.parse_args()
    if not os.environ.keys() >= STEADY.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **STEADY})
    result = run(arguments.repeats, "cpu" if arguments.cpu else "wall", arguments.only)
    failures = missed(result)
    result |= {"limit": LIMIT, "missed": failures}
    print(json.dumps(result, indent=1))
    if arguments.save:
        write_result("layers", result)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
