"""The continuous relaxation of Auto-DeepLab's search space: every operation, every path, weighted.

Liu et al., CVPR 2019, section 4.1. A plain torch module and no Caffe net: its layers are weighted sums whose
weights learn, and it is never written to a file of Caffe's. Facts of the paper [P], of the two ports it was
studied in [S], inferred [I]:

* each edge of a cell is the sum of its 8 operations by the softmax of its row of alpha, zero included; each
  block sums all its edges; a cell's output is all its blocks side by side [P];
* a stride's map is the sum of the cells on the maps at half, the same and twice the stride of the layer
  before, by beta; the probabilities that lead *out of* a map sum to 1, two ways at the borders, three
  elsewhere [P];
* a finer map is read by a convolution of stride 2, a coarser one by bilinear doubling and a 1 x 1 convolution
  [P];
* where there is no map two layers before at this stride, its edges are left out [I];
* the cells of one map share their operations and differ in how their input is made [S]; they run side by side
  in one batch, statistics included, where the ports call them one after the other;
* batch normalisation has no scale and shift, pooling is followed by it [S];
* at the end each of the four maps has its head: 1 x 1, 3 x 3 of rate 96 / stride, and image pooling, each as
  wide as the map; all heads' scores, enlarged, are summed [P].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from reproduce.nets.architecture import OPERATIONS, STRIDES
from reproduce.search.decoding import WAYS, way
from reproduce.search.settings import HEAD_BRANCHES, HEAD_REACH, INIT_DEVIATION, SEARCH_FILTERS, STEM
from reproduce.search.space import BLOCKS, FIRST, LAYERS, edges, next_strides

Norm = Callable[[int], nn.Module]


class Supernet(nn.Module):
    """All architectures at once: pictures (N, 3, H, W) to scores (N, classes, H, W).

    `alpha` (edges, 8) and `beta` (layers, 4, 3) are the architecture before its softmax; `weights()` and
    `architecture()` list what the two optimisers move. Sizes of 32 k + 1 keep all maps aligned; others work.
    """

    legal: Tensor  # the ways that stay in the trellis

    def __init__(
        self, classes: int, layers: int = LAYERS, blocks: int = BLOCKS, filters: int = SEARCH_FILTERS,
        stem: tuple[int, int, int] = STEM, affine: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layers, self.norm = layers, partial(nn.BatchNorm2d, affine=affine)
        self.alpha = nn.Parameter(INIT_DEVIATION * torch.randn(len(edges(blocks)), len(OPERATIONS) + 1))
        self.beta = nn.Parameter(INIT_DEVIATION * torch.randn(layers, len(STRIDES), WAYS))
        self.register_buffer("legal", _legal(layers), persistent=False)
        self.stem = _stem(stem, self.norm)
        width = {stride: filters * stride // 4 for stride in STRIDES}
        maps: list[dict[int, int]] = [{STRIDES[0]: stem[-1]}]  # channels by stride, the stem's first
        self.nodes = nn.ModuleList()
        for layer in range(layers):
            before = maps[-2] if len(maps) > 1 else {}
            strides = sorted({new for old in maps[-1] for new in (next_strides(old) if layer else FIRST)})
            self.nodes.append(nn.ModuleDict({
                str(stride): _Node(stride, maps[-1], before.get(stride), width[stride], blocks, self.norm)
                for stride in strides
            }))  # fmt: skip
            maps.append({stride: blocks * width[stride] for stride in strides})
        self.heads = nn.ModuleDict(
            {
                str(stride): _Head(stride, channels, classes, self.norm)
                for stride, channels in maps[-1].items()
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """The summed scores of all heads."""
        alpha, beta = self.probabilities()
        maps: list[dict[int, Tensor]] = [{STRIDES[0]: self.stem(x)}]
        size = maps[0][STRIDES[0]].shape[2:]
        sizes = {s: tuple((n - 1) * STRIDES[0] // s + 1 for n in size) for s in STRIDES}
        for nodes, steps in zip(self.nodes, beta, strict=True):
            assert isinstance(nodes, nn.ModuleDict)
            before = maps[-2] if len(maps) > 1 else {}
            maps.append({
                int(stride): node(maps[-1], before.get(int(stride)), alpha, steps, sizes[int(stride)])
                for stride, node in nodes.items()
            })  # fmt: skip
        scores = [
            nnf.interpolate(head(maps[-1][int(stride)]), x.shape[2:], mode="bilinear", align_corners=True)
            for stride, head in self.heads.items()
        ]
        return torch.stack(scores).sum(0)

    def probabilities(self) -> tuple[Tensor, Tensor]:
        """Alpha and beta after their softmax: each edge's operations, each map's ways out, sum to 1."""
        return self.alpha.softmax(-1), self.beta.masked_fill(~self.legal, -torch.inf).softmax(-1)

    def entropies(self) -> tuple[float, float]:
        """Mean entropy in nats of alpha's rows and of the ways out of those maps that there are."""
        alpha, beta = (p.detach().double() for p in self.probabilities())
        reached = beta[_reached(self.layers).to(beta.device)]
        return float(_entropy(alpha).mean()), float(_entropy(reached).mean())

    def architecture(self) -> list[nn.Parameter]:
        """Alpha and beta."""
        return [self.alpha, self.beta]

    def weights(self) -> list[nn.Parameter]:
        """All other parameters."""
        own = {id(p) for p in self.architecture()}
        return [p for p in self.parameters() if id(p) not in own]


class _Node(nn.Module):
    """The map of one layer at one stride: its cells' inputs made alike, its operations, their sum by beta."""

    def __init__(
        self, stride: int, last: dict[int, int], before: int | None, width: int, blocks: int, norm: Norm
    ) -> None:
        super().__init__()
        self.stride = stride
        self.sources = [old for old in sorted(last) if stride in next_strides(old)]
        self.inputs = nn.ModuleDict(
            {str(old): _resampled(last[old], width, 2 if stride > old else 1, norm) for old in self.sources}
        )
        self.before = None if before is None else _resampled(before, width, 1, norm)
        self.edges = nn.ModuleDict({
            f"{block} {source}": _Mixed(width, norm)
            for block, source in edges(blocks)
            if source != "H-2" or before is not None
        })  # fmt: skip
        self.blocks = blocks

    def forward(
        self, last: dict[int, Tensor], before: Tensor | None, alpha: Tensor, beta: Tensor,
        size: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        """`beta` (4, 3) are the ways out of the layer before, `size` is that of this map."""
        inputs = [self._input(old, last[old], size) for old in self.sources]
        states = {"H-1": torch.cat(inputs)}  # all cells in one batch
        if self.before is not None and before is not None:
            states["H-2"] = self.before(before)
        for (block, source), weights in zip(edges(self.blocks), alpha, strict=True):
            if source not in states:
                continue
            term = self.edges[f"{block} {source}"](states[source], weights)
            if source == "H-2":  # the same for all cells
                term = torch.cat([term] * len(inputs))
            name = f"block {block}"
            states[name] = states[name] + term if name in states else term
        outputs = torch.cat([states[f"block {i}"] for i in range(1, self.blocks + 1)], 1)
        cells = zip(outputs.chunk(len(inputs)), self.sources, strict=True)
        terms = [beta[STRIDES.index(old), way(old, self.stride)] * cell for cell, old in cells]
        return torch.stack(terms).sum(0)

    def _input(self, old: int, x: Tensor, size: tuple[int, int]) -> Tensor:
        if x.shape[2] < size[0] or x.shape[3] < size[1]:
            x = nnf.interpolate(x, size, mode="bilinear", align_corners=True)
        result: Tensor = self.inputs[str(old)](x)
        return result


class _Mixed(nn.Module):
    """All operations of one edge, summed by their weights; the last weight is zero's."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.operations = nn.ModuleList(make(width, norm) for make in MODULES.values())

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        terms = [weight * operation(x) for weight, operation in zip(weights, self.operations, strict=False)]
        return torch.stack(terms).sum(0)


class _Head(nn.Module):
    """Three branches, each as wide as the map, and a 1 x 1 convolution to the classes."""

    def __init__(self, stride: int, channels: int, classes: int, norm: Norm) -> None:
        super().__init__()
        rate = HEAD_REACH // stride
        self.point = _convolution(channels, channels, 1, norm)
        self.atrous = _convolution(channels, channels, 3, norm, rate=rate)
        self.image = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU())  # one pixel has no statistics
        self.score = nn.Conv2d(len(HEAD_BRANCHES) * channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        pooled = self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        branches = [self.point(x).relu(), self.atrous(x).relu(), pooled]
        scores: Tensor = self.score(torch.cat(branches, 1))
        return scores


def _separable(kernel: int, width: int, norm: Norm) -> nn.Module:
    depthwise = partial(nn.Conv2d, width, width, kernel, padding=kernel // 2, groups=width, bias=False)
    twice = [
        layer
        for _ in range(2)
        for layer in (nn.ReLU(), depthwise(), nn.Conv2d(width, width, 1, bias=False), norm(width))
    ]
    return nn.Sequential(*twice)


def _atrous(kernel: int, width: int, norm: Norm) -> nn.Module:
    return nn.Sequential(nn.ReLU(), _convolution(width, width, kernel, norm, rate=2))


def _pooled(pool: Callable[..., nn.Module], width: int, norm: Norm) -> nn.Module:
    return nn.Sequential(pool(3, 1, 1), norm(width))


MODULES: dict[str, Callable[[int, Norm], nn.Module]] = {
    "sep 3x3": partial(_separable, 3),
    "sep 5x5": partial(_separable, 5),
    "atrous 3x3": partial(_atrous, 3),
    "atrous 5x5": partial(_atrous, 5),
    "avg pool 3x3": partial(_pooled, nn.AvgPool2d),
    "max pool 3x3": partial(_pooled, nn.MaxPool2d),
    "skip": lambda width, norm: nn.Identity(),
}
assert tuple(MODULES) == OPERATIONS  # alpha's columns


def _convolution(
    channels: int, width: int, kernel: int, norm: Norm, stride: int = 1, rate: int = 1
) -> nn.Sequential:
    pad = rate * (kernel // 2)
    return nn.Sequential(nn.Conv2d(channels, width, kernel, stride, pad, rate, bias=False), norm(width))


def _resampled(channels: int, width: int, stride: int, norm: Norm) -> nn.Module:
    """ReLU and a convolution to a cell's width: 1 x 1, or 3 x 3 with a stride of 2."""
    return nn.Sequential(nn.ReLU(), _convolution(channels, width, 3 if stride == 2 else 1, norm, stride))


def _stem(widths: tuple[int, int, int], norm: Norm) -> nn.Module:
    """To stride 4; no ReLU at the end, since each cell begins with one."""
    layers: list[nn.Module] = []
    for channels, width, stride in zip((3, *widths), widths, (2, 1, 2), strict=False):
        layers += [_convolution(channels, width, 3, norm, stride), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _legal(layers: int) -> Tensor:
    """(layers, 4, 3): the ways that stay in the trellis."""
    ways = [[0 <= i + d - 1 < len(STRIDES) for d in range(WAYS)] for i in range(len(STRIDES))]
    return torch.tensor(ways).expand(layers, -1, -1).clone()


def _reached(layers: int) -> Tensor:
    """(layers, 4): the maps that there are; the stem's is the first."""
    return torch.tensor([[i <= layer for i in range(len(STRIDES))] for layer in range(layers)])


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)
