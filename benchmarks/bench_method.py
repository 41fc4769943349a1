"""π against every baseline on four sentiment domains: writes `benchmarks/results/method.json`.

    python -m benchmarks.bench_method --prepare    # the helpers: 4 tasks × 3 kinds (or --part I/N)
    python -m benchmarks.bench_method --part 0/2   # half of the cells, one thread
    python -m benchmarks.bench_method --part 1/2   # the other half, beside it
    python -m benchmarks.bench_method --summarise  # claims and every single run
    python -m benchmarks.bench_method --restore    # cells of method.json back into the folder

A run that was stopped continues where it was. `--redo pi` measures one method again in every cell.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.grid_command import GridCommand, column_name, read_cells
from benchmarks.record import Claim, write_result
from pidep.errors import PidepError
from pidep.lab.compare_summary import summarise
from pidep.lab.settings import METHODS, ONLY_FOR, CompareSettings

__all__ = ["COMMAND_LINE", "GRIDS", "claims", "in_hindsight"]

COMMAND = (
    "python -m benchmarks.bench_method --prepare, then --part 0/2 beside --part 1/2, then "
    "--summarise"
)
DOMAINS = ("amazon", "movie", "nyt", "tweets")
COMMON: dict[str, Any] = {
    "tasks": tuple(f"sentiment/{domain}" for domain in DOMAINS),
    "seeds": (0, 1, 2),
    "full_seeds": (0, 1, 2),
    "sites": ("encoder.layer.[45].*",),
    "max_length": 32,
    "test_limit": 800,
    "finetune_steps": 40,
}
EVERY = tuple(method for method in METHODS if method != "pi_trial")
"""With only three helpers there is nothing to choose."""
REST = tuple(method for method in EVERY if method not in ONLY_FOR and method != "own_tuned")
GRIDS = (
    CompareSettings(**COMMON, kinds=("lora",), shots=(8, 128), methods=EVERY),
    CompareSettings(**COMMON, kinds=("lora",), shots=(32,), full=True, methods=REST),
    CompareSettings(
        **COMMON,
        kinds=("adapter", "prefix"),
        shots=(8, 128),
        methods=("backbone", "own", "uniform", "uniform_outputs", "joint", "pi"),
    ),
)
"""LoRA's 8 and 128 shots also have the merging baselines and the own expert at the better of two
rates. BitFit and full fine-tuning do not depend on the kind.
"""

Cells = Sequence[Mapping[str, Any]]


def claims(summary: Mapping[str, Any], missing: Sequence[str] = ()) -> list[Claim]:
    """The claims, met or not. A column with a missing cell is not measured, so its claims are not
    met.
    """
    found: list[Claim] = []
    for kind, columns in (
        ("lora", (8, 32, 128, None)),
        ("adapter", (8, 128)),
        ("prefix", (8, 128)),
    ):
        for shots in columns:
            whole = not any(
                key.startswith(f"{kind}, ") and f", {column_name(shots)}, " in key
                for key in missing
            )
            if shots == 8:
                for other, points in (("own", 9.0), ("uniform", 1.0), ("joint", 3.0)):
                    what = (
                        f"{kind}, 8 shots: π minus {NAMES[other]}, average of 4 targets × 3 seeds"
                    )
                    found.append(
                        _at_least(
                            what, points, _minus(summary, kind, 8, other)["mean"] if whole else None
                        )
                    )
            what = (
                f"{kind}, {column_name(shots)}: π minus the best of own expert and uniform "
                "mixture, worst target's mean"
            )
            found.append(
                _at_least(
                    what,
                    -1.0,
                    min(_under_the_best(summary, kind, shots).values()) if whole else None,
                )
            )
            if shots in (128, None):
                what = f"{kind}, {column_name(shots)}: π minus own expert, worst target's mean"
                found.append(
                    _at_least(
                        what,
                        0.0,
                        min(_minus(summary, kind, shots, "own")["tasks"].values())
                        if whole
                        else None,
                    )
                )
    return found


NAMES = {"own": "own expert", "uniform": "uniform mixture", "joint": "naive joint training"}


def _minus(summary: Mapping[str, Any], kind: str, shots: int | None, other: str) -> dict[str, Any]:
    for row in summary["differences"]:
        if (row["kind"], row["shots"], row["minus"]) == (kind, shots, other):
            return dict(row)
    raise PidepError(
        f"method: no cell of {kind}, {column_name(shots)} has both π and {other!r}; run the "
        "missing cells first"
    )


def _under_the_best(summary: Mapping[str, Any], kind: str, shots: int | None) -> dict[str, float]:
    """π minus the better of own expert and uniform mixture; means of each target."""
    own, uniform = (_minus(summary, kind, shots, other)["tasks"] for other in ("own", "uniform"))
    return {task: min(own[task], uniform[task]) for task in own}


def _at_least(claim: str, points: float, measured: float | None) -> Claim:
    """A claim in percentage points. A difference below a millionth of a point counts as none."""
    if measured is None:
        return {
            "claim": claim + ", points of accuracy",
            "target": f">= {points:g}",
            "measured": "not measured yet",
            "met": False,
        }
    value = round(100 * measured, 6)
    return {
        "claim": claim + ", points of accuracy",
        "target": f">= {points:g}",
        "measured": round(value, 2),
        "met": value >= points,
    }


def _cost(cells: Cells) -> dict[str, dict[str, float]]:
    """CPU seconds of each method in a mean cell, by kind and column; `own_expert` has the own
    expert's.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        column = found.setdefault(f"{cell['kind']}, {column_name(cell['shots'])}", {})
        column.setdefault("own_expert", []).append(cell["own"]["cpu_seconds"])
        for method, result in cell["methods"].items():
            column.setdefault(method, []).append(result["cpu_seconds"])
            column.setdefault("scoring the test rows", []).append(result["test_seconds"])
    return {
        column: {name: round(sum(values) / len(values), 2) for name, values in by.items()}
        for column, by in found.items()
    }


def in_hindsight(cells: Cells) -> dict[str, dict[str, float]]:
    """By kind and column: the lead, in points, of each cell's best method as the test rows name it.

    No choice among the measured methods can exceed it.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for cell in cells:
        scores = {method: 100 * result["score"] for method, result in cell["methods"].items()}
        best = max(scores.values())
        ahead = {f"minus {name}": best - scores[name] for name in ("own", "uniform", "joint", "pi")}
        found.setdefault(f"{cell['kind']}, {column_name(cell['shots'])}", []).append(
            {"best": best, **ahead}
        )
    return {
        column: {name: round(sum(row[name] for row in rows) / len(rows), 2) for name in rows[0]}
        for column, rows in found.items()
    }


def _summarise(out: Path) -> int:
    cells, missing = read_cells(GRIDS, DOMAINS, out)
    summary = summarise(cells).to_json()
    found = claims(summary, missing)
    raw = {
        "settings": [grid.model_dump(mode="json") for grid in GRIDS],
        "summary": {name: rows for name, rows in summary.items() if name != "losing"},
        "losing": summary["losing"],
        "in_hindsight": in_hindsight(cells),
        "cost_cpu_seconds": _cost(cells),
        "cells": cells,
        "missing": missing,
    }
    path = write_result("method", command=COMMAND, raw=raw, claims=found)
    for claim in found:
        print(
            f"{'met    ' if claim['met'] else 'NOT MET'}  {claim['claim']}: {claim['measured']} "
            f"(target {claim['target']})"
        )
    print(
        f"{sum(claim['met'] for claim in found)} of {len(found)} claims met, "
        f"{len(summary['losing'])} losing cases; {path}"
    )
    return 0


COMMAND_LINE = GridCommand(
    "method",
    "π against every baseline; run it with --prepare, then --part, then --summarise.",
    GRIDS,
    Path("runs/method"),
    _summarise,
)


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main())
