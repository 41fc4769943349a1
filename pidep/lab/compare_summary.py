"""The summary of a comparison: means, deviations, differences, losing cases. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from pidep.lab.settings import METHODS

__all__ = [
    "GUARDED",
    "Average",
    "Difference",
    "LosingCase",
    "MethodScores",
    "Summary",
    "differences",
    "summarise",
]

GUARDED = ("own", "uniform")
"""Methods that π must never fall far behind."""

Column = tuple[str, int | None]
"""Kind, and shots (None: full data)."""
Scores = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Task to method to seed to score."""


@dataclass(frozen=True)
class MethodScores:
    """One method on one task in one column, over the seeds."""

    kind: str
    shots: int | None
    task: str
    method: str
    mean: float
    sd: float | None
    """Sample standard deviation; None for one run."""
    scores: dict[str, float]
    """By seed."""


@dataclass(frozen=True)
class Average:
    """One method in one column, over the tasks."""

    kind: str
    shots: int | None
    method: str
    mean: float
    tasks: int


@dataclass(frozen=True)
class Difference:
    """π minus another method in one column, over the seeds that both were measured with."""

    kind: str
    shots: int | None
    minus: str
    mean: float
    tasks: dict[str, float]
    """By task."""


@dataclass(frozen=True)
class LosingCase:
    """A task whose mean is lower with π than with another method."""

    kind: str
    shots: int | None
    task: str
    against: str
    difference: float
    guarded: bool
    """Whether the other method is one of `GUARDED`."""


@dataclass(frozen=True)
class Summary:
    """What the cells of a comparison add up to. Scores are in [0, 1]."""

    runs: tuple[MethodScores, ...] = ()
    averages: tuple[Average, ...] = ()
    differences: tuple[Difference, ...] = ()
    losing: tuple[LosingCase, ...] = ()

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """For `summary.json` and `--json`."""
        return {
            field.name: [asdict(row) for row in getattr(self, field.name)] for field in fields(self)
        }


def summarise(cells: Sequence[Mapping[str, Any]]) -> Summary:
    """The summary of cells, given as their files hold them."""
    columns: dict[Column, dict[str, dict[str, dict[int, float]]]] = {}
    for cell in cells:
        for method, found in cell["methods"].items():
            tasks = columns.setdefault((cell["kind"], cell["shots"]), {})
            tasks.setdefault(cell["task"], {}).setdefault(method, {})[cell["seed"]] = found["score"]
    by_task = [
        Difference(*column, other, statistics.fmean(found.values()), found)
        for column, scores in columns.items()
        for other in _methods(scores)
        if other != "pi" and (found := differences(scores, "pi", other))
    ]
    return Summary(
        tuple(row for column, scores in columns.items() for row in _runs(column, scores)),
        tuple(row for column, scores in columns.items() for row in _averages(column, scores)),
        tuple(by_task),
        tuple(
            LosingCase(row.kind, row.shots, task, row.minus, by, row.minus in GUARDED)
            for row in by_task
            for task, by in row.tasks.items()
            if by < 0
        ),
    )


def differences(scores: Scores, method: str, other: str) -> dict[str, float]:
    """Mean of one method minus mean of another, by task, over their common seeds."""
    found = {}
    for task, methods in scores.items():
        # Common seeds only: both methods then had the same rows, and their noise cancels.
        seeds = methods.get(method, {}).keys() & methods.get(other, {}).keys()
        if seeds:
            found[task] = statistics.fmean(
                methods[method][seed] - methods[other][seed] for seed in sorted(seeds)
            )
    return found


def _methods(scores: Scores) -> list[str]:
    """The methods that were measured anywhere, in the order of the table."""
    there = {method for methods in scores.values() for method in methods}
    return [*(method for method in METHODS if method in there), *sorted(there - set(METHODS))]


def _runs(column: Column, scores: Scores) -> Iterable[MethodScores]:
    for task, methods in scores.items():
        for method in (method for method in _methods(scores) if method in methods):
            runs = dict(sorted(methods[method].items()))
            values = list(runs.values())
            yield MethodScores(
                *column,
                task,
                method,
                statistics.fmean(values),
                statistics.stdev(values) if len(values) > 1 else None,
                {str(seed): value for seed, value in runs.items()},
            )


def _averages(column: Column, scores: Scores) -> Iterable[Average]:
    for method in _methods(scores):
        means = [
            statistics.fmean(methods[method].values())
            for methods in scores.values()
            if method in methods
        ]
        yield Average(*column, method, statistics.fmean(means), len(means))
