"""Linear connectivity: the loss on the straight line between two experts (π-Tuning's analysis).

Every point is a mixture, θ(t) = (1 − t)·θ₀ + t·θ₁ with α = (1 − t, t). A LoRA is mixed by its
products, prefixes side by side if one of them has a bias, all other kinds by their parameters.
Experts without a barrier of loss between them can be mixed in any proportion (arXiv 2304.14381).
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
from pidep.training.scorer import Scorer, predict_logits

__all__ = ["NUM_POINTS", "ExpertPath", "PathPoint", "evaluate_path"]

NUM_POINTS = 11
OnPoint = Callable[[int, int, float], None]
"""Called with the point's number, the number of points and the loss."""


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
        """The most that the loss rises above the straight line between its ends; at least 0."""
        first, last = self.points[0].loss, self.points[-1].loss
        return max(
            0.0,
            *(point.loss - ((1 - point.t) * first + point.t * last) for point in self.points[1:-1]),
        )

    @property
    def best(self) -> PathPoint:
        """The point of least loss."""
        return min(self.points, key=lambda point: point.loss)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        points = [
            {"t": point.t, "loss": point.loss, self.metric: point.metric} for point in self.points
        ]
        return {"start": self.start, "end": self.end, "barrier": self.barrier, "points": points}


def evaluate_path(
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
    """Loss and metric on `rows` at evenly spaced points between two experts of one kind.

    Costs `num_points` passes over the rows. Inside `scorer.backbone.cached_below(start.sites)`
    the layers below the experts run once.

    Args:
        names: names of both ends in the result; those of the experts when absent.
        num_points: points with both ends; at least three.

    Raises:
        ExpertError: the experts are of different kinds or sites, or do not fit the backbone.
        UsageError: fewer than three points, or no rows.
    """
    if num_points < 3 or not rows.rows:
        raise UsageError(
            f"path: needs three points and a row, found {num_points} and {len(rows.rows)}"
        )
    # One α for all sites: the line moves every parameter at the same time.
    mixture = Mixture.of([start, end], per="global")
    labels = torch.tensor(rows.labels)
    points = []
    for number in range(num_points):
        t = number / (num_points - 1)
        _set_alpha(mixture, t)
        logits = predict_logits(scorer, rows.rows, mixture)
        loss = float(nn.functional.cross_entropy(logits, labels))
        points.append(PathPoint(t, loss, score(metric, rows.labels, logits.argmax(1).tolist())))
        if on_point is not None:
            on_point(number + 1, num_points, loss)
    first, last = names or (start.name, end.name)
    return ExpertPath(first, last, metric, tuple(points))


def _set_alpha(mixture: Mixture, t: float) -> None:
    """Set α = (1 − t, t) exactly: the logarithm of 0 is −Inf, and the softmax gives 0 back."""
    with torch.no_grad():
        for parameter in mixture.alpha_parameters():
            parameter.copy_(torch.tensor([1 - t, t]).log())
