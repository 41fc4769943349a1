"""Linear connectivity: the loss along the straight line between two experts (the analysis of π-Tuning, arXiv 2304.14381).

Every point of the line is a mixture, θ(t) = (1 − t)·θ₀ + t·θ₁ with α = (1 − t, t): of the products for a LoRA, side by side for prefixes
of which one has a bias, of the parameters otherwise. Where no hill of loss lies between two experts, mixing them costs nothing on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pidep.adapters.mixture import Mixture
from pidep.errors import UsageError
from pidep.experts.folder import Expert
from pidep.tasks.data import Split
from pidep.tasks.metrics import score
from pidep.training.loop import Scorer, predict_logits

__all__ = ["NUM_POINTS", "ExpertPath", "PathPoint", "walk"]

NUM_POINTS = 11
OnPoint = Callable[[int, int, float], None]
"""Called with point, number of points and loss."""


@dataclass(frozen=True)
class PathPoint:
    """One mixture on the line."""

    t: float
    loss: float
    """Mean cross-entropy, nats a row."""
    metric: float


@dataclass(frozen=True)
class ExpertPath:
    """The line from one expert (t = 0) to another (t = 1)."""

    start: str
    end: str
    metric: str
    points: tuple[PathPoint, ...]

    @property
    def barrier(self) -> float:
        """How far the loss rises above the straight line between its ends, at most; 0 where it never does."""
        first, last = self.points[0].loss, self.points[-1].loss
        return max(0.0, *(point.loss - ((1 - point.t) * first + point.t * last) for point in self.points[1:-1]))

    @property
    def best(self) -> PathPoint:
        """Where the loss is least."""
        return min(self.points, key=lambda point: point.loss)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        points = [{"t": point.t, "loss": point.loss, self.metric: point.metric} for point in self.points]
        return {"start": self.start, "end": self.end, "barrier": self.barrier, "points": points}


def walk(
    scorer: Scorer,
    start: Expert,
    end: Expert,
    rows: Split,
    metric: str,
    *,
    names: tuple[str, str] | None = None,
    num_points: int = NUM_POINTS,
    on_point: OnPoint | None = None,
) -> ExpertPath:
    """Loss and metric on `rows` at evenly spaced points of the line between two experts of one kind and the same sites.

    Costs `num_points` passes over the rows; inside `scorer.backbone.cached_below(start.sites)` the layers below run once.

    Raises:
        ExpertError: the experts are of different kinds or sites, or do not fit the backbone.
        UsageError: fewer than three points, or no rows.
    """
    if num_points < 3 or not rows.rows:
        raise UsageError(f"path: needs three points and a row, found {num_points} and {len(rows.rows)}")
    mixture = Mixture.of([start, end], per="global")
    labels = torch.tensor(rows.labels)
    points = []
    for number in range(num_points):
        t = number / (num_points - 1)
        _go_to(mixture, t)
        logits = predict_logits(scorer, rows.rows, mixture)
        loss = float(nn.functional.cross_entropy(logits, labels))
        points.append(PathPoint(t, loss, score(metric, rows.labels, logits.argmax(1).tolist())))
        if on_point is not None:
            on_point(number + 1, num_points, loss)
    first, last = names or (start.name, end.name)
    return ExpertPath(first, last, metric, tuple(points))


def _go_to(mixture: Mixture, t: float) -> None:
    """α = (1 − t, t), exactly: the logarithm of 0 is −Inf, which the softmax turns into 0 again."""
    with torch.no_grad():
        for parameter in mixture.alpha_parameters():
            parameter.copy_(torch.tensor([1 - t, t]).log())
