"""The log of a run: one line of JSON an iteration, and its curves as a picture."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from caffe_weights.errors import FileError, InputError
from caffe_weights.files import as_file_error, replace_file
from reproduce.run_files import LOG

CURVES = "curves.png"
BOARD = "tensorboard"


class RunLog:
    """DIR/log.jsonl. Rows hold `iteration`: for a loss the updates before it, for a score those made.

    `rows` are those of the file and those written since.
    """

    def __init__(self, folder: Path, iteration: int = 0, tensorboard: bool = False) -> None:
        """Begin the log, or go on at an iteration: what a run that was killed logged beyond it is dropped.

        With `tensorboard` all numbers also go to DIR/tensorboard.
        """
        self.path = folder / LOG
        self.rows = [row for row in read_log(self.path) if _kept(row, iteration)] if iteration else []
        try:
            with replace_file(self.path, force=True) as temporary:
                temporary.write_text("".join(_line(row) for row in self.rows), encoding="utf-8")
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise as_file_error(self.path, error) from None
        self._board = _writer()(str(folder / BOARD), purge_step=iteration or None) if tensorboard else None
        for row in self.rows:
            if row["iteration"] >= iteration:  # a score at the very iteration, which the purge hides
                self._show(row)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row. FileError where the disk is full."""
        self.rows.append(dict(row))
        try:
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            raise FileError(str(self.path), str(as_file_error("", error))) from None
        self._show(row)

    def _show(self, row: Mapping[str, Any]) -> None:
        if self._board is not None:
            for name, value in numbers(row).items():
                self._board.add_scalar(name, value, row["iteration"])

    def close(self) -> None:
        """No more rows will come."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def check_tensorboard() -> None:
    """InputError where the package tensorboard is not installed."""
    _writer()


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What a row says in single numbers, by name: `loss`, `mean_iu`, `test/0/accuracy`."""
    found = {name: value for name, value in row.items() if name not in ("iteration", "test_net", "test")}
    tests = row.get("test", {}).items()
    found |= {f"test/{row['test_net']}/{name}": value for name, value in tests}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard", "the package tensorboard is not installed", "it",
                         "pip install 'fcn-reproduce[tensorboard]'") from None  # fmt: skip
    return SummaryWriter


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line that was cut off does not count."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("iteration"), int):
            rows.append(row)
    return rows


def draw_curves(rows: Iterable[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Loss, smoothed loss and, where there are scores, mean IU over iterations, as PNG."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(rows)
    losses = [row for row in rows if isinstance(row.get("loss"), float)]
    scores = [row for row in rows if "mean_iu" in row]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel="iteration", ylabel="loss", title=title)
    if losses:
        steps = [row["iteration"] for row in losses]
        axes.plot(steps, [row["loss"] for row in losses], color="0.8", linewidth=0.8, label="loss")
        axes.plot(steps, [row["smoothed_loss"] for row in losses], color="C0", label="smoothed loss")
        if min(row["loss"] for row in losses) > 0:
            axes.set_yscale("log")
    if scores:
        other = axes.twinx()
        other.plot([row["iteration"] for row in scores], [row["mean_iu"] for row in scores], "C1o-")
        other.set(ylabel="mean IU", ylim=(0, 1))
        axes.plot([], [], "C1o-", label="mean IU")
    if losses or scores:
        axes.legend(loc="upper right")
    with replace_file(path, force=True) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _kept(row: Mapping[str, Any], iteration: int) -> bool:
    return bool(row["iteration"] <= iteration if "mean_iu" in row else row["iteration"] < iteration)


def _line(row: Mapping[str, Any]) -> str:
    values = {key: None if isinstance(value, float) and not math.isfinite(value) else value
              for key, value in row.items()}  # fmt: skip
    return json.dumps(values) + "\n"
