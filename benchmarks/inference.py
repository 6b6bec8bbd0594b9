"""How fast FCNs run at full width, next to everything else that runs them on a CPU.

Each way runs in a process of its own, which loads the same random weights; the ways take turns, `--rounds`
times over, so that what else the machine does falls on all of them:

  ours                our runtime as it runs by default
  whole               ours without the shortcut over the constant border
  port                plain PyTorch as ports usually are (usual_port.py), in either layout
  port channels-last
  opencv              OpenCV's dnn, on the same prototxt and caffemodel
  onnxruntime         ONNX Runtime and OpenVINO, on the port exported to ONNX
  openvino
  caffe               Caffe itself, through a Python that has it: --caffe PYTHON or CAFFE_PYTHON

`cold` is the first picture of a size, `warm` the median of later ones, the mix a set of sizes as in PASCAL
VOC, each seen once. Memory is the greatest that was resident, weights and interpreter included. Scores are
compared in the same run: ours with and without the shortcut within the tolerance of the table, the others
within that of kernels of their own, labels wherever the two best scores leave no doubt. The rate of the
machine is that of a large float32 matrix product in the same run, the faster of PyTorch's two libraries. A
way whose package is not there is left out, and the result says so.

The bounds are those the project set itself for FCN-8s (`LIMITS`). Exit 1 when one is missed. On a machine
that others use meanwhile, `--clock cpu --threads 1` counts processor time: then only ratios mean something.

    python benchmarks/inference.py [--nets voc-fcn8s] [--sizes 500x500] [--peers ours,whole] [--save]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frame import CLOCKS, differences, random_weights, words
from measure import spread, write_result
from peers import WAYS

from caffe_weights.export import write_weights
from caffe_weights.prototxt import format_net
from caffe_weights.weights import Weights
from reproduce.net import Net
from reproduce.nets import Form, make_net
from reproduce.tolerances import FULL, OPENCV

NETS = ("voc-fcn8s", "voc-fcn16s", "voc-fcn32s", "voc-fcn-alexnet")
SIZES = ((500, 500), (375, 500), (256, 256))
MIX = ((375, 500), (500, 375), (333, 500), (281, 500), (500, 334), (442, 500), (357, 500), (500, 466))
MODULES = {"opencv": "cv2", "onnxruntime": "onnxruntime", "openvino": "openvino"}
ON_ONNX = ("onnxruntime", "openvino")
STRIDES = {"voc-fcn8s": 8, "voc-fcn16s": 16, "voc-fcn32s": 32}
PORTS = ("port", "port channels-last", *ON_ONNX)
JUDGED = "voc-fcn8s"
LIMITS = {  # at least; memory at most
    "500x500 whole": 1.4, "500x500 port": 1.4, "500x500 port channels-last": 1.4, "500x500 opencv": 2.0,
    "500x500 caffe": 2.0, "500x500 onnxruntime": 1.15, "500x500 openvino": 1.15, "256x256 whole": 1.7,
    "mix whole": 1.3, "500x500 fraction of the matrix rate": 0.75, "peak memory in GB": 1.2,
}  # fmt: skip
MATRIX = 4096


def measure_net(name: str, options: argparse.Namespace, ways: Sequence[str]) -> dict[str, Any]:
    """All ways of one net: by size, over the mix, and in memory."""
    form = Form(options.narrow)
    able = [way for way in ways if way not in PORTS or name in STRIDES]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        prepare(Path(folder), name, form, able)
        answers: dict[str, list[dict[str, Any]]] = {way: [] for way in able}
        rates = []
        for turn in range(options.rounds):
            rates.append(matrix_rate(options))
            for way in able:
                say(f"{name}: {way}, round {turn + 1} of {options.rounds}")
                answers[way].append(start(way, folder, job_of(name, options, folder if not turn else "")))
        compared = {words(size): compare(Path(folder), able, size) for size in options.sizes}
    rate = max(rates)
    return {
        "matrix_gflop_s": round(rate / 1e9, 1),
        "gflop": {words(size): gflop(name, form, size) for size in options.sizes},
        "sizes": {words(size): by_size(words(size), answers) for size in options.sizes},
        "mix": mixed(answers),
        "peak_gb": {
            way: round(max(a["peak_bytes"] for a in found) / 1e9, 3) for way, found in answers.items()
        },
        "load_s": {
            way: round(statistics.median(a["load_s"] for a in found), 3) for way, found in answers.items()
        },
        "compared": compared,
    }


def prepare(folder: Path, name: str, form: Form, ways: Sequence[str]) -> None:
    """Write the files that the ways read."""
    net, random = make_net(name, form=form), random_weights(name, form)
    (folder / "deploy.prototxt").write_text(format_net(net))
    weights = Weights(random, net=net)
    write_weights(weights, folder / "net.caffemodel")
    if any(way in ON_ONNX for way in ways):
        from usual_port import UsualFCN, load

        port = UsualFCN(STRIDES[name], narrow=form.narrow).eval()
        load(port, weights)
        torch.onnx.export(
            port, (torch.zeros(1, 3, 300, 310),), str(folder / "port.onnx"), dynamo=False, opset_version=18,
            input_names=["data"], output_names=["score"], dynamic_axes={"data": {2: "h", 3: "w"}},
        )  # fmt: skip


def job_of(name: str, options: argparse.Namespace, scores: str) -> dict[str, Any]:
    keys = {key: getattr(options, key) for key in ("sizes", "mix", "repeats", "threads", "clock", "narrow")}
    return {**keys, "stride": STRIDES.get(name), "classes": 21, "scores": scores, "caffe": options.caffe}


def start(way: str, folder: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one way in a process of its own."""
    python = job["caffe"] if way == "caffe" else sys.executable
    text = json.dumps({**job, "way": way, "folder": folder})
    environment = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}
    threads = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(job["threads"])
    )
    done = subprocess.run(
        [python, str(Path(__file__).with_name("peers.py")), text], text=True, capture_output=True,
        env={**environment, **threads}, check=False,
    )  # fmt: skip
    line = next((line for line in done.stdout.splitlines() if line.startswith("ANSWER ")), None)
    if line is None:
        raise RuntimeError(f"{way} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(line.removeprefix("ANSWER "))
    return answer


def compare(folder: Path, ways: Sequence[str], size: tuple[int, int]) -> dict[str, float]:
    """Worst difference of each way from ours without the shortcut, relative to the largest score."""
    read = {way: torch.from_numpy(np.load(folder / f"{way} {words(size)}.npy")) for way in ways}
    want = read["whole" if "whole" in read else "ours"]
    bounds = {way: FULL if way in ("ours", "whole") else OPENCV for way in read}
    return {way: differences(got, want, bounds[way])["worst_difference"] for way, got in read.items()}


def by_size(size: str, answers: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    rows = {}
    for way, found in answers.items():
        warm = [seconds for answer in found for seconds in answer["sizes"][size]["warm_s"]]
        cold = [answer["sizes"][size]["cold_s"] for answer in found]
        rows[way] = {"warm": spread(warm), "cold_ms": round(1e3 * statistics.median(cold), 1)}
    least = rows["ours"]["warm"]["median_ms"]
    for row in rows.values():
        row["over_ours"] = round(row["warm"]["median_ms"] / least, 3)
    return rows


def mixed(answers: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Seconds of the whole mix, each size seen once, and over ours."""
    seconds = {way: min(sum(answer["mix_s"]) for answer in found) for way, found in answers.items()}
    return {
        way: {"seconds": round(value, 3), "over_ours": round(value / seconds["ours"], 3) if value else None}
        for way, value in seconds.items()
    }


def gflop(name: str, form: Form, size: tuple[int, int]) -> dict[str, float]:
    """What the whole maps need, and what ours executes; rims, once a size class, apart."""
    with torch.device("meta"):
        counted = Net(make_net(name, form=form)).flops({"data": (1, 3, *size)})
    parts = {"whole": counted.plain, "ours": counted.regions, "rims": counted.rims}
    return {key: round(value / 1e9, 3) for key, value in parts.items()}


def matrix_rate(options: argparse.Namespace) -> float:
    """Floating-point operations a second of a large float32 product, by the faster of two libraries."""
    clock, n = CLOCKS[options.clock], MATRIX if options.narrow == 1 else MATRIX // 8
    torch.set_num_threads(options.threads)
    a, b = torch.rand(n, n), torch.rand(n, n)
    products = [lambda: a @ b]
    if torch.backends.mkldnn.is_available():
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    seconds = []
    for product in [*products, *products, *products]:
        begun = clock()
        product()
        seconds.append(clock() - begun)
    return 2 * n**3 / min(seconds)


def judge(result: Mapping[str, Any]) -> dict[str, float]:
    """What is held against LIMITS, as far as it was measured."""
    sizes, found = result["sizes"], {}
    for size in ("500x500", "256x256"):
        for way, row in sizes.get(size, {}).items():
            found[f"{size} {way}"] = row["over_ours"]
    if "500x500" in sizes:
        rate = result["gflop"]["500x500"]["ours"] / sizes["500x500"]["ours"]["warm"]["median_ms"] * 1e3
        found["500x500 fraction of the matrix rate"] = round(rate / result["matrix_gflop_s"], 3)
    found |= {f"mix {way}": row["over_ours"] for way, row in result["mix"].items() if row["over_ours"]}
    found["peak memory in GB"] = result["peak_gb"]["ours"]
    return {name: found[name] for name in LIMITS if name in found}


def missed(judged: Mapping[str, float]) -> list[str]:
    """The limits that are not kept."""
    return [
        f"{name}: {value}, limit {LIMITS[name]}"
        for name, value in judged.items()
        if (value > LIMITS[name] if "memory" in name else value < LIMITS[name])
    ]


def available(asked: Sequence[str], caffe: str) -> tuple[list[str], dict[str, str]]:
    """The ways that can run here, and why others cannot."""
    skipped = {}
    for way in asked:
        module = MODULES.get(way)
        if module and importlib.util.find_spec(module) is None:
            skipped[way] = f"no module {module}"
        elif way in ON_ONNX and importlib.util.find_spec("onnx") is None:
            skipped[way] = "no module onnx, which the export needs"
        elif way == "caffe" and not caffe:
            skipped[way] = "no Python that has Caffe: --caffe or CAFFE_PYTHON"
    return [way for way in asked if way not in skipped], skipped


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all that `options` ask for."""
    ways, skipped = available(options.peers, options.caffe)
    for way, reason in skipped.items():
        say(f"skipped {way}: {reason}")
    if torch.cuda.is_available():
        say("a CUDA device is there and not used: this script measures CPUs")
    before = os.getloadavg()[0]
    nets = {name: measure_net(name, options, ways) for name in options.nets}
    judged = judge(nets[JUDGED]) if JUDGED in nets else {}
    return {
        "clock": options.clock, "threads": options.threads, "repeats": options.repeats,
        "rounds": options.rounds, "narrow": options.narrow, "device": "cpu", "skipped": skipped,
        "load": {"before": round(before, 2), "after": round(os.getloadavg()[0], 2)},
        "packages": {way: versions(way) for way in ways if way in MODULES},
        "nets": nets, "limits": LIMITS, "judged": judged, "missed": missed(judged),
    }  # fmt: skip


def versions(way: str) -> str:
    module = importlib.import_module(MODULES[way])
    return str(getattr(module, "__version__", "unknown"))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    sizes = ",".join(map(words, SIZES))
    parser.add_argument("--nets", default=",".join(NETS), type=lambda text: text.split(","))
    parser.add_argument("--sizes", default=sizes, type=read_sizes)
    parser.add_argument("--mix", default=",".join(map(words, MIX)), type=read_sizes)
    parser.add_argument("--peers", default=",".join(WAYS), type=lambda text: text.split(","))
    parser.add_argument("--repeats", type=int, default=3, help="warm runs of a size in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--narrow", type=int, default=1, help="divide the widths by this, for a trial")
    parser.add_argument("--caffe", default=os.environ.get("CAFFE_PYTHON", ""), help="a Python that has Caffe")
    parser.add_argument("--folder", type=Path, help="where to put 1.2 GB of files; default: temporary")
    parser.add_argument("--save", action="store_true", help="write the committed result file")
    return parser.parse_args(arguments)


def read_sizes(text: str) -> list[tuple[int, int]]:
    """`500x500,256x256` as pairs; nothing as none."""
    pairs = [part.split("x") for part in text.split(",") if part]
    return [(int(height), int(width)) for height, width in pairs]


def main() -> int:
    options = parse()
    result = run(options)
    print(json.dumps(result, indent=1))
    if options.save:
        write_result("inference", result)
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
