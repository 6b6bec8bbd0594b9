"""Train the classifier of `fcn demo` on scikit-learn's real digits and write what the demo ships.

    python -m reproduce.demo_data.train            (about two minutes on one core; needs scikit-learn)

writes beside itself `digits.caffemodel` (weights of digits.prototxt) and `held_out.npz` (`images`, uint8
N x 8 x 8, values 0..16; `labels`, uint8; `index`, their places in `load_digits`). Digits are held out by
instance, 300 of the 1,797, before anything is drawn; 120 of those are shipped. The net is trained on single
fields cut at any column out of strips with random gaps: a field with a digit's centre of mass within 2 pixels
of its middle carries that digit's class, one 6 pixels or more away from every digit is class 10, "no
digit here", and those between are not shown. That is what a strip read every 4 pixels needs (Matan et al.
1992 read strips with a net trained on single digits, and had to find the digits afterwards).

The fields go into an HDF5 file and `fcn train --solver` learns them as Caffe would: HDF5Data, Adam, the rate
falling to 0. It is seeded and on one thread; another version of torch may give other bits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

from caffe_weights.caffe_pb2 import FillerParameter, LayerParameter, NetParameter, SolverParameter
from caffe_weights.export import read_weights, write_weights
from caffe_weights.prototxt import format_net, format_solver
from caffe_weights.upgrade import load_net
from caffe_weights.weights import Weights
from reproduce.digits import FIELD, draw_strip

SEED = 1337
HELD_OUT, SHIPPED = 300, 120
STRIPS, BATCH, STEPS, RATE = 3000, 128, 3000, 2e-3
DIGITS_A_STRIP = 10
NEAR, FAR = 2, 6  # pixels between the middle of a field and a digit's centre
NONE = 10
HERE = Path(__file__).parent
NET = HERE / "digits.prototxt"


def main() -> None:
    """Train, score on the held-out digits, write the two files."""
    images, labels, order = split()
    trained, held = order[HELD_OUT:], order[:HELD_OUT]
    with tempfile.TemporaryDirectory() as folder:
        x, y = fields(images[trained], labels[trained], STRIPS, np.random.default_rng(SEED))
        weights = train(Path(folder), x, y)
    for name, chosen in (("trained on", trained), ("held out", held)):
        rng = np.random.default_rng(SEED + 1)
        right = score(weights, *fields(images[chosen], labels[chosen], 40, rng))
        print(f"{name}: {right:.4f} of the fields right", file=sys.stderr)
    write_weights(weights, HERE / "digits.caffemodel", net=load_net(NET), force=True)
    shipped = held[:SHIPPED]
    np.savez_compressed(
        HERE / "held_out.npz", images=images[shipped], labels=labels[shipped].astype(np.uint8), index=shipped
    )


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 1797 x 8 x 8, labels, and a seeded order of which the first HELD_OUT are held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    return digits.images.astype(np.uint8), digits.target, order


def train(folder: Path, x: np.ndarray, y: np.ndarray, steps: int = STEPS) -> Weights:
    """What `fcn train` makes of fields N x 1 x 28 x 28 and their classes; its files go into the folder."""
    with h5py.File(folder / "fields.h5", "w") as file:
        file["data"], file["label"] = x, y.astype(np.float32)
    (folder / "fields.txt").write_text("fields.h5\n")
    solver = SolverParameter(
        train_net="train.prototxt", type="Adam", base_lr=RATE, lr_policy="poly", power=1, momentum=0.9,
        momentum2=0.999, delta=1e-8, weight_decay=1e-4, max_iter=steps, display=500, average_loss=100,
        random_seed=SEED,
    )  # fmt: skip
    (folder / "train.prototxt").write_text(format_net(training_net()))
    (folder / "solver.prototxt").write_text(format_solver(solver))
    command = [
        sys.executable,
        "-m",
        "reproduce",
        "train",
        "--solver",
        "solver.prototxt",
        "--out",
        "run",
        "--json",
    ]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=one, check=True, stdout=subprocess.PIPE, text=True)
    return Weights(dict(read_weights(folder / json.loads(done.stdout)["runs"][0]["weights"])))


def training_net() -> NetParameter:
    """digits.prototxt with fields from an HDF5 file, random weights, and a loss."""
    net = load_net(NET)
    layers = [layer for layer in net.layer if layer.type not in ("Input", "Softmax")]
    data = LayerParameter(name="data", type="HDF5Data", top=["data", "label"])
    data.hdf5_data_param.source, data.hdf5_data_param.batch_size = "fields.txt", BATCH
    data.hdf5_data_param.shuffle = True
    loss = LayerParameter(name="loss", type="SoftmaxWithLoss", bottom=["ip2", "label"], top=["loss"])
    result = NetParameter(layer=[data, *layers, loss])
    for layer in result.layer:
        for kind in ("convolution_param", "inner_product_param"):
            if layer.HasField(kind):
                getattr(layer, kind).weight_filler.CopyFrom(FillerParameter(type="xavier"))
    return result


def fields(
    images: np.ndarray, labels: np.ndarray, strips: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Fields N x 1 x 28 x 28 of fresh strips and their classes; as many without a digit as a digit has."""
    cut, classes = [], []
    for _ in range(strips):
        chosen = rng.integers(0, len(images), DIGITS_A_STRIP)
        gaps = rng.integers(3, 22, DIGITS_A_STRIP + 1) + np.array([8] + [0] * (DIGITS_A_STRIP - 1) + [8])
        strip, centres = draw_strip(images[chosen], gaps)
        strip = np.roll(strip, rng.integers(-2, 3), axis=0)
        middles = np.arange(FIELD // 2, strip.shape[1] - FIELD // 2 + 1)
        distance = np.abs(middles[:, None] - np.array(centres))
        here = rng.permutation(np.nonzero(distance.min(1) <= NEAR)[0])[:10]
        none = rng.permutation(np.nonzero(distance.min(1) >= FAR)[0])[:5]
        cut += [strip[:, i : i + FIELD] for i in (*here, *none)]
        classes += [labels[chosen[distance[i].argmin()]] for i in here] + [NONE] * len(none)
    return np.stack(cut)[:, np.newaxis], np.array(classes, np.int64)


def score(weights: Weights, x: np.ndarray, y: np.ndarray) -> float:
    """Fraction of fields whose class is the true one."""
    from reproduce.inference import forward
    from reproduce.net import Net

    found = forward(Net(load_net(NET), weights), {"data": x})["prob"].argmax(1)
    return float((found == y).mean())


if __name__ == "__main__":
    main()
