"""Write docs/layers.md: the facts of reproduce.layers.coverage with what the tests hold.

python tests/layer_page.py
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import test_layer_gradients as gradients

from reproduce.layers import READERS
from reproduce.layers.coverage import page

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "layers.md"
ORACLES = ("Convolution", "Deconvolution", "Pooling", "LRN")  # of test_layer_oracles.py


def golden_counts() -> Counter[str]:
    """Golden cases of each layer type."""
    cases = (HERE / "goldens" / "layers").glob("*.npz")
    return Counter(json.loads(str(np.load(case)["meta"]))["type"] for case in cases)


def also() -> dict[str, str]:
    """What else shows a type."""
    shown: dict[str, list[str]] = {}
    for kind in gradients.checked_types():
        shown.setdefault(kind, []).append("gradcheck")
    for kind in ORACLES:
        shown.setdefault(kind, []).append("oracle")
    for kind in [*READERS, "HDF5Output"]:
        shown.setdefault(kind, []).append("files")
    return {kind: ", ".join(words) for kind, words in shown.items()}


def text() -> str:
    """The page as it should be."""
    return page(golden_counts(), also())


if __name__ == "__main__":
    PAGE.write_text(text())
