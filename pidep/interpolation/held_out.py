"""What held-out rows say: folds, calibrated losses, and the weights of an average."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

__all__ = [
    "HeldOut",
    "averaging_weights",
    "calibrated_losses",
    "calibrated_together",
    "confidence_in",
    "stratified_folds",
]

_PRIOR_ROWS = 64
_TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


class HeldOut(NamedTuple):
    """Rows that did not train what scores them."""

    logits: Tensor  # [N, C]
    labels: Tensor  # [N] int64


def confidence_in(num_rows: int) -> float:
    """The confidence in `num_rows` training rows: N / (N + 64), in (0, 1).

    The prior it is weighed against: a uniform mixture of similar experts is good.
    """
    return num_rows / (num_rows + _PRIOR_ROWS)


def stratified_folds(labels: Sequence[int], *, count: int, seed: int) -> list[list[int]]:
    """Row numbers in `count` folds; fewer, but at least two, where a class has fewer rows."""
    classes: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        classes.setdefault(label, []).append(row)
    smallest = min(len(rows) for rows in classes.values())
    count = max(2, min(count, smallest))
    folds: list[list[int]] = [[] for _ in range(count)]
    shuffler, dealt = random.Random(seed), 0
    # Sorted: the order of the rows must not decide the order of the shuffles.
    for label in sorted(classes):
        shuffler.shuffle(classes[label])
        # Dealing on from the last fold leaves no fold empty where every class has one row.
        start = dealt if smallest < count else 0
        for position, row in enumerate(classes[label], start):
            folds[position % count].append(row)
        dealt += len(classes[label])
    return folds


def averaging_weights(
    losses: Mapping[str, Tensor], prior: Mapping[str, float], *, evidence: float
) -> dict[str, float]:
    """w ∝ prior · exp(-evidence · mean loss): pseudo-Bayesian averaging (Yao et al., 2018).

    Args:
        losses: `[N]` held-out losses of each candidate.
        evidence: how many independent rows the losses count for. Taking N is known to be too
            sure of itself.
    """
    score = {
        name: math.log(prior[name]) - evidence * float(loss.mean()) for name, loss in losses.items()
    }
    # Subtracting the greatest exponent keeps exp from overflowing.
    top = max(score.values())
    raw = {name: math.exp(value - top) for name, value in score.items()}
    return {name: value / sum(raw.values()) for name, value in raw.items()}


def calibrated_together(
    logits: Mapping[str, Tensor], labels: Tensor
) -> tuple[dict[str, Tensor], float]:
    """`[N]` cross-entropies of each candidate at one shared temperature, and the temperature.

    The temperature is that of the least total loss. Shared, because averaged candidates become
    one mixture with one temperature.
    """

    def losses_at(temperature: float) -> dict[str, Tensor]:
        return {
            name: nn.functional.cross_entropy(value / temperature, labels, reduction="none")
            for name, value in logits.items()
        }

    def total_loss(temperature: float) -> float:
        return sum(float(loss.sum()) for loss in losses_at(temperature).values())

    temperature = min(_TEMPERATURES, key=total_loss)
    return losses_at(temperature), temperature


def calibrated_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """`[N]` cross-entropies at the temperature that suits these logits best."""
    return calibrated_together({"": logits}, labels)[0][""]
