"""How fast a VGG16-sized caffemodel (138 M parameters, 553 MB) becomes a safetensors file.

Three ways, in one process, in turn, seven times, with the page cache warm:

  ours    read_weights + write_weights, as `convert-weights` does it
  copy    copying the file (`shutil.copyfile`), the floor: every byte is read and written once
  usual   what most converters do: parse the whole file with protobuf, np.array(blob.data), save_file

and apart from them, each in its own process: the anonymous memory of ours and of the usual way, and
`fcn inspect` from start to exit. The bounds are those the project set itself: at most 1.5 times the copy,
at least 2 times faster than the usual way, at most 150 MB, under 0.5 s. Exit 1 when one is missed.

    python benchmarks/conversion.py [--repeats 7] [--folder DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from measure import AnonymousPeak, alternate, anonymous_bytes, spread, write_result

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.export import read_weights, write_weights
from caffe_weights.weights import Weights, blob_key

LIMITS = {"ours_over_copy": 1.5, "usual_over_ours": 2.0, "ours_anonymous_mb": 150.0, "inspect_ms": 500.0}
WIDTHS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
FULLY_CONNECTED = (("fc6", 4096, 25088), ("fc7", 4096, 4096), ("fc8", 1000, 4096))


def vgg16_sized() -> Weights:
    """Random weights of VGG16's layers and shapes, with a net that names their types."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for stage, (width, depth) in enumerate(WIDTHS, 1):
        for i in range(1, depth + 1):
            shapes[f"conv{stage}_{i}"] = (width, channels, 3, 3)
            channels = width
    shapes |= {name: (outputs, inputs) for name, outputs, inputs in FULLY_CONNECTED}
    kinds = {4: "Convolution", 2: "InnerProduct"}
    net = NetParameter(name="vgg16-sized")
    for name, shape in shapes.items():
        net.layer.add(name=name, type=kinds[len(shape)])
    blobs = {
        name: [rng.standard_normal(shape, np.float32), np.zeros(shape[0], np.float32)]
        for name, shape in shapes.items()
    }
    return Weights(blobs, net=net)


def ours(source: Path, out: Path) -> None:
    write_weights(read_weights(source), out, force=True)


def usual(source: Path, out: Path) -> None:
    net = NetParameter.FromString(source.read_bytes())
    tensors = {
        blob_key(layer.name, i): np.array(blob.data, np.float32).reshape(blob.shape.dim)
        for layer in net.layer
        for i, blob in enumerate(layer.blobs)
    }
    safetensors.numpy.save_file(tensors, out)


def anonymous_mb(way: str, source: Path, out: Path) -> float:
    """Peak anonymous memory of one conversion in a fresh process, above that of a bare interpreter."""
    command = [sys.executable, __file__, "--measure-memory", way, str(source), str(out)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(way: str, source: Path, out: Path) -> None:
    with AnonymousPeak() as peak:
        {"ours": ours, "usual": usual}[way](source, out)
    print((peak.peak_bytes - bare_interpreter_bytes()) / 1e6)


def bare_interpreter_bytes() -> int:
    """Anonymous memory of a Python that has imported nothing of ours."""
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        size = anonymous_bytes(child.pid)
        child.communicate(b"\n")
    return size


def inspect_seconds(source: Path, repeats: int) -> list[float]:
    """Seconds that `fcn inspect` takes as a command, interpreter included."""
    command = [sys.executable, "-m", "reproduce", "inspect", str(source)]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return seconds


def run(folder: Path, repeats: int) -> dict[str, object]:
    source, out = folder / "vgg16-sized.caffemodel", folder / "out.safetensors"
    weights = vgg16_sized()
    write_weights(weights, source)
    ways = {
        "ours": lambda: ours(source, out),
        "copy": lambda: (shutil.copyfile(source, out), None)[1],
        "usual": lambda: usual(source, out),
    }
    seconds = alternate(ways, repeats, between=lambda: out.unlink(missing_ok=True))
    ours(source, out)
    for key, array in safetensors.numpy.load_file(out).items():
        layer, kind = key.rsplit(".", 1)
        assert np.array_equal(array, weights[layer][kind == "bias"]), key
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    parameters, size = weights.count(), source.stat().st_size
    del weights
    inspect = inspect_seconds(source, repeats)
    return {
        "parameters": parameters,
        "file_bytes": size,
        "repeats": repeats,
        **{name: spread(values) for name, values in seconds.items()},
        "inspect": spread(inspect),
        "ours_over_copy": round(medians["ours"] / medians["copy"], 3),
        "usual_over_ours": round(medians["usual"] / medians["ours"], 3),
        "ours_anonymous_mb": round(anonymous_mb("ours", source, out), 1),
        "usual_anonymous_mb": round(anonymous_mb("usual", source, out), 1),
        "inspect_ms": round(1e3 * statistics.median(inspect), 1),
    }


def missed(result: Mapping[str, object]) -> list[str]:
    """The limits that a result does not keep."""
    at_least = {"usual_over_ours"}
    return [
        f"{name}: {result[name]}, limit {limit}"
        for name, limit in LIMITS.items()
        if (float(str(result[name])) < limit if name in at_least else float(str(result[name])) > limit)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to put 1.7 GB of files; default: temporary")
    parser.add_argument("--save", action="store_true", help="write the committed result file")
    parser.add_argument("--measure-memory", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_memory:
        way, source, out = arguments.measure_memory
        measure_memory(way, Path(source), Path(out))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = run(Path(folder), arguments.repeats)
    failures = missed(result)
    result |= {"limits": LIMITS, "missed": failures}
    print(json.dumps(result, indent=1))
    if arguments.save:
        write_result("conversion", result)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
