"""Scoring given weights on given data for a claim, as the claim's table does.

The score is `reproduce.evaluate`'s. SIFT Flow's classes without truth are left out, as the paper says (its
footnote 9), elsewhere they count as the reference's score.py has them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from reproduce.published.claims import Claim
from reproduce.published.requirements import Requirement

if TYPE_CHECKING:
    from reproduce.evaluate import Evaluation
    from reproduce.published.identity import GivenWeights

# how the title of a column begins -> the metric and the head; the first that fits
METRICS = {
    "pixel acc": ("pixel_accuracy", 0),
    "mean acc": ("mean_accuracy", 0),
    "f.w. IU": ("frequency_weighted_iu", 0),
    "geom. acc": ("pixel_accuracy", 1),
    "mean IU": ("mean_iu", 0),
    "": ("mean_iu", 0),
}
ABSENT = {"siftflow": "skip"}


@dataclass
class Scoring:
    """Evaluations, each done once; `device` as in torch, `step` called after each picture."""

    device: str = "cpu"
    narrow: int = 1
    fc: int | None = None
    _done: dict[tuple[str, str, Path], Evaluation] = field(default_factory=dict)

    def percent(self, claim: Claim, required: Requirement, given: GivenWeights, folder: Path) -> float:
        """The claim's metric of the weights on the data set."""
        metric, head = next(found for title, found in METRICS.items() if claim.column.startswith(title))
        scores = self.evaluation(given, required.data, folder).scores(ABSENT.get(required.data, "zero"), head)
        return 100 * float(getattr(scores, metric))

    def evaluation(self, given: GivenWeights, kind: str, folder: Path) -> Evaluation:
        """The evaluation of the weights on all pictures of the split that the kind is scored on."""
        key = given.net, kind, folder
        if key not in self._done:
            self._done[key] = self._evaluate(given, kind, folder)
        return self._done[key]

    def _evaluate(self, given: GivenWeights, kind: str, folder: Path) -> Evaluation:
        from reproduce.evaluate import evaluate, published_net
        from reproduce.inference import pick_device
        from reproduce.run_files import DataChoice, form_for

        form = form_for(given.net, kind, self.narrow, self.fc)
        choice = DataChoice(kind, folder)
        net, feed = published_net(given.net, given.weights, choice, form, pick_device(self.device))
        try:
            return evaluate(net, feed, len(feed.dataset.ids))
        finally:
            feed.close()
