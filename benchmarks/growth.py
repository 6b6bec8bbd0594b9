"""How time and memory of FCN-8s grow with the image, from 64x64 to 2000x2000, with the shortcut and without.

Each size of each way is a process of its own: the median of its warm runs, and the greatest memory that was
resident less what was there once the weights were loaded. Next to it the arithmetic, as the net counts it. A
size whose blobs would not fit into what is free is left out, and the result says so. One plot of both.

    python benchmarks/growth.py [--sizes 64x64,2000x2000] [--repeats 2] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frame import CLOCKS, words
from inference import gflop, job_of, prepare, read_sizes, say, start
from measure import write_result

from reproduce.memory import available_bytes
from reproduce.nets import Form

NET = "voc-fcn8s"
SIZES = "64x64,128x128,256x256,375x500,500x500,700x700,1000x1000,1400x1400,2000x2000"
WAYS = ("ours", "whole")
PLOT = Path(__file__).resolve().parent.parent / "docs" / "growth.png"
NEEDED_BYTES = 2.6 * 2 * 4 * 64  # a pixel of the padded image: two maps of 64 channels, and what kernels need


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all sizes that fit."""
    rows: dict[str, dict[str, Any]] = {way: {} for way in WAYS}
    skipped = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        prepare(Path(folder), NET, Form(options.narrow), ())
        for size in options.sizes:
            needed, free = needed_bytes(size, options.narrow), available_bytes()
            if free is not None and needed > free:
                skipped[words(size)] = f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
                continue
            for way in WAYS:
                say(f"{way} at {words(size)}")
                rows[way][words(size)] = measure(way, folder, size, options)
    return {
        "net": NET, "narrow": options.narrow, "clock": options.clock, "threads": options.threads,
        "repeats": options.repeats, "load": round(os.getloadavg()[0], 2), "skipped": skipped, "ways": rows,
    }  # fmt: skip


def measure(way: str, folder: str, size: tuple[int, int], options: argparse.Namespace) -> dict[str, float]:
    """Seconds, gigabytes above the loaded net, and GFLOP of one size."""
    job = job_of(NET, argparse.Namespace(**{**vars(options), "sizes": [size], "mix": [], "caffe": ""}), "")
    answer = start(way, folder, job)
    found = answer["sizes"][words(size)]
    return {
        "seconds": round(statistics.median(found["warm_s"]), 4),
        "cold_seconds": round(found["cold_s"], 4),
        "blob_gb": round((answer["peak_bytes"] - answer["loaded_bytes"]) / 1e9, 4),
        "gflop": gflop(NET, Form(options.narrow), size)[way],
    }


def needed_bytes(size: tuple[int, int], narrow: int) -> float:
    """About what the whole maps of a size take."""
    return NEEDED_BYTES / narrow * (size[0] + 198) * (size[1] + 198)


def plot(ways: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Time and memory against megapixels, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    names = {"ours": "with the shortcut", "whole": "without"}
    for axis, key, title in zip(
        axes, ("seconds", "blob_gb"), ("seconds", "GB above the weights"), strict=True
    ):
        for way, sizes in ways.items():
            areas = [height * width / 1e6 for height, width in read_sizes(",".join(sizes))]
            axis.loglog(areas, [row[key] for row in sizes.values()], marker="o", label=names[way])
        axis.set(xlabel="megapixels", title=title)
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    figure.suptitle("FCN-8s, one image")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", default=SIZES, type=read_sizes)
    parser.add_argument("--repeats", type=int, default=2, help="warm runs of a size")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--narrow", type=int, default=1, help="divide the widths by this, for a trial")
    parser.add_argument("--folder", type=Path, help="where to put 0.6 GB of weights; default: temporary")
    parser.add_argument("--save", action="store_true", help="write the committed result file and plot")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    result = run(options)
    print(json.dumps(result, indent=1))
    if options.save:
        write_result("growth", result)
        plot(result["ways"], PLOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
