"""Nets of one layer in float64, and what the layer tests do with them."""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_weights.prototxt import parse_net
from reproduce.net import Net

FILL = 'weight_filler { type: "gaussian" } bias_filler { type: "gaussian" }'


def net_of(
    kind: str, shapes: list[tuple[int, ...]], more: str = "", tops: int = 1, phase: str = "TEST"
) -> Net:
    """A net of one layer `l` with inputs a, b, ... and tops y0, y1, ...; in float64."""
    names = "abcde"[: len(shapes)]
    lines = []
    for name, shape in zip(names, shapes, strict=True):
        dims = " ".join(f"dim: {n}" for n in shape)
        lines.append(
            f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}'
        )
    ends = "".join(f' bottom: "{name}"' for name in names) + "".join(f' top: "y{i}"' for i in range(tops))
    lines.append(f'layer {{ name: "l" type: "{kind}"{ends} {more} }}')
    return Net(parse_net("\n".join(lines)), phase=phase, seed=4).double()


def run(net: Net, *inputs: Tensor) -> list[Tensor]:
    out = net(
        keep=[top for top in net.blobs if top.startswith("y")], **dict(zip("abcde", inputs, strict=False))
    )
    return [out[name] for name in sorted(out) if name.startswith("y")]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
