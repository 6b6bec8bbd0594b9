"""What benchmarks share: alternating timings, anonymous memory, results that say where and when."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "reproduce" / "published" / "results"
VERSIONS = ("torch", "numpy", "protobuf", "safetensors", "h5py")


def alternate(
    ways: Mapping[str, Callable[[], None]],
    repeats: int = 7,
    between: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each of `repeats` runs of each way, taken in turn after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            between()
            start = clock()
            way()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, least and greatest of some timings, in milliseconds."""
    return {
        "median_ms": round(1e3 * statistics.median(seconds), 2),
        "least_ms": round(1e3 * min(seconds), 2),
        "greatest_ms": round(1e3 * max(seconds), 2),
    }


class AnonymousPeak:
    """Context: the greatest anonymous memory of this process seen meanwhile, every millisecond (Linux)."""

    def __enter__(self) -> AnonymousPeak:
        self.before_bytes = self.peak_bytes = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, anonymous_bytes())

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes())


def anonymous_bytes(pid: int | str = "self") -> int:
    """The anonymous resident memory of a process, from /proc (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc: this needs Linux")


def write_result(name: str, result: Mapping[str, object], folder: Path = RESULTS) -> Path:
    """Write a result with machine, versions and date to `<folder>/<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = {package: importlib.metadata.version(package) for package in VERSIONS}
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions},
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**about, **result}, indent=1) + "\n")
    return path


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown processor")
