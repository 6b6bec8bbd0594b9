"""Does the search find something? A small search on composites of real digits, retrained beside random nets.

No result of a paper: pictures of 65 x 65 pixels with one or two handwritten digits of scikit-learn's
`load_digits`, held out by instance; 4 cells of 2 blocks in place of 12 of 5, F = 4, and 8 in the final nets.
For each seed: a search by `reproduce.search`, the decoded net trained from scratch by `fcn train`, and three
random architectures of the same size (cells, blocks, F, and learnable values within 20 %) trained in the same
way. What is compared is the mean IU on held-out digits. The search's rates are the paper's but for alpha's
and beta's: 10 times as high, since it has some hundred steps and not some ten thousand; training starts at
0.1 in place of 0.05.

    python benchmarks/search_digits.py [--seeds 0,1,2] [--processes 1] [--epochs 10] [--iterations 1200]
                                       [--save search_digits]

One thread a process; about 10 minutes of processor time a seed. `--save` writes the result and pictures of
the first seed beside the other results. The exit code is 0 whatever wins.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, write_result
from PIL import Image

from reproduce.data import open_data
from reproduce.demo_data.composites import instances
from reproduce.demo_data.train import split
from reproduce.digits import draw_canvas
from reproduce.nets import Form, make_net
from reproduce.nets.architecture import OPERATIONS, Architecture, Block, block_inputs, write_architecture
from reproduce.nets.autodeeplab_counts import learnable_values
from reproduce.search.draw import draw_architecture, draw_search
from reproduce.search.run import Search, Settings
from reproduce.search.space import paths
from reproduce.visualize import write_label_png

SIZE = 65
COUNTS = {"train": 480, "test": 120}  # canvases
DIGITS, HEIGHTS = (1, 2), (28, 60)  # least and most on a canvas, pixels
FINAL_FILTERS, NARROW = 32, 4  # of the final net: F = 32 / 4, twice the F of the search
LAYERS, BLOCKS, FILTERS = 4, 2, 4
RANDOM_NETS, TOLERANCE = 3, 0.2
EPOCHS, SEARCH_BATCH = 10, 4
ITERATIONS, BATCH, RATE = 1200, 8, 0.1


def settings(seed: int, epochs: int) -> Settings:
    """Of the search: alpha and beta learn in the second half, as in the paper."""
    return Settings(
        layers=LAYERS, blocks=BLOCKS, filters=FILTERS, stem=(8, 8, 16), epochs=epochs,
        architecture_from=epochs // 2, batch=SEARCH_BATCH, crop=SIZE, shrink=1, architecture_lr=0.03,
        final_filters=FINAL_FILTERS, seed=seed,
    )  # fmt: skip


def write_canvases(folder: Path, counts: Mapping[str, int]) -> None:
    """A data set of kind `digits`; train and test from different handwritten digits."""
    images, digits, _ = split()
    for number, (name, count) in enumerate(counts.items()):
        rng, chosen = np.random.default_rng([7, number]), instances()[name]
        ids = [f"{name}_{i:04}" for i in range(count)]
        for below in ("images", "labels"):
            (folder / below).mkdir(parents=True, exist_ok=True)
        for identity in ids:
            some = rng.choice(chosen, rng.integers(DIGITS[0], DIGITS[1] + 1))
            heights = np.sort(rng.integers(HEIGHTS[0], HEIGHTS[1] + 1, len(some)))[::-1]
            picture, classes = draw_canvas(images[some], digits[some], heights, SIZE, rng)
            Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(folder / f"images/{identity}.png")
            write_label_png(classes, folder / f"labels/{identity}.png")
        (folder / f"{name}.txt").write_text("".join(f"{identity}\n" for identity in ids), encoding="utf-8")


def random_architecture(draw: random.Random) -> Architecture:
    """A path and a cell, each drawn from all there are; a block's two inputs differ, as decoded ones do."""
    cell: list[Block] = []
    for number in range(1, BLOCKS + 1):
        first, second = draw.sample(block_inputs(number), 2)
        cell.append(((first, draw.choice(OPERATIONS)), (second, draw.choice(OPERATIONS))))
    return Architecture(draw.choice(list(paths(LAYERS))), tuple(cell), FINAL_FILTERS)


def of_like_size(like: Architecture, count: int, seed: int) -> list[Architecture]:
    """Random architectures whose nets have about as many learnable values as that of `like`."""
    draw, wanted = random.Random(seed), values(like)
    found: list[Architecture] = []
    while len(found) < count:
        other = random_architecture(draw)
        if other not in (like, *found) and abs(values(other) / wanted - 1) <= TOLERANCE:
            found.append(other)
    return found


def values(architecture: Architecture) -> int:
    """Learnable values of its cells and stem; the head is the same for all that end alike."""
    net = make_net(
        "auto-deeplab", size=(SIZE, SIZE), form=Form(NARROW, classes=11, architecture=architecture)
    )
    return learnable_values(net, ("stem", "cell"))


def trained(architecture: Architecture, data: Path, out: Path, seed: int, iterations: int) -> dict[str, Any]:
    """Train by `fcn train` in a process of its own and score; the four metrics."""
    out.mkdir()
    write_architecture(architecture, out / "architecture.json")
    arguments = [
        "train", "auto-deeplab", "--architecture", str(out / "architecture.json"), "--narrow", str(NARROW),
        "--data", f"digits:{data}", "--init", "own", "--out", str(out / "run"),
        "--iterations", str(iterations), "--score-every", str(iterations), "--batch", str(BATCH),
        "--lr", str(RATE), "--bn-fraction", "0.95", "--seed", str(seed), "--workers", "0", "--json",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "reproduce", *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    run = json.loads(done.stdout)["runs"][0]
    return {"architecture": architecture.as_dict(), "learnable_values": values(architecture),
            "loss": run["loss"], **run["scores"]}  # fmt: skip


def one_seed(
    data: Path, folder: Path, seed: int, epochs: int, iterations: int, pictures: Path | None
) -> dict[str, Any]:
    """Search, retrain, compare."""
    start = time.process_time()
    search = Search(open_data("digits", data, "train"), folder / "search", settings(seed, epochs))
    before = search.net.entropies()
    first = [p.detach().numpy().copy() for p in search.net.probabilities()]
    rows: list[dict[str, Any]] = []
    found = search.run(rows.append)
    after, last = search.net.entropies(), [p.detach().numpy() for p in search.net.probabilities()]
    spent = time.process_time() - start
    say(f"seed {seed}: searched in {spent:.0f} s, entropies {before} to {after}")
    if pictures is not None:
        draw_search(last[0], last[1], f"{pictures}.png", f"seed {seed}")
        draw_architecture(found, f"{pictures}_architecture.png", force=True)
    ours = trained(found, data, folder / "decoded", seed, iterations)
    say(f"seed {seed}: decoded {ours['mean_iu']:.4f}, {found.as_dict()}")
    others = []
    for number, other in enumerate(of_like_size(found, RANDOM_NETS, seed)):
        others.append(trained(other, data, folder / f"random{number}", seed, iterations))
        say(f"seed {seed}: random {others[-1]['mean_iu']:.4f}")
    mean = statistics.mean(other["mean_iu"] for other in others)
    return {
        "seed": seed, "search_processor_seconds": round(spent, 1), "iterations": len(rows),
        "first_loss": rows[0]["loss"], "last_loss": statistics.mean(row["loss"] for row in rows[-10:]),
        "alpha_entropy": [before[0], after[0]], "beta_entropy": [before[1], after[1]],
        "alpha_moved": float(np.abs(last[0] - first[0]).max()),
        "beta_moved": float(np.abs(last[1] - first[1]).max()),
        "decoded": ours, "random": others, "random_mean_iu": mean,
        "better_than_random": ours["mean_iu"] > mean,
    }  # fmt: skip


def run(
    seeds: list[int], epochs: int, iterations: int, counts: Mapping[str, int] = COUNTS,
    pictures: Path | None = None, processes: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """All seeds, in several processes if asked, and what they say together."""
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "digits"
        write_canvases(data, counts)
        tasks = [(data, Path(temporary) / str(seed), seed, epochs, iterations,
                  pictures if seed == seeds[0] else None) for seed in seeds]  # fmt: skip
        if processes == 1:
            rows = [one_seed(*task) for task in tasks]
        else:
            with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
                rows = list(pool.map(one_seed, *zip(*tasks, strict=True)))
    ours = statistics.mean(row["decoded"]["mean_iu"] for row in rows)
    theirs = statistics.mean(row["random_mean_iu"] for row in rows)
    return {
        "canvases": dict(counts), "pixels": SIZE, "training_iterations": iterations, "training_batch": BATCH,
        "training_rate": RATE,
        "settings": {k: v for k, v in vars(settings(0, epochs)).items() if k != "seed"}, "seeds": rows,
        "decoded_mean_iu": ours, "random_mean_iu": theirs,
        "seeds_better_than_random": sum(row["better_than_random"] for row in rows),
    }  # fmt: skip


def say(words: str) -> None:
    """A line on standard error."""
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    """Run, print, and with --save keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--processes", type=int, default=1, help="seeds at a time")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the search")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of each training")
    parser.add_argument("--save", metavar="NAME", help="write the result file NAME.json and pictures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    pictures = RESULTS / options.save if options.save else None
    result = run(seeds, options.epochs, options.iterations, COUNTS, pictures, options.processes)
    print(json.dumps({key: value for key, value in result.items() if key != "seeds"}, indent=1))
    if options.save:
        write_result(options.save, result)


if __name__ == "__main__":
    main()
