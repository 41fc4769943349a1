"""The sixteen packaged tasks as the tasks of `bench_prediction`: texts, images and both."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from benchmarks.prediction_lab import Lab, Settings, SubTask
from pidep.gallery.suite.facts import FACTS
from pidep.tasks.data import TaskData, limit, load_data
from pidep.tasks.task import load_task
from pidep.training.scorer import scorer_for_task

__all__ = ["PACKAGED", "PackagedLab"]

PACKAGED = Settings(
    domains=tuple(FACTS),
    clusters=1,
    backbone="pidep-mini",
    train_rows=1000,
    test_rows=200,
    validation_rows=100,
    full_steps=150,
    fisher_rows=128,
    shots=(16,),
    mixture_shots=(),
    # Without those that need a Fisher of each pair, or of each task at each pool's mean.
    estimators=(
        "fisher",
        "trial",
        "text",
        "labels",
        "leep",
        "nce",
        "logme",
        "h-score",
        "fisher at the random point",
        "fisher at the random point, shrunk",
        "fisher at the random point, centred, shrunk",
        "gradient cosine at the random point",
        "first order at the backbone",
    ),
    points=("random",),
    zero_shot=False,
    variants=False,
    choosing=("fisher", "trial", "h-score or trial"),
    tuned_choosing=("trial",),
)
"""What was designed on the sub-tasks, on the tasks' test rows, once."""


class PackagedLab(Lab):
    """Whole tasks, in the order of their names' list."""

    @cached_property
    def tasks(self) -> list[SubTask]:
        """The packaged tasks, in the order of every matrix."""
        found = []
        for name in self.settings.domains:
            task = load_task(name)
            data = load_data(task)
            train = limit(data.train, self.settings.train_rows, seed=0)
            test = limit(data.test, self.settings.test_rows, seed=0)
            length = min(self.settings.max_length, self.backbone.max_positions)
            mean = self.kept(
                "means",
                {"backbone": self.backbone.digest, "task": name, "rows": len(train.rows)},
                lambda rows=train.rows, length=length: self._mean(rows, length),  # type: ignore[misc]
            )
            scorer = scorer_for_task(self.backbone, task, max_length=length)
            found.append(
                SubTask(task.name, task, scorer, TaskData(train, test), (), np.array(mean))
            )
        return found

    def _mean(self, rows: list[object], length: int) -> list[float]:
        embedded = self.backbone.encode(rows, max_length=length)  # type: ignore[arg-type]
        return [float(value) for value in embedded.numpy().mean(0, dtype=np.float64)]
