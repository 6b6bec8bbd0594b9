"""A small classifier that the tests of the runtime share."""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_weights.prototxt import parse_net
from reproduce.net import Net

INPUTS = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 1 } } }
"""
DATA = 'layer { name: "in" type: "Python" top: "data" top: "label" python_param { module: "m" layer: "l" } }'
BODY = """
layer { name: "conv.1" type: "Convolution" bottom: "data" top: "c"
        param { lr_mult: 1 } param { lr_mult: 0 }
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "c" top: "c" }
layer { name: "pool/a" type: "Pooling" bottom: "c" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "drop" type: "Dropout" bottom: "pool" top: "pool" }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""
SMALL = INPUTS + BODY
KEYS = ["conv.1.weight", "conv.1.bias", "ip.weight", "ip.bias"]


def image(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))


def small(**options: object) -> Net:
    return Net(parse_net(SMALL), seed=1, **options)  # type: ignore[arg-type]
