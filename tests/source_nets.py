"""Nets of one data layer."""

from __future__ import annotations

from typing import Any

from caffe_weights.prototxt import parse_net
from reproduce.net import Net

READER = 'layer { name: "p" type: "Power" bottom: "x" top: "p" }'


def net_of(
    kind: str, more: str, tops: str = 'top: "data" top: "label"', phase: str = "TEST", after: str = ""
) -> Net:
    """A net of one data layer `d`, and layers after it."""
    return Net(parse_net(f'layer {{ name: "d" type: "{kind}" {tops} {more} }}' + after), phase=phase)


def batches(net: Net, count: int, top: str = "data") -> list[Any]:
    return [net()[top].tolist() for _ in range(count)]
