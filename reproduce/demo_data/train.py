"""Train the classifier of `fcn demo` on scikit-learn's real digits and write what the demo ships.

    python -m reproduce.demo_data.train            (about two minutes on one core; needs scikit-learn)

writes beside itself `digits.caffemodel` (weights of digits.prototxt) and `held_out.npz` (`images`, uint8
N x 8 x 8, values 0..16; `labels`, uint8; `index`, their places in `load_digits`). Digits are held out by
instance, 300 of the 1,797, before anything is drawn; 120 of those are shipped. The net is trained on single
fields cut at any column out of strips with random gaps: a field with a digit's centre of mass within 2 pixels
of its middle carries that digit's class, one 6 pixels or more away from every digit is class 10, "no
digit here", and those between are not shown. That is what a strip read every 4 pixels needs (Matan et al.
1992 read strips with a net trained on single digits, and had to find the digits afterwards).

The optimizer is AdamW in plain torch, seeded and on one thread; another version of torch may give other bits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from caffe_weights.export import write_weights
from caffe_weights.weights import Weights
from reproduce.digits import FIELD, draw_strip

SEED = 1337
HELD_OUT, SHIPPED = 300, 120
STEPS, BATCH, RATE = 3000, 128, 2e-3
DIGITS_A_STRIP = 10
NEAR, FAR = 2, 6  # pixels between the middle of a field and a digit's centre
NONE = 10
HERE = Path(__file__).parent


def main() -> None:
    """Train, score on the held-out digits, write the two files."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    images, labels, order = split()
    trained, held = order[HELD_OUT:], order[:HELD_OUT]
    net = build()
    train(net, images[trained], labels[trained])
    for name, chosen in (("trained on", trained), ("held out", held)):
        rng = np.random.default_rng(SEED + 1)
        right = score(net, *fields(images[chosen], labels[chosen], 40, rng))
        print(f"{name}: {right:.4f} of the fields right", file=sys.stderr)
    write(net, images, labels, held[:SHIPPED])


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 1797 x 8 x 8, labels, and a seeded order of which the first HELD_OUT are held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    return digits.images.astype(np.uint8), digits.target, order


def build() -> nn.ModuleDict:
    """The layers of digits.prototxt that have parameters, by their Caffe names."""
    return nn.ModuleDict(
        {
            "conv1": nn.Conv2d(1, 12, 5),
            "conv2": nn.Conv2d(12, 24, 5),
            "ip1": nn.Linear(24 * 4 * 4, 96),
            "ip2": nn.Linear(96, 11),
        }
    )


def forward(net: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
    """Scores N x 11 of fields N x 1 x 28 x 28, before the softmax."""
    x = functional.max_pool2d(net["conv1"](x), 2)
    x = functional.max_pool2d(net["conv2"](x), 2)
    return net["ip2"](functional.relu(net["ip1"](x.flatten(1))))


def train(net: nn.ModuleDict, images: np.ndarray, labels: np.ndarray) -> None:
    """STEPS batches of fresh fields; the rate falls to zero along half a cosine."""
    rng = np.random.default_rng(SEED)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        x, y = fields(images, labels, BATCH // DIGITS_A_STRIP, rng)
        pick = torch.from_numpy(rng.permutation(len(y))[:BATCH])
        loss = functional.cross_entropy(forward(net, x[pick]), y[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"step {step}: loss {loss.item():.4f}", file=sys.stderr)


def fields(
    images: np.ndarray, labels: np.ndarray, strips: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
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
    return torch.from_numpy(np.stack(cut))[:, None], torch.tensor(np.array(classes, np.int64))


def score(net: nn.ModuleDict, x: torch.Tensor, y: torch.Tensor) -> float:
    """Fraction of fields whose class is the true one."""
    with torch.no_grad():
        return float((forward(net, x).argmax(1) == y).float().mean())


def write(net: nn.ModuleDict, images: np.ndarray, labels: np.ndarray, held: np.ndarray) -> None:
    """The caffemodel, in the layers of digits.prototxt, and the shipped digits."""
    from caffe_weights.upgrade import load_net

    weights = Weights({name: [p.detach().numpy() for p in layer.parameters()] for name, layer in net.items()})
    write_weights(weights, HERE / "digits.caffemodel", net=load_net(HERE / "digits.prototxt"), force=True)
    np.savez_compressed(
        HERE / "held_out.npz", images=images[held], labels=labels[held].astype(np.uint8), index=held
    )


if __name__ == "__main__":
    main()
