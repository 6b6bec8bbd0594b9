"""The shortcut over the constant border against what BVLC Caffe 1.0 computed of the whole map.

The same goldens and tolerances as in test_golden_nets.py, with `frame=True`: wherever a net has a border, the
shortcut is taken, whether it pays at the stored size or not.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from test_golden_nets import FULL_WIDTH, Run, assert_close, check_full_width, check_probe, gradient, probed

from caffe_weights.caffe_pb2 import LayerParameter
from reproduce.tolerances import GRADIENT, NET

NETS = "nets/*.caffemodel.gz"


@pytest.mark.goldens(NETS)
def test_golden_net_outputs_with_the_shortcut(golden: Path) -> None:
    run = Run(golden, frame=True)
    for name, want in run.group("out").items():
        assert_close(run.blobs[name], want, NET, name, partial(run.exact, name))


@pytest.mark.goldens(NETS)
def test_golden_net_probes_with_the_shortcut(golden: Path) -> None:
    """Every blob is handed out whole, and is Caffe's at the 64 stored places."""
    run = Run(golden, frame=True)
    for name in probed(run.stored, "probe"):
        check_probe(run.blobs[name], run.stored, f"probe/{name}", NET)


@pytest.mark.goldens(NETS)
def test_golden_net_gradients_with_the_shortcut(golden: Path) -> None:
    run = Run(golden, frame=True)
    inputs = {name: torch.from_numpy(x).requires_grad_() for name, x in run.group("in").items()}
    run.net.zero_grad()
    run.net.total_loss(run.net(**inputs)).backward()
    for name in probed(run.stored, "grad"):
        layer, _, index = name.rpartition("/")
        check_probe(gradient(run.net.params[layer][int(index)]), run.stored, f"grad/{name}", GRADIENT)
    for name in probed(run.stored, "grad_in"):
        check_probe(gradient(inputs[name]), run.stored, f"grad_in/{name}", GRADIENT)


@pytest.mark.goldens(NETS)
def test_golden_net_shortcut_is_taken_where_the_padding_is_wide(golden: Path) -> None:
    """At most 0.75 of the arithmetic is left at the stored sizes, which are small; elsewhere all of it."""
    net = Run(golden, frame=True).net
    flops = net.flops()
    wide = any(map(_pads_by_its_kernel, net.definition.layer))
    part = (flops.regions + flops.rims) / flops.plain
    assert part < 0.75 if wide else part == 1


@pytest.mark.slow
@pytest.mark.goldens(FULL_WIDTH)
def test_golden_net_full_width_with_the_shortcut(golden: Path) -> None:
    check_full_width(golden, frame=True)


def _pads_by_its_kernel(layer: LayerParameter) -> bool:
    param = layer.convolution_param
    return layer.type == "Convolution" and max(param.pad, default=0) >= max(param.kernel_size, default=1)
