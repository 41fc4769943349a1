"""The summary of a comparison: means, deviations, differences, losing cases. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pidep.lab.settings import METHODS

__all__ = ["GUARDED", "differences", "summarise"]

GUARDED = ("own", "uniform")
"""Methods that π must never fall far behind."""

Column = tuple[str, int | None]
"""Kind, and shots (None: full data)."""
Scores = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Task to method to seed to score."""


def summarise(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of cells, as `summary.json` holds it. Scores are in [0, 1].

    `runs`: mean, sample standard deviation (None for one run) and every score, by kind, shots,
    task and method. `averages`: means over the tasks. `differences`: π minus each other method,
    by task and on average, over the seeds that both were measured with. `losing`: every task
    whose mean is lower with π than with another method.
    """
    columns: dict[Column, dict[str, dict[str, dict[int, float]]]] = {}
    for cell in cells:
        for method, found in cell["methods"].items():
            tasks = columns.setdefault((cell["kind"], cell["shots"]), {})
            tasks.setdefault(cell["task"], {}).setdefault(method, {})[cell["seed"]] = found["score"]
    summary: dict[str, Any] = {"runs": [], "averages": [], "differences": [], "losing": []}
    for (kind, shots), scores in columns.items():
        where = {"kind": kind, "shots": shots}
        summary["runs"] += [{**where, **row} for row in _runs(scores)]
        summary["averages"] += [{**where, **row} for row in _averages(scores)]
        for other in _methods(scores):
            if other != "pi" and (by_task := differences(scores, "pi", other)):
                summary["differences"].append(
                    {
                        **where,
                        "minus": other,
                        "mean": statistics.fmean(by_task.values()),
                        "tasks": by_task,
                    }
                )
                lost = {task: by for task, by in by_task.items() if by < 0}
                summary["losing"] += [
                    {
                        **where,
                        "task": task,
                        "against": other,
                        "difference": by,
                        "guarded": other in GUARDED,
                    }
                    for task, by in lost.items()
                ]
    return summary


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


def _runs(scores: Scores) -> Iterable[dict[str, Any]]:
    for task, methods in scores.items():
        for method in (method for method in _methods(scores) if method in methods):
            runs = dict(sorted(methods[method].items()))
            values = list(runs.values())
            yield {
                "task": task,
                "method": method,
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "scores": {str(seed): value for seed, value in runs.items()},
            }


def _averages(scores: Scores) -> Iterable[dict[str, Any]]:
    for method in _methods(scores):
        means = [
            statistics.fmean(methods[method].values())
            for methods in scores.values()
            if method in methods
        ]
        yield {"method": method, "mean": statistics.fmean(means), "tasks": len(means)}
