"""What every estimator says about every draw of shots, each kept in the lab's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np

from benchmarks.prediction_lab import Draw, Lab, SubTask
from benchmarks.transfer_statistics import Matrix
from pidep.experts.folder import Expert
from pidep.similarity.estimators import (
    ESTIMATORS,
    BasePoint,
    Estimator,
    Helper,
    PointFacts,
    Target,
    mean_point,
    point_facts,
    random_point,
)
from pidep.similarity.measures import scale_free, similarity
from pidep.tasks.data import data_digest, limit

__all__ = ["FORMAT", "Estimates", "predictions"]

FORMAT = 1
"""Raised whenever an estimator gives other numbers for the same rows and experts."""

READ_HELPER_LABELS = frozenset({"leep", "nce", "labels"})
"""Estimators that read the labels of helpers."""
READ_LABELS = READ_HELPER_LABELS | {"h-score", "logme"}
"""Estimators that need labels which all rows of the target share."""

Found = dict[str, float]


class Estimates:
    """The estimators on the lab's tasks. Every target has a pool of the other tasks' experts."""

    def __init__(self, lab: Lab, full: Mapping[str, Expert]) -> None:
        self.lab, self.full = lab, full
        self.facts = cache(self._facts)
        self.helpers = cache(self._helpers)

    @cached_property
    def _random(self) -> BasePoint:
        some = next(iter(self.full.values()))
        return random_point(
            self.lab.backbone.model,
            self.lab.sites,
            rank=self.lab.settings.rank,
            scaling=some.scaling,
        )

    def _points(self, target: int) -> list[BasePoint]:
        """The base points of a target's pool: the target's own expert is not in their mean."""
        others = [task.name for place, task in enumerate(self.lab.tasks) if place != target]
        made = {"random": lambda: self._random, "mean": lambda: self._mean(others)}
        return [made[name]() for name in self.lab.settings.points]

    def _mean(self, names: Sequence[str]) -> BasePoint:
        return mean_point([self.full[name] for name in names])

    def _facts(self, helper: int, target: int | None) -> PointFacts:
        """What a helper's rows say at the random point, or at the mean point of a target's pool."""
        task = self.lab.tasks[helper]
        point = self._random if target is None else self._points(target)[-1]
        rows = limit(self.lab.rows(task, None)[0], self.lab.settings.fisher_rows, seed=0)
        return point_facts(self.lab.backbone, point, self.full[task.name], rows.rows, rows.labels)

    def _helpers(self, target: int) -> dict[str, Helper]:
        return {
            task.name: Helper(
                self.full[task.name],
                self.lab.embedding(task, None, "empirical"),
                task.mean_embedding,
                {
                    name: self.facts(place, None if name == "random" else target)
                    for name in self.lab.settings.points
                },
            )
            for place, task in enumerate(self.lab.tasks)
            if place != target
        }

    def _target(self, target: int, draw: Draw) -> Target:
        task = self.lab.tasks[target]
        rows = self.lab.rows(task, draw)[0]
        own = self.lab.expert(task, draw)
        facts = {
            point.name: point_facts(self.lab.backbone, point, own, rows.rows, rows.labels)
            for point in self._points(target)
        }
        return Target(task.scorer, rows, self.lab.embedding(task, draw, "empirical"), facts)

    def of(self, target: int, draw: Draw, *, variants: bool) -> dict[str, Found]:
        """Estimator to helper to number.

        Args:
            variants: also what other Fishers and more rows would say.
        """
        task = self.lab.tasks[target]

        @cache
        def made() -> tuple[Target, dict[str, Helper]]:
            return self._target(target, draw), self.helpers(target)

        def asked(estimator: Estimator) -> Callable[[], Found]:
            return lambda: _filled(estimator, task, *made())

        found = {
            name: self._kept(name, task, draw, asked(ESTIMATORS[name]))
            for name in self.lab.settings.estimators
        }
        for name, variant in self._variants(target, draw).items() if variants else ():
            found[name] = self._kept(name, task, draw, variant)
        return found

    def _variants(self, target: int, draw: Draw) -> dict[str, Callable[[], Found]]:
        """Other Fishers at own experts, and the text of more rows than a target of few has."""
        lab, task = self.lab, self.lab.tasks[target]
        fishers: dict[str, tuple[Any, Draw | None, bool]] = {
            "fisher (true)": ("true", draw, False),
            "fisher (batch_squared)": ("batch_squared", draw, False),
            "fisher (scale-free)": ("empirical", draw, True),
            "fisher (full data)": ("empirical", None, False),
        }

        def fisher(kind: Any, own: Draw | None, free: bool) -> Found:
            left = lab.embedding(task, own, kind)
            pairs = {
                other.name: (left, lab.embedding(other, None, kind))
                for other in lab.tasks
                if other is not task
            }
            return {
                name: similarity(*(map(scale_free, pair) if free else pair))
                for name, pair in pairs.items()
            }

        def text() -> Found:
            unit = {
                other.name: other.mean_embedding / np.linalg.norm(other.mean_embedding)
                for other in lab.tasks
            }
            own = unit.pop(task.name)
            return {name: float(own @ mean) for name, mean in unit.items()}

        def bound(arguments: tuple[Any, Draw | None, bool]) -> Callable[[], Found]:
            return lambda: fisher(*arguments)

        return {name: bound(given) for name, given in fishers.items()} | {"text (all rows)": text}

    def _kept(self, name: str, task: SubTask, draw: Draw, compute: Callable[[], Found]) -> Found:
        key = {
            "format": FORMAT,
            "estimator": name,
            "backbone": self.lab.backbone.digest,
            "fisher_rows": self.lab.settings.fisher_rows,
            "rows": data_digest(self.lab.rows(task, draw)[0]),
            "own": self.lab.expert(task, draw).digest,
            "full": {name: expert.digest for name, expert in self.full.items()},
            "target": task.name,
        }
        return dict(self.lab.kept("estimates", key, compute))


def _filled(
    estimator: Estimator, task: SubTask, target: Target, helpers: Mapping[str, Helper]
) -> Found:
    """A number for every helper, also where an estimator cannot judge.

    A target without labels gets 0 everywhere, a random choice. A helper without labels gets the
    mean of the others where labels of helpers are read.
    """
    if estimator.name in READ_LABELS and not task.task.labels:
        return dict.fromkeys(helpers, 0.0)
    able = {
        name: one
        for name, one in helpers.items()
        if estimator.name not in READ_HELPER_LABELS or one.expert.label_embeddings.size
    }
    numbers = estimator(target, able)
    mean = float(np.mean(list(numbers.values())))
    return {name: numbers.get(name, mean) for name in helpers}


def predictions(estimates: Estimates, shots: int) -> dict[str, Matrix]:
    """Estimator to `[S, T, T]`, helper by target; the diagonal is not used.

    Variants are asked at the fewest shots only, where the paper's premise is most in doubt.
    """
    lab = estimates.lab
    variants = lab.settings.variants and shots == min(lab.settings.shots)
    names = [task.name for task in lab.tasks]
    seeds = lab.settings.seeds
    found: dict[str, Matrix] = {}
    for place, seed in enumerate(seeds):
        for column, target in enumerate(names):
            found_here = estimates.of(column, Draw(shots, seed), variants=variants)
            for estimator, numbers in found_here.items():
                matrix = found.setdefault(estimator, np.ones((len(seeds), len(names), len(names))))
                for row, helper in enumerate(names):
                    if helper != target:
                        matrix[place, row, column] = numbers[helper]
    labelled = [bool(task.task.labels) for task in lab.tasks]
    if not all(labelled):
        # What the sub-tasks spoke for, before these tasks were looked at.
        found["h-score or trial"] = np.where(labelled, found["h-score"], found["trial"])
    # A tie is a uniform choice; this is its expected value.
    found["random"] = np.zeros((1, len(names), len(names)))
    return found
