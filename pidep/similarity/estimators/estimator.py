"""What an estimator of transfer is: it reads a target's rows and gives each helper a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pidep.adapters.mixture import Mixture, attached
from pidep.errors import ExpertError, UsageError
from pidep.experts.folder import Expert
from pidep.inputs.row import Row
from pidep.similarity.estimators.base_point import PointFacts
from pidep.similarity.measures import Embedding, Neighbour
from pidep.tasks.data import Split
from pidep.training.scorer import Scorer, predict_logits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Cost", "Estimator", "Helper", "Target", "Vector", "each", "ranked"]

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """Passes over the target's rows. What a pool keeps of its own tasks is not counted."""

    task_forward: int = 0
    """Forward passes for the target, whatever the number of helpers."""
    task_backward: int = 0
    pair_forward: int = 0
    """Forward passes for each helper."""
    pair_backward: int = 0

    @property
    def backward(self) -> int:
        """Backward passes, which an exported graph does not have."""
        return self.task_backward + self.pair_backward


@dataclass(frozen=True)
class Helper:
    """An expert of a pool, and what the pool knows of its task."""

    expert: Expert
    fisher: Embedding | None = None
    """The task embedding: the Fisher at the expert itself."""
    mean_text: Vector | None = None  # [D]
    """Mean embedding of the task's training rows by the bare backbone."""
    at: Mapping[str, PointFacts] = field(default_factory=dict)
    """Name of a base point to what the task's training rows say there."""


@dataclass(eq=False)
class Target:
    """A task with few rows. Each pass over the rows is made once, whoever asks for its result."""

    scorer: Scorer
    rows: Split
    own_fisher: Embedding | None = None
    """The task embedding at the target's own expert."""
    at: Mapping[str, PointFacts] = field(default_factory=dict)
    """Name of a base point to what the rows say there."""
    _embeddings: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _logits: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def embeddings(self, expert: Expert | None) -> Tensor:  # [N, D] fp32, unit rows
        """The rows as an expert embeds them, or the bare backbone; one forward pass.

        Raises:
            UsageError: the backbone is an encoder-decoder, which has no embeddings.
        """
        backbone = self.scorer.backbone
        if not backbone.embeds:
            raise UsageError(
                f"backbone {backbone.name!r}: has no embeddings of rows, which this estimator "
                "compares; use 'trial'"
            )
        key = "" if expert is None else expert.digest
        if key not in self._embeddings:
            mixture = None if expert is None else Mixture.of([expert])
            with attached(backbone.model, mixture):
                self._embeddings[key] = backbone.encode(
                    self.rows.rows, max_length=self.scorer.max_length
                )
        return self._embeddings[key]

    def logits(self, expert: Expert | None) -> Tensor:  # [N, C] fp32
        """The target's own labels as an expert scores them, or the bare backbone.

        Where rows have no candidates of their own, this is the forward pass of `embeddings`.
        """
        choosing = any(isinstance(row, Row) and row.candidates for row in self.rows.rows)
        if self.scorer.backbone.embeds and not choosing:
            labels = self.scorer.label_embeddings
            return self.scorer.logit_scale * self.embeddings(expert) @ labels.T
        key = "" if expert is None else expert.digest
        if key not in self._logits:
            mixture = None if expert is None else Mixture.of([expert])
            self._logits[key] = predict_logits(self.scorer, self.rows.rows, mixture)
        return self._logits[key]

    def facts(self, point: str) -> PointFacts:
        """What the rows say at a base point.

        Raises:
            UsageError: nobody computed it.
        """
        if point not in self.at:
            raise UsageError(
                f"target: nothing is known of its rows at the base point {point!r}; "
                "give `point_facts` of them"
            )
        return self.at[point]


@dataclass(frozen=True)
class Estimator:
    """Estimates how much each helper adds to a target; larger is better. Only the order counts."""

    name: str
    cost: Cost
    estimate: Callable[[Target, Mapping[str, Helper]], dict[str, float]]
    """A number for each helper, by name."""

    def __call__(self, target: Target, helpers: Mapping[str, Helper]) -> dict[str, float]:
        """A finite number for each helper.

        Raises:
            ExpertError: a number is not finite, or a helper does not fit the backbone.
            UsageError: the target lacks what this estimator reads.
        """
        found = self.estimate(target, helpers)
        for name, value in found.items():
            if not np.isfinite(value):
                raise ExpertError(
                    f"estimator {self.name!r}: the estimate for helper {name!r} is not finite; "
                    "train that expert again"
                )
        return found


def ranked(estimator: Estimator, target: Target, helpers: Mapping[str, Helper]) -> list[Neighbour]:
    """Every helper with its estimate, best first; ties by name. Raises as the estimator."""
    found = [Neighbour(name, value) for name, value in estimator(target, helpers).items()]
    return sorted(found, key=lambda one: (-one.similarity, one.name))


def each(
    one: Callable[[Target, Helper], float],
) -> Callable[[Target, Mapping[str, Helper]], dict[str, float]]:
    """An estimate that judges every helper by itself."""
    return lambda target, helpers: {
        name: float(one(target, helper)) for name, helper in helpers.items()
    }
