"""FCN-32s, 16s and 8s in plain PyTorch, as ports usually write them: what ours is measured next to.

Written for this purpose in the module structure of the best known port (wkentaro/pytorch-fcn): padding of
100 in conv1_1, ReLUs in place, MaxPool2d with ceil_mode, Dropout2d, ConvTranspose2d without bias, crops at
the published offsets typed in. Modules bear Caffe's layer names, so `load` takes our weights and the results
agree. Up-sampling is frozen here, as the optimizer of the usual ports passes it over.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from caffe_weights.weights import Weights

WIDTHS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
FULLY = 4096
VOID = 255


class UsualFCN(nn.Module):
    """An FCN on VGG16 of stride 32, 16 or 8; `narrow` divides the widths, `fc` is that of fc6 and fc7."""

    def __init__(self, stride: int, classes: int = 21, narrow: int = 1, fc: int | None = None) -> None:
        super().__init__()
        self.stride = stride
        channels = 3
        for stage, (width, depth) in enumerate(WIDTHS, 1):
            for place in range(1, depth + 1):
                padding = 100 if stage == place == 1 else 1
                conv = nn.Conv2d(channels, width // narrow, 3, padding=padding)
                self.add_module(f"conv{stage}_{place}", conv)
                channels = width // narrow
        fully = fc or FULLY // narrow
        self.fc6 = nn.Conv2d(channels, fully, 7)
        self.drop6 = nn.Dropout2d()
        self.fc7 = nn.Conv2d(fully, fully, 1)
        self.drop7 = nn.Dropout2d()
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.score_fr = nn.Conv2d(fully, classes, 1)
        if stride == 32:
            self.upscore = _up(classes, 64, 32)
        if stride <= 16:
            self.upscore2 = _up(classes, 4, 2)
            self.score_pool4 = nn.Conv2d(512 // narrow, classes, 1)
        if stride == 16:
            self.upscore16 = _up(classes, 32, 16)
        if stride == 8:
            self.upscore_pool4 = _up(classes, 4, 2)
            self.score_pool3 = nn.Conv2d(256 // narrow, classes, 1)
            self.upscore8 = _up(classes, 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Scores N x classes x H x W of pictures N x 3 x H x W."""
        pools, h = {}, x
        for stage, (_, depth) in enumerate(WIDTHS, 1):
            for place in range(1, depth + 1):
                h = self.relu(self.get_submodule(f"conv{stage}_{place}")(h))
            h = pools[stage] = self.pool(h)
        h = self.drop6(self.relu(self.fc6(h)))
        h = self.drop7(self.relu(self.fc7(h)))
        h = self.score_fr(h)
        if self.stride == 32:
            return _crop(self.upscore(h), 19, x)
        h = self.upscore2(h)
        h = h + _crop(self.score_pool4(pools[4]), 5, h)
        if self.stride == 16:
            return _crop(self.upscore16(h), 27, x)
        h = self.upscore_pool4(h)
        h = h + _crop(self.score_pool3(pools[3]), 9, h)
        return _crop(self.upscore8(h), 31, x)


def load(port: UsualFCN, weights: Weights) -> None:
    """Copy our weights into a port, up-sampling included; each of its layers must be in them."""
    with torch.no_grad():
        for name, layer in layers(port):
            blobs = [torch.from_numpy(blob) for blob in weights[name]]
            for parameter, blob in zip(layer.parameters(), blobs, strict=True):
                parameter.copy_(blob.reshape(parameter.shape))


def layers(port: UsualFCN) -> Iterator[tuple[str, nn.Module]]:
    """The layers that have parameters, by their names, which are Caffe's."""
    return (
        (name, layer) for name, layer in port.named_children() if next(layer.parameters(), None) is not None
    )


def summed_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The published loss of one picture: a sum over the pixels of `labels` (N x H x W) that are not void."""
    return functional.cross_entropy(scores, labels, ignore_index=VOID, reduction="sum")


def optimizer(port: UsualFCN, lr: float, momentum: float = 0.99, decay: float = 5e-4) -> torch.optim.SGD:
    """SGD as the usual ports set it: biases at twice the rate and without decay."""
    learned = [layer for _, layer in layers(port) if isinstance(layer, nn.Conv2d)]
    groups = [
        {"params": [layer.weight for layer in learned], "lr": lr, "weight_decay": decay},
        {"params": [layer.bias for layer in learned], "lr": 2 * lr, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum)


def _up(classes: int, kernel: int, stride: int) -> nn.ConvTranspose2d:
    layer = nn.ConvTranspose2d(classes, classes, kernel, stride=stride, bias=False)
    return layer.requires_grad_(False)


def _crop(x: Tensor, offset: int, like: Tensor) -> Tensor:
    height, width = like.shape[2:]
    return x[:, :, offset : offset + height, offset : offset + width].contiguous()
