"""What to take of several candidates, by their losses on rows they were not trained on."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["CHOICES", "Decision", "averaging_weights", "calibrated", "folds_of", "guard", "trust"]

CHOICES: Mapping[str, str] = {
    "mixture": "the average",
    "own_expert": "the own expert",
    "uniform": "the uniform mixture",
    "joint": "joint training",
    "own_expert_harder": "the own expert trained harder",
    "joint_harder": "joint training, harder",
}
"""What may come out, in words."""
_SIMPLE = ("own_expert", "uniform")
_PRIOR_ROWS = 64
_TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True)
class Decision:
    """What was taken, and the held-out figures it was taken on."""

    policy: str
    chosen: str
    """One of `CHOICES`: the average, or what the guard took instead."""
    why: str
    rows: int = 0
    """Held-out rows behind the losses."""
    losses: dict[str, float] = field(default_factory=dict)
    """Held-out cross-entropy (nats a row) of each candidate."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each candidate in the average."""

    def to_json(self) -> dict[str, Any]:
        """For the run folder."""
        return asdict(self)


def trust(rows: int) -> float:
    """How far `rows` training rows are believed against the prior that mixing is good: N / (N + 64), in (0, 1)."""
    return rows / (rows + _PRIOR_ROWS)


def folds_of(labels: Sequence[int], *, count: int, seed: int) -> list[list[int]]:
    """Row numbers in `count` stratified folds (fewer, but two at least, where a class has fewer rows)."""
    classes: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        classes.setdefault(label, []).append(row)
    smallest = min(len(rows) for rows in classes.values())
    count = max(2, min(count, smallest))
    folds: list[list[int]] = [[] for _ in range(count)]
    shuffler, dealt = random.Random(seed), 0
    for label in sorted(classes):
        shuffler.shuffle(classes[label])
        start = dealt if smallest < count else 0  # no fold is empty where every class has one row
        for position, row in enumerate(classes[label], start):
            folds[position % count].append(row)
        dealt += len(classes[label])
    return folds


def averaging_weights(losses: Mapping[str, Tensor], prior: Mapping[str, float], *, evidence: float) -> dict[str, float]:
    """w ∝ prior · exp(-evidence · mean loss): pseudo-Bayesian model averaging (Yao et al., 2018).

    That takes as many rows as there are for evidence and is known to be too sure of itself.
    """
    score = {name: math.log(prior[name]) - evidence * float(loss.mean()) for name, loss in losses.items()}
    top = max(score.values())
    raw = {name: math.exp(value - top) for name, value in score.items()}
    return {name: value / sum(raw.values()) for name, value in raw.items()}


def calibrated(logits: Mapping[str, Tensor], labels: Tensor) -> tuple[dict[str, Tensor], float]:
    """Cross-entropies by row at the one of a few temperatures where their sum is least, and it."""

    def losses_at(temperature: float) -> dict[str, Tensor]:
        return {name: nn.functional.cross_entropy(value / temperature, labels, reduction="none") for name, value in logits.items()}

    temperature = min(_TEMPERATURES, key=lambda value: sum(float(loss.sum()) for loss in losses_at(value).values()))
    return losses_at(temperature), temperature


def guard(
    losses: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    believed: float,
    rival: Tensor | None = None,
    lead: float = 1.0,
    usual: str = "mixture",
) -> Decision:
    """Take the usual choice unless held-out rows say that another is better, by more standard errors the fewer rows there are.

    Of several that are clearly better the one of the least loss is taken.

    Args:
        losses: `[N]` of every candidate.
        weights: share of each candidate in the average, for the record.
        rival: `[N]` losses that trained choices are held against, the best of the untrained at its own temperature; else `usual`'s.
        lead: standard errors, over `believed`, that trained choices need.
        usual: the choice that needs no evidence.
    """
    means = {name: float(loss.mean()) for name, loss in losses.items()}
    rows = len(losses[usual])
    simple = sorted((name for name in _SIMPLE if name in losses and name != usual), key=lambda name: means[name])[:1]
    trained = [name for name in CHOICES if name in losses and name not in (*_SIMPLE, usual)]
    against = {**dict.fromkeys(simple, losses[usual]), **dict.fromkeys(trained, losses[usual] if rival is None else rival)}
    gaps = {name: loss - losses[name] for name, loss in against.items()}
    needed = {name: float(gap.std() / math.sqrt(rows)) / believed if rows > 1 else math.inf for name, gap in gaps.items()}
    needed |= {name: needed[name] * lead for name in trained}
    clear = [name for name in against if float(gaps[name].mean()) > needed[name]]
    other = min(clear or against, key=lambda name: means[name])
    held = float(against[other].mean())
    figures = f"held-out loss {held:.3f}, {CHOICES[other]} {means[other]:.3f} (counts from {needed[other]:.3f}, {rows} rows)"
    why = f"{CHOICES[usual]} is clearly worse: {figures}" if clear else f"nothing else is clearly better: {figures}"
    rounded = {name: round(value, 4) for name, value in weights.items()}
    return Decision("auto", other if clear else usual, why, rows, {name: round(value, 5) for name, value in means.items()}, rounded)
