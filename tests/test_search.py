"""The relaxation against its definition, and the search: alternation, halves, resuming, several processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_data import make_camvid
from torch import Tensor, nn

from caffe_weights.errors import FileError, FormatError, InputError
from reproduce.cli import cli
from reproduce.commands import search as command
from reproduce.data import open_data
from reproduce.nets.architecture import PUBLISHED, read_architecture
from reproduce.search.draw import draw_architecture, draw_search
from reproduce.search.run import ARCHITECTURE, SNAPSHOT, CyclingOrder, Search, Settings, halves
from reproduce.search.space import CHOICES, edges
from reproduce.search.supernet import MODULES, Supernet

SMALL = Settings(layers=2, blocks=2, filters=2, stem=(4, 4, 8), epochs=4, architecture_from=2, batch=2,
                 crop=33, shrink=1, final_filters=4)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Such small maps take longer with several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def net(layers: int = 3, blocks: int = 2, seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    return Supernet(3, layers, blocks, 2, (4, 4, 8)).double().eval()


def picture(size: int = 33) -> Tensor:
    return torch.randn(1, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


# ---- the relaxation ----


def test_ways_out_of_a_map_sum_to_one_and_borders_have_two() -> None:
    relaxed = net(12)
    with torch.no_grad():
        relaxed.beta.copy_(torch.randn(12, 4, 3))
    alpha, beta = (p.detach() for p in relaxed.probabilities())
    assert torch.allclose(alpha.sum(-1), torch.ones(5, dtype=alpha.dtype))
    assert torch.allclose(beta.sum(-1), torch.ones(12, 4, dtype=beta.dtype))
    assert (
        (beta[:, 0, 0] == 0).all() and (beta[:, 3, 2] == 0).all() and (beta > 0).sum() == 12 * (2 + 3 + 3 + 2)
    )
    old = relaxed.beta.detach()
    expected = (
        np.exp(old[5, 0, 1:].numpy()) / np.exp(old[5, 0, 1:].numpy()).sum()
    )  # from stride 4: same, twice
    np.testing.assert_allclose(beta[5, 0, 1:].numpy(), expected)


def test_the_start_is_almost_uniform() -> None:
    """1e-3 times a normal distribution before the softmax: ln 8, and a mean over maps of 2 or 3 ways."""
    torch.manual_seed(0)
    alpha, beta = Supernet(3, 12, 5, 2, (4, 4, 8)).entropies()
    maps = [
        2,
        2,
        3,
        2,
        3,
        3,
        *[2, 3, 3, 2] * 9,
    ]  # ways out of the stem, of the first cells, of 9 whole layers
    assert alpha == pytest.approx(np.log(8), abs=1e-5) and beta == pytest.approx(
        np.log(maps).mean(), abs=1e-5
    )


def test_an_edge_is_the_weighted_sum_of_its_operations() -> None:
    relaxed: Any = net()
    node = relaxed.nodes[1]["8"]
    edge, x = node.edges["2 block 1"], torch.randn(2, 4, 9, 9, dtype=torch.float64)
    weights = torch.rand(8, dtype=torch.float64)
    want = sum(w * operation(x) for w, operation in zip(weights, edge.operations, strict=False))
    assert torch.allclose(edge(x, weights), want)
    assert len(edge.operations) == 7 and list(MODULES) == list(CHOICES[:7])
    only_zero = torch.eye(8, dtype=torch.float64)[7]
    assert (edge(x, only_zero) == 0).all()
    assert torch.equal(edge(x, torch.eye(8, dtype=torch.float64)[6]), x)  # skip


def test_operations_are_the_final_net_s_but_for_the_norm() -> None:
    """Kinds, kernels, rates and groups of the convolutions of each operation, from the paper."""
    facts = {"sep 3x3": [(3, 1, 4), (1, 1, 1)] * 2, "sep 5x5": [(5, 1, 4), (1, 1, 1)] * 2,
             "atrous 3x3": [(3, 2, 1)], "atrous 5x5": [(5, 2, 1)],
             "avg pool 3x3": [], "max pool 3x3": [], "skip": []}  # fmt: skip
    for name, make in MODULES.items():
        found = [m for m in make(4, nn.BatchNorm2d).modules() if isinstance(m, nn.Conv2d)]
        assert [(m.kernel_size[0], m.dilation[0], m.groups) for m in found] == facts[name]
        assert make(4, nn.BatchNorm2d)(torch.randn(2, 4, 7, 6)).shape == (2, 4, 7, 6)


def test_a_cell_by_its_definition() -> None:
    """H_i is the sum over all its inputs of the mixed edge; the map is the sum of cells by beta."""
    relaxed: Any = net()
    node = relaxed.nodes[2]["8"]
    alpha = torch.rand(5, 8, dtype=torch.float64)
    beta = torch.rand(4, 3, dtype=torch.float64)
    channels = {4: 4, 8: 8, 16: 16}  # two blocks of F s / 4, F = 2
    sizes = {4: 9, 8: 5, 16: 3}
    last = {s: torch.randn(2, channels[s], sizes[s], sizes[s], dtype=torch.float64) for s in channels}
    before = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        got = node(last, before, alpha, beta, (5, 5))
        want = torch.zeros_like(got)
        rows = dict(zip(edges(2), alpha, strict=True))
        for old, chance in ((4, beta[0, 2]), (8, beta[1, 1]), (16, beta[2, 0])):
            x = last[old]
            if old == 16:
                x = nn.functional.interpolate(x, (5, 5), mode="bilinear", align_corners=True)
            states = {"H-1": node.inputs[str(old)](x), "H-2": node.before(before)}
            for block in (1, 2):
                states[f"block {block}"] = sum(
                    node.edges[f"{b} {source}"](states[source], row)
                    for (b, source), row in rows.items()
                    if b == block
                )
            want += chance * torch.cat([states["block 1"], states["block 2"]], 1)
    assert torch.allclose(got, want)


def test_what_is_missing_two_layers_before_is_left_out() -> None:
    relaxed: Any = net(4)
    have = [{s: node.before is not None for s, node in layer.items()} for layer in relaxed.nodes]
    assert have == [
        {"4": False, "8": False}, {"4": True, "8": False, "16": False},
        {"4": True, "8": True, "16": False, "32": False}, {"4": True, "8": True, "16": True, "32": False},
    ]  # fmt: skip


def test_only_the_chosen_path_matters_where_beta_is_certain() -> None:
    """With all probability on 4, 8, 4 other maps may be anything."""
    relaxed: Any = net(3)
    with torch.no_grad():
        relaxed.beta.fill_(-1e4)
        relaxed.beta[0, 0, 2] = relaxed.beta[1, 1, 0] = relaxed.beta[2, :, 1] = 1e4
        want = relaxed(picture())
        for parameter in relaxed.nodes[1]["16"].parameters():
            parameter.mul_(7)
        assert torch.equal(relaxed(picture()), want)
        for parameter in relaxed.nodes[1]["4"].parameters():
            parameter.mul_(7)
        assert not torch.allclose(relaxed(picture()), want)


def test_heads_of_all_maps_are_summed() -> None:
    relaxed: Any = net(3)
    assert list(relaxed.heads) == ["4", "8", "16", "32"]
    rates = [head.atrous[0].dilation[0] for head in relaxed.heads.values()]
    assert rates == [24, 12, 6, 3]  # 96 / stride
    with torch.no_grad():
        total = relaxed(picture())
        bias = relaxed.heads["16"].score.bias
        bias += 1
        assert torch.allclose(relaxed(picture()), total + 1)


@pytest.mark.parametrize("size", [33, 40, 65])
def test_every_parameter_learns_at_any_size(size: int) -> None:
    relaxed = net(3).train()
    relaxed(picture(size).expand(2, -1, -1, -1)).square().sum().backward()
    assert all(p.grad is not None for p in relaxed.parameters())


# ---- the search ----


def test_halves_share_nothing_and_orders_go_round() -> None:
    a, b = halves(11, 3)
    assert (len(a), len(b)) == (6, 5) and sorted([*a, *b]) == list(range(11))
    order = CyclingOrder(a, 1)
    rounds = [[order(i) for i in range(6 * r, 6 * r + 6)] for r in range(3)]
    assert all(sorted(r) == sorted(a) for r in rounds) and rounds[0] != rounds[1]
    again = CyclingOrder(a, 1)
    assert again(13) == order(13) == rounds[2][1]
    with pytest.raises(InputError, match="1 pictures; wanted at least 2"):
        halves(1, 0)


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_camvid(tmp_path_factory.mktemp("camvid"), {"train": 9, "val": 1, "test": 1}, (40, 48))


def searching(camvid: Path, out: Path, settings: Settings = SMALL, **options: Any) -> Search:
    return Search(open_data("camvid", camvid), out, settings, **options)


def test_weights_and_architecture_take_turns_from_the_given_epoch_on(camvid: Path, tmp_path: Path) -> None:
    search, rows = searching(camvid, tmp_path), []
    first = [p.detach().clone() for p in search.net.architecture()]
    weight = search.net.weights()[0]
    assert (search.per_epoch, search.total) == (2, 8)  # 5 pictures for the weights in batches of 2
    for _ in range(4):
        before = weight.detach().clone()
        rows.append(search._step())
        assert not torch.equal(before, weight)
        assert all(torch.equal(a, b) for a, b in zip(first, search.net.architecture(), strict=True))
    row = search._step()
    assert not any(torch.equal(a, b) for a, b in zip(first, search.net.architecture(), strict=True))
    assert "architecture_loss" in row and not any("architecture_loss" in r for r in rows)
    rates = [r["lr"] for r in [*rows, row]]
    want = [0.001 + 0.024 * (1 + np.cos(np.pi * i / 8)) / 2 for i in range(5)]
    np.testing.assert_allclose(rates, want)
    assert search._step()["epoch"] == 2 and search._step()["epoch"] == 3


def state(search: Search) -> list[Tensor]:
    return [*search.net.state_dict().values()]


def test_a_search_that_was_stopped_ends_as_one_that_was_not(camvid: Path, tmp_path: Path) -> None:
    whole = searching(camvid, tmp_path / "whole")
    whole.run()
    part = searching(camvid, tmp_path / "part")
    part.run(until=3)
    with pytest.raises(FileError, match="a search is there; wanted an empty folder; go on with --resume"):
        searching(camvid, tmp_path / "part")
    part = searching(camvid, tmp_path / "part", resume=True)
    assert part.iteration == 3
    part.run(until=6)
    part = searching(camvid, tmp_path / "part", resume=True, workers=1)
    found = part.run()
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(part), strict=True))
    assert found == whole.decoded() == read_architecture(tmp_path / "part" / ARCHITECTURE)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "part")]
    rows = [[{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in log] for log in logs]
    assert rows[0] == rows[1] and len(rows[0]) == 8


def test_snapshots_of_something_else(camvid: Path, tmp_path: Path) -> None:
    searching(camvid, tmp_path).run(until=1)
    with pytest.raises(InputError, match=r"search.pt: lr: 0.025; wanted 0.1; go on with the settings"):
        searching(camvid, tmp_path, replace(SMALL, lr=0.1), resume=True)
    (tmp_path / SNAPSHOT).write_bytes(b"nothing")
    with pytest.raises(FormatError, match="search.pt: no snapshot of a search"):
        searching(camvid, tmp_path, resume=True)
    with pytest.raises(InputError, match="search, batch: 0; wanted at least 1"):
        replace(SMALL, batch=0)
    with pytest.raises(InputError, match="search, architecture_from: 5; wanted 0 to 4"):
        replace(SMALL, architecture_from=5)


def test_mixed_precision(camvid: Path, tmp_path: Path) -> None:
    search = searching(camvid, tmp_path, precision="bf16")
    search.run(until=5)
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in search.net.parameters())
    plain = searching(camvid, tmp_path / "plain")
    plain.run(until=5)
    first, other = (json.loads((f / "log.jsonl").read_text().splitlines()[0])["loss"]
                    for f in (tmp_path, tmp_path / "plain"))  # fmt: skip
    assert first != other and first == pytest.approx(other, rel=0.05)


def test_a_diverging_search_says_so(camvid: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the loss is no finite number; lower the rate"):
        searching(camvid, tmp_path, replace(SMALL, lr=1e30)).run()


PROCESS = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from torch import distributed
from test_search import SMALL, searching, state
distributed.init_process_group("gloo")
search = searching(Path(sys.argv[1]), Path(sys.argv[2]))
assert search.per_epoch == 1
search.run()
torch.save(state(search), Path(sys.argv[2]) / f"{distributed.get_rank()}.pt")
distributed.destroy_process_group()
"""


def test_processes_agree_on_all_that_learns(camvid: Path, tmp_path: Path) -> None:
    """Two by gloo: parameters equal in both, running statistics each process's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2",
                   "PYTHONPATH": str(Path(__file__).parent)}  # fmt: skip
    arguments = [sys.executable, "-c", PROCESS, str(camvid), str(tmp_path)]
    running = [subprocess.Popen(arguments, env={**environment, "RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    names = list(searching(camvid, tmp_path / "x").net.state_dict())
    both = [dict(zip(names, torch.load(tmp_path / f"{rank}.pt"), strict=True)) for rank in range(2)]
    learned = [name for name, _ in searching(camvid, tmp_path / "y").net.named_parameters()]
    assert all(torch.equal(both[0][name], both[1][name]) for name in learned)
    assert not torch.equal(both[0]["stem.0.1.running_mean"], both[1]["stem.0.1.running_mean"])
    assert (tmp_path / ARCHITECTURE).exists()


# ---- pictures and the command ----


def test_pictures_of_architectures(tmp_path: Path) -> None:
    draw_architecture(PUBLISHED, tmp_path / "a.png")
    random = np.random.default_rng(0)
    draw_search(random.dirichlet(np.ones(8), 5), random.dirichlet(np.ones(3), (4, 4)), tmp_path / "s.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "s.png"))
    with pytest.raises(FileError, match="a.png"):
        draw_architecture(PUBLISHED, tmp_path / "a.png")


def test_settings_of_the_command_are_the_paper_s() -> None:
    defaults = asdict(Settings())
    assert set(defaults) - set(command.HELP) == {"stem", "mirror", "architecture_betas"}
    paper = {
        "layers": 12, "blocks": 5, "filters": 8, "epochs": 40, "architecture_from": 20, "batch": 2,
        "crop": 321, "shrink": 2, "lr": 0.025, "lr_end": 0.001, "momentum": 0.9, "weight_decay": 3e-4,
        "architecture_lr": 0.003, "architecture_decay": 1e-3, "architecture_betas": (0.9, 0.999),
    }  # fmt: skip
    assert paper.items() <= defaults.items()


def test_the_commands(camvid: Path, tmp_path: Path) -> None:
    run, out = CliRunner(), tmp_path / "out"
    arguments = ["search", "--data", f"camvid:{camvid}", "--out", str(out), "--layers", "2", "--blocks", "2",
                 "--filters", "2", "--stem", "4,4,8", "--epochs", "1", "--architecture-from", "0",
                 "--crop", "33", "--shrink", "1", "--workers", "0"]  # fmt: skip
    done = run.invoke(cli, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (
        found["architecture"] == read_architecture(out / ARCHITECTURE).as_dict() and found["iteration"] == 2
    )
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
    assert run.invoke(cli, arguments).exit_code == 2
    again = run.invoke(cli, [*arguments, "--resume"])
    assert again.exit_code == 0 and "strides" in again.stdout
    assert run.invoke(cli, [*arguments[:5], "--stem", "4,4"]).exit_code == 2
    picture = tmp_path / "a.png"
    assert (
        run.invoke(cli, ["draw-architecture", str(out / ARCHITECTURE), "--out", str(picture)]).exit_code == 0
    )
    (tmp_path / "bad.json").write_text('{"strides": [4, 32], "cell": [[["H-1", "skip"], ["H-2", "skip"]]]}')
    bad = run.invoke(cli, ["draw-architecture", str(tmp_path / "bad.json"), "--out", str(picture)])
    assert bad.exit_code == 2 and "strides, cell 2: stride 32 after 4" in bad.stderr
