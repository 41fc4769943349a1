"""Measured transfer of every helper to every target, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.prediction_lab import Draw, Lab
from benchmarks.transfer_statistics import Matrix, Reliability, ceiling
from pidep.experts.folder import Expert

__all__ = ["Measured", "Transfer", "described", "measure"]


@dataclass(frozen=True)
class Transfer:
    """Correct answers gained or lost by a helper, for one kind of transfer."""

    gains: list[Matrix]
    """Of each target `[S, T - 1, N]`: 1 gained, −1 lost; helpers in their order without it."""

    @cached_property
    def by_seed(self) -> Matrix:  # [S, T, T], helper by target
        """Accuracy gained. The diagonal is 0."""
        size = len(self.gains)
        found = np.zeros((len(self.gains[0]), size, size))
        for target, own in enumerate(self.gains):
            others = [helper for helper in range(size) if helper != target]
            found[:, others, target] = own.mean(2)
        return found

    @cached_property
    def mean(self) -> Matrix:  # [T, T]
        """Mean over the seeds."""
        return np.asarray(self.by_seed.mean(0))

    @cached_property
    def ceiling(self) -> dict[str, Reliability]:
        """How well this measurement would predict itself."""
        return ceiling(self.gains)

    @property
    def noise_ceiling(self) -> float:
        """The correlation that a perfect prediction would have with this measurement."""
        return (self.ceiling.get("both") or self.ceiling["rows"]).ceiling


@dataclass(frozen=True)
class Measured:
    """Accuracies and transfers."""

    backbone: Matrix  # [T]
    full: Matrix  # [T]
    own: Mapping[int, Matrix]
    """Shots to `[S, T]`, the few-shot expert of each seed."""
    transfers: Mapping[str, Transfer]
    """`N shots`: the uniform mixture of the few-shot expert and a helper, against the few-shot
    expert. `zero-shot`, where it was measured: a helper alone, against the bare backbone.
    """

    def of(self, shots: int) -> Transfer:
        """The transfer into mixtures of that many shots."""
        return self.transfers[f"{shots} shots"]


def measure(lab: Lab, full: Mapping[str, Expert]) -> Measured:
    """Everything that needs test rows. Cached in the lab's folder."""
    tasks, settings = lab.tasks, lab.settings
    bare = [lab.correct(task) for task in tasks]
    transfers, own = {}, {}
    for shots in settings.shots:
        gains, accuracies = [], np.zeros((len(settings.seeds), len(tasks)))
        for column, target in enumerate(tasks):
            by_seed = []
            for place, seed in enumerate(settings.seeds):
                expert = lab.expert(target, Draw(shots, seed))
                before = lab.correct(target, expert)
                accuracies[place, column] = before.mean()
                by_seed.append(
                    [
                        lab.correct(target, expert, full[helper.name]) - before
                        for helper in tasks
                        if helper is not target
                    ]
                )
            gains.append(np.array(by_seed))
        own[shots], transfers[f"{shots} shots"] = accuracies, Transfer(gains)
    if settings.zero_shot:
        zero = []
        for column, target in enumerate(tasks):
            others = [full[helper.name] for helper in tasks if helper is not target]
            zero.append(np.array([[lab.correct(target, one) - bare[column] for one in others]]))
        transfers["zero-shot"] = Transfer(zero)
    return Measured(
        np.array([one.mean() for one in bare]),
        np.array([lab.correct(task, full[task.name]).mean() for task in tasks]),
        own,
        transfers,
    )


def described(lab: Lab, measured: Measured) -> list[dict[str, Any]]:
    """The tasks, with the accuracies of their own experts."""
    return [
        {
            "name": task.name,
            "words": " ".join(task.words),
            "train_rows": len(task.data.train.rows),
            "test_rows": len(task.data.test.rows),
            "positive": round(float(np.mean(task.data.train.labels)), 4),
            "backbone": round(float(measured.backbone[place]), 5),
            "full_data_expert": round(float(measured.full[place]), 5),
            "own_by_seed": {
                str(shots): own[:, place].round(5).tolist() for shots, own in measured.own.items()
            },
        }
        for place, task in enumerate(lab.tasks)
    ]
