"""In which order pictures are taken.

The reference trains on pictures drawn at random with replacement, by Python 2's `random.seed(1337)` and
`randint(0, n - 1)`, which is `int(random() * n)` on the Mersenne Twister (Python 3's randint draws
otherwise); one is drawn at set-up, one more after each forward pass. Of 8,498 pictures the first two are 5249
and 4531.
Evaluation goes through the list. (`*_layers.py`, shelhamer/fcn.berkeleyvision.org at 1305c73.)
"""

from __future__ import annotations

from random import Random
from typing import Protocol

SEED = 1337


class Order(Protocol):
    """Which picture is the `number`-th of a run, counted from 0: an index below the number of pictures."""

    def __call__(self, number: int) -> int:
        """The index."""


class RandomOrder:
    """The reference's random order. Any number may be asked for; going forwards costs one draw a step."""

    def __init__(self, count: int, seed: int = SEED) -> None:
        self.count, self.seed = count, seed
        self._restart()

    def __call__(self, number: int) -> int:
        """The index of the `number`-th picture."""
        if number < self._drawn - 1:
            self._restart()
        while self._drawn <= number:
            self._last = int(self._random.random() * self.count)
            self._drawn += 1
        return self._last

    def _restart(self) -> None:
        self._random, self._drawn, self._last = Random(self.seed), 0, -1


class ListOrder:
    """The order of the list, again and again."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, number: int) -> int:
        """The index of the `number`-th picture."""
        return number % self.count
