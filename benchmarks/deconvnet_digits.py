"""A narrow DeconvNet on composites of real digits: its two stages, then each part of its system on top.

    python benchmarks/deconvnet_digits.py [--folder DIR] [--save]       (half an hour of one core)

Composites of real digits, no real segmentation set (`reproduce.demo_data.composites`); the digits of the test
canvases were never seen in training. As in the paper the net starts from a classifier, here its own first
half with an fc8 on single digits, where the paper has VGG16. Stage 1 are crops of one digit each, stage 2
windows over canvases; then BN is folded. Rows of the table, each with and without the CRF:

  single pass        the canvas as one crop
  max, sum, mean     windows, aggregated by each rule
  released           windows by the released rules (clipped at 0, one pixel off; none is skipped)
  FCN-8s             the narrow FCN-8s of `fcn demo`, on the canvas
  mean-probability   its ensemble with `max`, the paper's rule; product-scores, the released one

Nothing is chosen by the test canvases. Departures from the released recipe: crops of 32 x 32, batches of 32
without iter_size, rates of 0.2 and 0.1 in place of 0.01, and fillers that fit the width (`recipe.Stage`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, write_result

from caffe_weights.caffe_pb2 import NetParameter, SolverParameter
from caffe_weights.export import read_weights
from caffe_weights.weights import Weights
from reproduce.crf import dense_crf, find_settings, unary_of_scores
from reproduce.data import open_data
from reproduce.data.base import Dataset
from reproduce.data.net_source import net_source
from reproduce.deconvnet.boxes import sliding_windows
from reproduce.deconvnet.ensemble import ENSEMBLES, ensemble_energies
from reproduce.deconvnet.inference import picture_scores
from reproduce.deconvnet.recipe import Stage, stage_training
from reproduce.deconvnet.rules import RELEASED, Rules
from reproduce.deconvnet.stages import make_stage_1, make_stage_2
from reproduce.demo_data.composites import CANVASES, write_composites
from reproduce.demo_segmentation import load_model
from reproduce.folding import fold
from reproduce.net import Net
from reproduce.nets import Form, make_net
from reproduce.nets.deconvnet import MEAN
from reproduce.score import histogram, score
from reproduce.solver import Solver
from reproduce.visualize import voc_palette

FORM, SIDE, BATCH = Form(4, 128, 11), 32, 32
ITERATIONS = {"classifier": 300, "stage1": 3000, "stage2": 6000}
RATES = {"classifier": 0.02, "stage1": 0.2, "stage2": 0.1}
PICTURES = 1500  # canvases of the training split that are cut into crops
FOLDED = 100  # batches
WINDOWS = 50
TEST_CANVASES = 60
CRF = find_settings("deconvnet")
PICTURE = RESULTS / "deconvnet_digits.png"
SHOWN = (("single pass", False), ("max", False), ("max", True), ("FCN-8s", False), ("product-scores", True))

Scores = Callable[[np.ndarray], np.ndarray]


def subset(dataset: Dataset, count: int) -> Dataset:
    """The first pictures of a split."""
    dataset.split = replace(dataset.split, ids=dataset.split.ids[:count], lines=dataset.split.lines[:count])
    return dataset


def make_data(folder: Path) -> dict[str, int]:
    """Composites and the lists of both stages; how many lines."""
    write_composites(folder / "canvases", CANVASES["canvases"])
    data = subset(open_data("digits", folder / "canvases", "train"), PICTURES)
    return {
        "stage1": make_stage_1(data, folder / "crops"),
        "stage2": make_stage_2(data, folder / "crops", "windows"),
    }


def train_classifier(stage: Stage) -> Weights:
    """The first half of the net as a classifier of single digits: the class that most of a crop's ink has."""
    whole = stage.net()
    net = NetParameter(name="classifier")
    for layer in whole.layer:
        net.layer.add().CopyFrom(layer)
        if layer.name == "relu7":
            break
    source = net_source(net, stage.data)
    shape = source(0)["data"].shape
    net.layer[0].Clear()
    inputs = net.layer[0]
    inputs.name, inputs.type = "data", "Input"
    inputs.top.extend(["data", "label"])
    inputs.input_param.shape.add(dim=shape)
    inputs.input_param.shape.add(dim=shape[:1])
    last = net.layer.add(name="fc8", type="InnerProduct", bottom=["fc7"], top=["fc8"]).inner_product_param
    last.num_output, last.weight_filler.type = stage.form.head(11), "xavier"
    net.layer.add(name="loss", type="SoftmaxWithLoss", bottom=["fc8", "label"], top=["loss"])
    count = ITERATIONS["classifier"]
    param = SolverParameter(base_lr=RATES["classifier"], momentum=0.9, weight_decay=0.0005, lr_policy="step",
                            gamma=0.1, stepsize=count * 2 // 3, random_seed=1)  # fmt: skip
    param.train_net_param.CopyFrom(net)
    solver = Solver(param)
    for number in range(count):
        batch = source(number)
        solver.step({"data": batch["data"], "label": most_ink(batch["seg-label"].numpy())})
    return solver.net.weights()


def most_ink(labels: np.ndarray) -> np.ndarray:
    """The class of most pixels of each label map N x 1 x H x W, ground and void apart."""
    counts = [np.bincount(label[(label > 0) & (label < 255)], minlength=11) for label in labels]
    return np.array([count.argmax() for count in counts])


def train(stage: Stage, out: Path, start: Any) -> tuple[Path, list[float]]:
    """One stage; its weights and its losses, the mean of each tenth of the run."""
    count = ITERATIONS[stage.name]
    changes = [f"base_lr={RATES[stage.name]}", f"stepsize={count * 2 // 3}", f"max_iter={count}",
               "iter_size=1", "display=0", "snapshot=0", "random_seed=1"]  # fmt: skip
    losses: list[float] = []
    training = stage_training(stage, out, start, changes)
    result = training.run(lambda row: losses.append(row["loss"]) if "loss" in row else None)
    part = max(1, count // 10)
    means = [round(float(np.mean(losses[i : i + part])), 4) for i in range(0, count, part)]
    return Path(str(result.snapshot).replace(".solverstate", ".caffemodel")), means


def folded_net(model: Path, stage: Stage) -> Net:
    """The net for inference, statistics of BN folded in."""
    learning = make_net("deconvnet", "deploy", (stage.side, stage.side), stage.form)
    for layer in learning.layer:
        if layer.type == "BN":
            layer.bn_param.ClearField("bn_mode")
    found = fold(learning, read_weights(model), net_source(stage.net(), stage.data), FOLDED)
    return Net(found.net, found.weights)


def systems(deconv: Net, member: Net) -> dict[str, Scores]:
    """Scores of a canvas by each system without an ensemble."""
    size = CANVASES["canvases"].size
    windows = sliding_windows(size, size, WINDOWS)
    rules = {name: (Rules(name), windows) for name in ("max", "sum", "mean")}
    rules = {"single pass": (Rules("max"), windows[:1]), **rules,
             "released": (replace(RELEASED, least_side=1), windows)}  # fmt: skip

    def by_windows(rule: Rules, boxes: np.ndarray) -> Scores:
        def scores(image: np.ndarray) -> np.ndarray:
            net_score = lambda crops: deconv(data=crops)["seg-score"]  # noqa: E731
            return picture_scores(net_score, image, boxes, SIDE, MEAN, rule, 13)[0].numpy()

        return scores

    def by_member(image: np.ndarray) -> np.ndarray:
        blob = image[:, :, ::-1].transpose(2, 0, 1)[np.newaxis].astype(np.float32)
        with torch.no_grad():
            return member(data=blob)["score"][0].numpy()

    return {**{name: by_windows(*item) for name, item in rules.items()}, "FCN-8s": by_member}


def energies_of(ways: Mapping[str, Scores], image: np.ndarray) -> dict[str, np.ndarray]:
    """What each system, the ensembles too, says of a canvas: energies, classes x height x width."""
    scores = {name: way(image) for name, way in ways.items()}
    energies = {name: unary_of_scores(found) for name, found in scores.items()}
    for rule in ENSEMBLES:
        energies[rule] = ensemble_energies(rule, scores["max"], scores["FCN-8s"])
    return energies


def labels_of(energy: np.ndarray, image: np.ndarray, crf: bool) -> np.ndarray:
    """The label map, refined or not."""
    return (-dense_crf(energy, image, CRF) if crf else energy).argmin(0)


def evaluate(ways: Mapping[str, Scores], data: Dataset) -> list[dict[str, Any]]:
    """The metrics of each system, with and without the CRF."""
    counts: dict[tuple[str, bool], np.ndarray] = {}
    for identity in data.ids:
        image, truth = data.image(identity), data.label(identity)
        for name, energy in energies_of(ways, image).items():
            for crf in (False, True):
                found = histogram(truth, labels_of(energy, image, crf), 11)
                counts[name, crf] = counts.get((name, crf), 0) + found
    return [{"system": name, "crf": crf, **score(found).metrics()} for (name, crf), found in counts.items()]


def draw(ways: Mapping[str, Scores], data: Dataset, path: Path, rows: int = 3) -> None:
    """The first canvases of a split, and what the systems of `SHOWN` see there, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 * (2 + len(SHOWN)), 1.6 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 2 + len(SHOWN), squeeze=False)
    for line, identity in zip(panels, data.ids, strict=False):
        image, truth = data.image(identity), data.label(identity)
        energies = energies_of(ways, image)
        maps = {"truth": truth, **{f"{name} + CRF" if crf else name: labels_of(energies[name], image, crf)
                                   for name, crf in SHOWN}}  # fmt: skip
        pictures = {"canvas": image, **{name: voc_palette()[labels] for name, labels in maps.items()}}
        for panel, (name, picture) in zip(line, pictures.items(), strict=True):
            panel.imshow(picture, interpolation="nearest")
            panel.set_axis_off()
            if identity == data.ids[0]:
                panel.set_title(name.replace(" + ", "\n+ "), fontsize=8)
    figure.savefig(path, dpi=100)


def run(folder: Path, picture: Path | None = None) -> dict[str, Any]:
    """All of it, and a picture if wanted; seconds are processor time."""
    seconds: dict[str, float] = {}
    last = time.process_time()

    def lap(name: str) -> None:
        nonlocal last
        seconds[name] = round(time.process_time() - last, 1)
        last = time.process_time()
        print(f"{name}: {seconds[name]} s", flush=True)

    lines = make_data(folder)
    lap("data")
    first = Stage("stage1", folder / "crops", FORM, SIDE, "msra", batch=BATCH)
    start = train_classifier(first)
    lap("classifier")
    model, losses_1 = train(first, folder / "stage1", start)
    lap("stage1")
    second = replace(first, name="stage2")
    model, losses_2 = train(second, folder / "stage2", model)
    lap("stage2")
    deconv = folded_net(model, second)
    lap("folding")
    data = subset(open_data("digits", folder / "canvases", "test"), TEST_CANVASES)
    ways = systems(deconv, load_model("8s"))
    table = evaluate(ways, data)
    lap("evaluation")
    if picture is not None:
        draw(ways, data, picture)
    return {
        "data": "composites of real digits", "test_canvases": len(data.ids), "lines": lines, "side": SIDE,
        "narrow": FORM.narrow, "fc": FORM.fc, "batch": BATCH, "iterations": ITERATIONS, "rates": RATES,
        "losses": {"stage1": losses_1, "stage2": losses_2}, "crf": CRF.words(), "cpu_seconds": seconds,
        "table": table,
    }  # fmt: skip


def main() -> None:
    """Run, print the table, save on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=None, help="Keep data and runs here. [default: nowhere]"
    )
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        result = run(given.folder or Path(temporary), PICTURE if given.save else None)
    for row in result["table"]:
        print(f"{row['system']:<18}{'+ CRF' if row['crf'] else '':<8}mean IU {row['mean_iu']:.4f}"
              f"  pixel accuracy {row['pixel_accuracy']:.4f}")  # fmt: skip
    if given.save:
        print("wrote", write_result("deconvnet_digits", result))


if __name__ == "__main__":
    main()
