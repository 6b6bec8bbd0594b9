"""All benchmarks, one after the other, and one table: `python -m benchmarks [--quick] [--json] [--save]`.

Each is a script of its own that can be run alone and documents itself. `--quick` runs them on narrow nets and
few repeats: that shows whether they run, and says nothing about speed, so nothing is judged. Exit 1 when a
script fails or a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
Result = Mapping[str, Any]
Row = tuple[str, float]  # what, and its value


def of_conversion(result: Result) -> list[Row]:
    return [(name, result[name]) for name in result["limits"]]


def of_layers(result: Result) -> list[Row]:
    rows = [(name, row["forward_ratio"]) for name, row in result["layers"].items()]
    return [
        (f"forward over plain, {name}", value) for name, value in sorted(rows, key=lambda row: -row[1])[:3]
    ]


def of_frame(result: Result) -> list[Row]:
    return [(f"without over with, {size}", row["without_over_with"]) for size, row in result["sizes"].items()]


def of_inference(result: Result) -> list[Row]:
    return [
        (f"{net} {size}, {way} over ours", row["over_ours"])
        for net, found in result["nets"].items()
        for size, rows in found["sizes"].items()
        for way, row in rows.items()
        if way != "ours"
    ] + [(f"{net}, peak GB of ours", found["peak_gb"]["ours"]) for net, found in result["nets"].items()]


def of_training(result: Result) -> list[Row]:
    keys = ("usual_over_ours", "memory_ours_over_usual")
    return [
        (f"{net}, {key}", found[key]) for net, found in result["nets"].items() for key in keys if key in found
    ]


def of_growth(result: Result) -> list[Row]:
    return [(f"seconds at {size}", row["seconds"]) for size, row in result["ways"]["ours"].items()]


def of_published(result: Result) -> list[Row]:
    return [(f"{name}, of the matrix rate", case["fraction"]) for name, case in result["cases"].items()]


def of_folder(result: Result) -> list[Row]:
    rates = [(f"images a second, {name}", value) for name, value in result["images_per_second"].items()]
    return [*rates, ("folder over bare", result["folder_over_bare"])]


NARROW = ["--narrow", "16", "--repeats", "1"]
SCRIPTS: dict[str, tuple[Callable[[Result], list[Row]], list[str]]] = {  # how to read it, and what is quick
    "conversion": (of_conversion, ["--repeats", "1"]),
    "layers": (of_layers, ["--repeats", "1", "--only", "convolution 1x1|^relu$|max pooling 2/2"]),
    "frame": (of_frame, NARROW),
    "inference": (of_inference, [*NARROW, "--rounds", "1", "--nets", "voc-fcn8s", "--sizes", "256x256",
                                 "--mix", "", "--peers", "ours,whole,port"]),
    "training": (of_training, [*NARROW, "--turns", "1", "--nets", "voc-fcn8s", "--size", "96x96"]),
    "folder": (of_folder, [*NARROW, "--shrink", "4", "--pictures", "4"]),
    "growth": (of_growth, [*NARROW, "--sizes", "64x64,256x256"]),
    "published_timings": (of_published, NARROW),
}  # fmt: skip


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one script; its result, or the end of what it said."""
    extra = SCRIPTS[name][1] if options.quick else []
    command = [sys.executable, str(FOLDER / f"{name}.py"), *extra, *(["--save"] if options.save else [])]
    print(f"{name} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"failed": (done.stderr or done.stdout).strip()[-1000:]}
    return result


def table(results: Mapping[str, Result]) -> list[str]:
    """One line a value, and the limits that were missed."""
    lines = []
    for name, result in results.items():
        if "failed" in result:
            lines.append(f"{name:18} failed: {result['failed'].splitlines()[-1]}")
            continue
        lines += [f"{name:18} {what:56} {value:10.3f}" for what, value in SCRIPTS[name][0](result)]
        lines += [f"{name:18} missed: {words}" for words in result.get("missed", ())]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default=",".join(SCRIPTS), type=lambda text: text.split(","))
    parser.add_argument("--quick", action="store_true", help="narrow nets, few repeats: does it run?")
    parser.add_argument("--json", action="store_true", help="print all results as JSON instead of the table")
    parser.add_argument("--save", action="store_true", help="write the committed result files")
    options = parser.parse_args()
    if options.quick and options.save:
        parser.error("--quick measures nothing that is worth saving")
    results = {name: measure(name, options) for name in options.only}
    if options.quick:
        for result in results.values():
            result.pop("missed", None)
    print(json.dumps(results, indent=1) if options.json else "\n".join(table(results)))
    return 1 if any("failed" in result or result.get("missed") for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
