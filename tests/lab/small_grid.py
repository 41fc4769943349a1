"""A small comparison: three tasks over the same rows, one seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pidep.lab.compare import CompareResult, OnCell, compare
from pidep.lab.compare_grid import Grid
from pidep.lab.settings import CompareSettings, GridSettings
from pidep.settings import checked

TINY: dict[str, Any] = {
    "steps": 2,
    "epochs": 0,
    "batch_size": 8,
    "full_steps": 3,
    "full_batch_size": 8,
    "eval_every": 2,
    "rank": 2,
    "fisher_samples": 4,
    "test_limit": 6,
    "sites": ["encoder.layer.1.*"],
    "methods": ["backbone", "own", "uniform"],
    "shots": [2],
    "seeds": [0, 1],
}


def run(
    tiny, tasks: list[str], out: Path, *, on_cell: OnCell | None = None, **settings: Any
) -> CompareResult:  # type: ignore[no-untyped-def]
    how = {
        key: settings.pop(key)
        for key in ("part", "prepare", "overwrite", "redo")
        if key in settings
    }
    config = checked(CompareSettings, {**TINY, "tasks": tasks, **settings}, where="compare")
    return compare(
        Grid(config, tiny),
        checked(GridSettings, {"out": out, **how}, where="compare"),
        on_cell=on_cell,
    )
