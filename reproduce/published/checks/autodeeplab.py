"""Auto-DeepLab (Liu et al., CVPR 2019): the published nets' counts, and the arithmetic of the search space.

Parameters, multiply-adds and sizes are recomputed on the nets, paths and cells counted by the rules of
section 3. Path, cell, widths and training settings are those of the authors' code and text, copied into
`reproduce.nets`. What the paper's multiply-adds count is inferred: see `reproduce.nets.autodeeplab_counts`.
"""

from __future__ import annotations

from itertools import groupby
from math import floor, log10

from reproduce.data import DATASETS
from reproduce.nets.architecture import PUBLISHED
from reproduce.nets.autodeeplab import auto_deeplab
from reproduce.nets.autodeeplab_counts import (
    cell_table,
    full_multiply_adds,
    learnable_values,
    plain_multiply_adds,
)
from reproduce.nets.blocks import Form
from reproduce.nets.data import CITYSCAPES
from reproduce.published.checks import Check, Context, Finding, recomputed, transcribed, without
from reproduce.published.checks import nets as of
from reproduce.published.checks.nets import Nets
from reproduce.published.claims import Claim
from reproduce.search import settings, space
from surgery.deploy import deploy_net
from surgery.shapes import infer_shapes

NAMES = {"S": "auto-deeplab-s", "M": "auto-deeplab-m", "L": "auto-deeplab-l"}
SMALL = NAMES["S"]
CODE = {"atrous 3x3": "atrous_3x3", "atrous 5x5": "atrous_5x5",
        "sep 3x3": "separable_3x3_2", "sep 5x5": "separable_5x5_2"}  # fmt: skip
DARTS = {"sep 3x3": 4, "sep 5x5": 5, "atrous 3x3": 6, "atrous 5x5": 7}

PATHS = (
    "so many paths follow the rule as stated, first cells at stride 4 or 8; the paper's number is that of"
    " first cells at stride 4 only (AD.S-24)"
)
PROFILER = (
    "and TensorFlow's profiler also counts maps padded to a multiple of the rate, image pooling over a"
    " sliding window and sums of blobs (inferred, no constant fitted)"
)
DATA_SET = "the data set of {}"
OTHERS = "another system's count in the paper's table: {}"


def filters(nets: Nets, name: str) -> int:
    """F: a block of a cell at stride s has F s / 4 channels."""
    first = nets.once(cell_table, name)[0]
    return first.block_channels * 4 // first.stride


def learnable(nets: Nets, name: str) -> int:
    """Values that training moves, BatchNorm's statistics apart, with 19 classes."""
    return nets.once(learnable_values, name)


def multiply_adds(name: str) -> Check:
    """The check of published multiply-adds; its reason tells what of them the plain count misses."""

    def check(claim: Claim, context: Context) -> Finding:
        plain, full = (context.nets.once(count, name) for count in (plain_multiply_adds, full_multiply_adds))
        printed = claim.number
        reason = (
            f"{full / printed - 1:+.2%} of the print; a plain count of the convolutions gives"
            f" {plain / 1e9:.2f} B ({plain / printed - 1:+.2%}), {PROFILER}"
        )
        how = f"Multiply-adds at 1025x2049 as TensorFlow's profiler counts them [{name}]"
        return Finding(full, "recomputed", how, reason)

    return check


def strides(nets: Nets, name: str) -> tuple[int, ...]:
    """The stride of each cell, from the size of its map."""
    return tuple(row.stride for row in nets.once(cell_table, name))


def levels(nets: Nets, name: str) -> tuple[int, ...]:
    """The level of each cell, 0 at stride 4, from the size of its map."""
    return tuple(row.level for row in nets.once(cell_table, name))


def cell_count(nets: Nets, name: str) -> int:
    """How many cells are stacked."""
    return len(nets.once(cell_table, name))


def block_count(nets: Nets, name: str) -> int:
    """How many blocks a cell has: the bottoms of its Concat."""
    return len(nets.layer(name, "cell0").bottom)


def widths(nets: Nets, name: str) -> str:
    """The channels of a cell at stride s in terms of its B blocks and of F, where all cells keep to it."""
    blocks, wide = block_count(nets, name), filters(nets, name)
    keep = all(row.channels == blocks * wide * row.stride // 4 for row in nets.once(cell_table, name))
    return "B x F x s/4" if keep else "no one rule"


def operator_count(nets: Nets) -> int:
    """The operations of an edge, zero among them."""
    return len(space.CHOICES)


def paths(nets: Nets, layers: int, *first: int) -> int:
    """Paths through the trellis of strides, from the strides of the first cell on."""
    return space.count_paths(layers, first)


def cells(nets: Nets) -> int:
    """Cells: for either side of a block an input and an operation."""
    return space.count_cells()


def joint_order(nets: Nets) -> float:
    """The power of ten of paths times cells."""
    return 10.0 ** floor(log10(space.count_paths() * space.count_cells()))


def edges(nets: Nets) -> tuple[int, int]:
    """Edges of a cell, and the weights on their operations."""
    count = len(space.edges())
    return count, count * len(space.CHOICES)


def both_paths(nets: Nets) -> int | str:
    """Paths of 11 cells, and those of 12 that begin at stride 4, where they are as many."""
    found = {space.count_paths(space.LAYERS - 1), space.count_paths(space.LAYERS, (4,))}
    return found.pop() if len(found) == 1 else " and ".join(map(str, sorted(found)))


def stem(nets: Nets, name: str) -> tuple[int, ...]:
    """Filters and stride of the stem's three convolutions."""
    params = [nets.layer(name, f"stem{number}").convolution_param for number in (1, 2, 3)]
    return tuple(value for param in params for value in (param.num_output, param.stride[0]))


def operations(nets: Nets) -> str:
    """The operations of each block by the names of the authors' code."""
    return " / ".join(", ".join(CODE[operation] for _, operation in block) for block in PUBLISHED.cell)


def hidden_states(nets: Nets) -> tuple[int, ...]:
    """The inputs of each block as the authors' code numbers them: H-1 is 0, H-2 is 1."""
    return tuple(_state(source, "H-1", "H-2") for block in PUBLISHED.cell for source, _ in block)


def used_states(nets: Nets, name: str) -> tuple[int, ...]:
    """1 for each state that a cell's output leaves out, 0 for those it takes."""
    kept = nets.layer(name, "cell0").bottom
    blocks = [f"cell0_block{number}" for number in range(1, len(PUBLISHED.cell) + 1)]
    return tuple(int(state not in kept) for state in ("H-1", "H-2", *blocks))


def darts_cell(claim: Claim, context: Context) -> Finding:
    """The check of the cell in the numbering of DARTS, the two edges of a block in the order of the print."""
    blocks = []
    for block in PUBLISHED.cell:
        pair = [f"[{_state(source, 'H-2', 'H-1')},{DARTS[operation]}]" for source, operation in block]
        blocks.append("".join(sorted(pair, key=claim.value.find)))
    return Finding("/".join(blocks), "transcribed", "The published cell, input and operation of each edge")


def constants(nets: Nets, name: str) -> tuple[float, ...]:
    """Weight decay, and how BatchNorm averages and what it adds to the variance."""
    norm = "cell0_last_bn"
    decay = of.solver_setting(nets, "weight_decay", name)
    fields = ("moving_average_fraction", "eps")
    return decay, *(of.layer_setting(nets, name, norm, f"batch_norm_param.{field}") for field in fields)


def unit_test_shapes(nets: Nets) -> str:
    """Stem and cells of the net with F = 10 on 321 x 321, written as in the print."""
    net = auto_deeplab(PUBLISHED, CITYSCAPES, "train", Form(), filters=10)
    blobs = infer_shapes(deploy_net(net, {"data": (1, 3, 321, 321)}, keep_dropout=False)).blobs
    sizes = [_words(blobs[f"cell{number}"]) for number in range(len(PUBLISHED.strides))]
    words = [
        f"{_numbers([number for number, _ in run])} {size}"
        for size, run in groupby(enumerate(sizes), key=lambda one: one[1])
    ]
    return f"Stem {_words(blobs['stem3'])}; cells " + "; ".join(words)


def table_2() -> dict[str, Check]:
    """Rows S, M and L: F, multiply-adds, parameters."""
    checks = {}
    for index, name in ((1, NAMES["S"]), (5, NAMES["M"]), (9, NAMES["L"])):
        checks[f"AD.T2-{index:02}"] = transcribed(filters, name)
        checks[f"AD.T2-{index + 1:02}"] = multiply_adds(name)
        checks[f"AD.T2-{index + 2:02}"] = recomputed(learnable, name)
    return checks


def split_sizes(nets: Nets, kind: str, *splits: str) -> tuple[int, ...]:
    """How many pictures the toolkit expects in splits of a data set."""
    return tuple(DATASETS[kind].published[split].count for split in splits)


def search_setting(nets: Nets, *fields: str) -> tuple[float, ...]:
    """Defaults of the search."""
    return tuple(getattr(settings.Settings(), field) for field in fields)


def head_branches(nets: Nets) -> int:
    """Branches of the head on each of the last maps in the search."""
    return len(settings.HEAD_BRANCHES)


def head_rate(nets: Nets) -> str:
    """The rate of the dilated branch of such a head, on a map of stride s."""
    return f"{settings.HEAD_REACH}/s"


def first_deviation(nets: Nets) -> float:
    """The standard deviation that alpha and beta start with."""
    return settings.INIT_DEVIATION


def _words(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[3]}x{shape[1]}"


def _numbers(numbers: list[int]) -> str:
    return f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 2 else ",".join(map(str, numbers))


def _state(source: str, *first: str) -> int:
    return first.index(source) if source in first else int(source.split()[1]) + 1


CHECKS: dict[str, Check] = {
    **table_2(),
    **{f"AD.T2-{number}": without("out of scope", OTHERS.format(system)) for number, system in (
        (13, "FRRN-A"), (15, "FRRN-B"), (16, "DeepLabv3+"), (17, "DeepLabv3+"))},
    "AD.S-01": transcribed(cell_count, SMALL),
    "AD.S-02": transcribed(block_count, SMALL),
    "AD.S-03": transcribed(operator_count),
    "AD.S-04": recomputed(paths, space.LAYERS, *space.FIRST, reason=PATHS),
    "AD.S-05": recomputed(cells),
    "AD.S-06": recomputed(joint_order),
    "AD.S-08": transcribed(widths, SMALL),
    "AD.S-23": recomputed(paths, space.LAYERS, *space.FIRST),
    "AD.S-24": recomputed(both_paths),
    "AD.S-25": recomputed(cells),
    "AD.S-26": recomputed(edges),
    "AD.S-07": transcribed(search_setting, "filters"),
    "AD.S-09": transcribed(head_branches),
    "AD.S-10": transcribed(head_rate),
    "AD.S-11": transcribed(search_setting, "epochs"),
    "AD.S-12": transcribed(search_setting, "architecture_from"),
    "AD.S-13": transcribed(search_setting, "batch"),
    "AD.S-14": transcribed(search_setting, "momentum"),
    "AD.S-15": transcribed(search_setting, "lr", "lr_end"),
    "AD.S-16": transcribed(search_setting, "weight_decay"),
    "AD.S-17": transcribed(first_deviation),
    "AD.S-18": transcribed(search_setting, "architecture_lr"),
    "AD.S-19": transcribed(search_setting, "architecture_decay"),
    "AD.TR-01": transcribed(of.solver_setting, "base_lr", SMALL),
    "AD.TR-05": transcribed(stem, SMALL),
    "AD.TR-06": transcribed(split_sizes, "cityscapes", "train", "val", "test"),
    "AD.TR-07": without("not built", DATA_SET.format("Cityscapes, coarse annotations")),
    "AD.TR-08": without("not built", DATA_SET.format("VOC 2012 train with SBD (train_aug)")),
    "AD.TR-09": without("not built", DATA_SET.format("ADE20K")),
    "AD.TR-10": transcribed(of.solver_setting, "power", SMALL),
    "AD.G-01": transcribed(levels, SMALL),
    "AD.G-02": transcribed(strides, SMALL),
    "AD.G-03": transcribed(operations),
    "AD.G-04": transcribed(hidden_states),
    "AD.G-05": transcribed(used_states, SMALL),
    "AD.G-06": darts_cell,
    "AD.G-07": transcribed(filters, SMALL),
    "AD.G-08": transcribed(constants, SMALL),
    "AD.G-09": recomputed(unit_test_shapes),
}  # fmt: skip
