"""A stand-in for pycaffe with one fixed net, for the script that runs in another interpreter.

data -> Split -> double (y = 2x, parameter "double" 0) -> relu in place; a second reader of data, "half"
(y = x / 2, gradient not needed); sum = double + half. Gradients go where a real Caffe's would.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__version__ = "stand-in"
TRAIN, TEST = 0, 1


class Blob:
    def __init__(self, *shape: int) -> None:
        self.data, self.diff = np.zeros(shape, np.float32), np.zeros(shape, np.float32)


class Kind:
    def __init__(self, name: str) -> None:
        self.type = name


LAYERS = [
    ("in", "Input", [], ["data"]), ("split", "Split", ["data"], ["data_0", "data_1"]),
    ("double", "Power", ["data_0"], ["a"]), ("relu", "ReLU", ["a"], ["a"]),
    ("half", "Power", ["data_1"], ["b"]), ("sum", "Eltwise", ["a", "b"], ["sum"]),
]  # fmt: skip


class Net:
    def __init__(self, path: str, phase: int) -> None:
        self._blob_names = ["data", "data_0", "data_1", "a", "b", "sum"]
        self.blobs = {name: Blob(1, 4) for name in self._blob_names}
        self._layer_names = [name for name, _, _, _ in LAYERS]
        self.layers = [Kind(kind) for _, kind, _, _ in LAYERS]
        self.params = {"double": [Blob(1)]}

    def copy_from(self, path: str) -> None:
        self.params["double"][0].data[...] = 2

    def _bottom_ids(self, i: int) -> list[int]:
        return [self._blob_names.index(name) for name in LAYERS[i][2]]

    def _top_ids(self, i: int) -> list[int]:
        return [self._blob_names.index(name) for name in LAYERS[i][3]]

    def _forward(self, start: int, end: int) -> None:
        b: Any = {name: blob.data for name, blob in self.blobs.items()}
        name = LAYERS[start][0]
        if name == "split":
            b["data_0"][...] = b["data_1"][...] = b["data"]
        elif name == "double":
            b["a"][...] = b["data_0"] * self.params["double"][0].data
        elif name == "relu":
            np.maximum(b["a"], 0, out=b["a"])
        elif name == "half":
            b["b"][...] = b["data_1"] / 2
        elif name == "sum":
            b["sum"][...] = b["a"] + b["b"]

    def _backward(self, start: int, end: int) -> None:
        b, d = ({name: getattr(blob, part) for name, blob in self.blobs.items()} for part in ("data", "diff"))
        name = LAYERS[start][0]
        if name == "sum":
            d["a"][...] = d["sum"]  # that of b is not needed
        elif name == "relu":
            d["a"][...] *= b["a"] > 0
        elif name == "double":
            self.params["double"][0].diff[...] = (d["a"] * b["data_0"]).sum()
            d["data_0"][...] = d["a"] * 2
        elif name == "split":
            d["data"][...] = d["data_0"] + d["data_1"]


def set_mode_cpu() -> None:
    pass
