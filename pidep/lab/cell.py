"""A cell of a comparison: what every method is given, and what a method gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from torch import Tensor

from pidep.adapters.mixture import Mixture
from pidep.experts.folder import Expert
from pidep.inputs.row import Input
from pidep.lab.peft_merge import peft_model
from pidep.tasks.data import Split
from pidep.tasks.task import Task
from pidep.training.loop import OnStep, TrainReport, snapshot
from pidep.training.own_expert import TrainOwn, own_expert_trainer
from pidep.training.scorer import Scorer, predict_logits
from pidep.training.settings import TrainingSettings

__all__ = ["Cell", "Predictor", "mean_alpha", "training_details"]


@dataclass(frozen=True)
class Predictor:
    """A trained or merged model."""

    logits: Callable[[Sequence[Input]], Tensor]
    """Rows to `[N, C]`."""
    details: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    """Predictors of one cell with the same key give the same logits, so only one is run."""
    decision: dict[str, Any] | None = None
    """The decision of π, with its reason."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One target task with some of its rows."""

    scorer: Scorer
    task: Task
    training: TrainingSettings
    own: Expert
    helpers: tuple[Expert, ...]
    train: Split
    validation: Split | None
    pool: Mapping[str, Expert] = field(default_factory=dict)
    """Name to expert of all possible helpers."""
    similarities: tuple[float, ...] | None = None
    """Predicted similarity of each helper's task."""
    on_step: OnStep | None = None

    @property
    def seed(self) -> int:
        """Seed of the shots and the batches."""
        return self.training.seed

    @property
    def experts(self) -> list[Expert]:
        """The own expert and the helpers."""
        return [self.own, *self.helpers]

    @property
    def train_own(self) -> TrainOwn:
        """Trains an own expert on other rows, at a multiple of the learning rate."""
        return own_expert_trainer(self.scorer, self.task, self.training, on_step=self.on_step)

    def predictor(self, mixture: Mixture, **details: Any) -> Predictor:
        """The predictor of a mixture."""
        logits = partial(predict_logits, self.scorer, mixture=mixture)
        return Predictor(logits, details, key=_key(mixture))

    @cached_property
    def peft(self) -> Any:
        """A `PeftModel` that holds every expert, on a copy that shares the backbone's weights."""
        return peft_model(self.scorer.backbone.model, self.experts)


def training_details(report: TrainReport) -> dict[str, Any]:
    """The facts about a training run that a cell's file keeps."""
    loss = report.history[-1]["loss"]
    details = {"steps": report.steps, "best_step": report.best_step, "loss": loss}
    if report.validation_loss is not None:
        details["validation_loss"] = report.validation_loss
    return details


def mean_alpha(mixture: Mixture) -> list[float]:
    """`[K]` α, averaged over the sites."""
    return [float(weight) for weight in np.mean(list(mixture.alphas().values()), axis=0)]


def _key(mixture: Mixture) -> str:
    """SHA-256 over everything that decides the mixture's answers."""
    sha = hashlib.sha256(mixture.kind.encode())
    for name, value in sorted(snapshot(mixture).items()):
        sha.update(f"\n{name} {tuple(value.shape)} ".encode())
        sha.update(value.contiguous().numpy().tobytes())
    for name, site in mixture.by_name():
        # Not in the tensors, and equal tensors with another scaling give other answers.
        facts = f"{site.scalings} {site.on_outputs} {site.alpha().tolist()}"
        sha.update(f"\n{name} {facts}".encode())
    return sha.hexdigest()
