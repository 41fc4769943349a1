"""Own expert and π on the sixteen packaged tasks: writes `benchmarks/results/suite.json`.

    python -m benchmarks.bench_suite --prepare    # the helpers, one a task (or --part I/N)
    python -m benchmarks.bench_suite --part 0/2   # half of the cells, one thread
    python -m benchmarks.bench_suite --part 1/2   # the other half, beside it
    python -m benchmarks.bench_suite --pairs      # each 16-shot own expert with every helper
    python -m benchmarks.bench_suite --summarise  # claims, task graph, and every single run
    python -m benchmarks.bench_suite --restore    # cells of suite.json back into the folder

A run that was stopped continues where it was. `--redo pi` measures one method again in every cell.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import transfer_statistics
from benchmarks.grid_command import GridCommand, Say, column_name, read_cells
from benchmarks.record import Claim, write_result
from pidep.errors import PidepError
from pidep.files.atomic_write import write_json
from pidep.gallery.suite.facts import FACTS
from pidep.lab.compare_summary import summarise
from pidep.lab.settings import CompareSettings

if TYPE_CHECKING:
    from pidep.lab.compare_grid import Grid, Key

__all__ = [
    "COMMAND_LINE",
    "GRID",
    "MODALITY",
    "ceiling",
    "claims",
    "crossing",
    "measure_pairs",
    "modalities",
    "prediction",
]

COMMAND = (
    "python -m benchmarks.bench_suite --prepare, then --part 0/2 beside --part 1/2, then --pairs, "
    "then --summarise"
)
SHOTS = 16
GRID = CompareSettings(
    tasks=tuple(FACTS),
    backbone="pidep-mini",
    kinds=("lora",),
    shots=(SHOTS,),
    full=True,
    seeds=(0, 1, 2),
    full_seeds=(0,),
    methods=("backbone", "own", "own_tuned", "uniform", "pi"),
    sites=("encoder.layer.[45].*",),
    max_length=32,
    train_limit=1000,
    test_limit=300,
    steps=30,
    epochs=3,
    full_steps=150,
    validation_rows=100,
)
MODALITY = {str(facts.fields["name"]): facts.modality for facts in FACTS.values()}
"""Modality of each task, by its name in cells."""

TARGETS = ((SHOTS, "own", 3.0), (SHOTS, "own_tuned", 0.0), (None, "own", 0.0))
"""Target of π's mean gain: column, method it is compared with, points."""
WORDS = {
    "own": "own expert",
    "own_tuned": "own expert at the better of two rates, by the same folds",
}

Cells = Sequence[Mapping[str, Any]]
Pairs = Sequence[Mapping[str, Any]]


def claims(cells: Cells, missing: Sequence[str] = ()) -> list[Claim]:
    """Claims: π against the own expert on average, at few shots and on full data."""
    found: list[Claim] = []
    for shots, other, points in TARGETS:
        gains = [_gain(cell, other) for cell in cells if cell["shots"] == shots]
        what = (
            f"suite, {column_name(shots)}: π minus {WORDS[other]}, average of {len(MODALITY)} "
            "tasks, points of accuracy"
        )
        whole = bool(gains) and not any(f", {column_name(shots)}, " in key for key in missing)
        value = round(100 * statistics.fmean(gains), 6) if whole else None
        measured = "not measured yet" if value is None else round(value, 2)
        found.append(
            {
                "claim": what,
                "target": f">= {points:g}",
                "measured": measured,
                "met": value is not None and value >= points,
            }
        )
    return found


def _gain(cell: Mapping[str, Any], other: str = "own") -> float:
    return float(cell["methods"]["pi"]["score"] - cell["methods"][other]["score"])


def modalities(cells: Cells) -> list[dict[str, Any]]:
    """By shots, modality and method: mean over tasks, deviation over seeds, and tasks where π
    loses.
    """
    found = []
    for shots in (SHOTS, None):
        for modality in (*dict.fromkeys(MODALITY.values()), "all"):
            some = [
                cell
                for cell in cells
                if cell["shots"] == shots and modality in (MODALITY[cell["task"]], "all")
            ]
            if some:
                scores = {method: _over_seeds(some, method) for method in GRID.methods}
                found.append(
                    {
                        "shots": shots,
                        "modality": modality,
                        "scores": scores,
                        "pi": _against_own(some),
                    }
                )
    return found


def _against_own(cells: Cells) -> dict[str, Any]:
    gains = {
        task: statistics.fmean(_gain(cell) for cell in cells if cell["task"] == task)
        for task in _tasks(cells)
    }
    losing = {task: gain for task, gain in gains.items() if gain < 0}
    return {"minus_own": statistics.fmean(gains.values()), "tasks": gains, "losing": losing}


def _tasks(cells: Cells) -> list[str]:
    return list(dict.fromkeys(cell["task"] for cell in cells))


def _over_seeds(cells: Cells, method: str) -> dict[str, float | None]:
    seeds = sorted({cell["seed"] for cell in cells})
    means = [
        statistics.fmean(cell["methods"][method]["score"] for cell in cells if cell["seed"] == seed)
        for seed in seeds
    ]
    return {
        "mean": statistics.fmean(means),
        "sd": statistics.stdev(means) if len(means) > 1 else None,
    }


def crossing(cells: Cells, pairs: Pairs) -> dict[str, Any]:
    """Frequency and effect of helpers whose modality differs from the target's.

    `helpers`: counts by target's and helper's modality. `pi_minus_own`: means of cells with such a
    helper, and without. `pairs`: gain of the plain mean with one of the nearest, by whether
    modalities differ.
    """
    found: dict[str, Any] = {}
    for shots in (SHOTS, None):
        some = [cell for cell in cells if cell["shots"] == shots]
        helpers = [
            (MODALITY[cell["task"]], MODALITY[helper["task"]])
            for cell in some
            for helper in cell["helpers"]
        ]
        with_other, without = (
            [_gain(cell) for cell in some if _crosses(cell) == crosses] for crosses in (True, False)
        )
        found[column_name(shots)] = {
            "helpers": [
                {"target": pair[0], "helper": pair[1], "count": count}
                for pair, count in sorted(Counter(helpers).items())
            ],
            "share_of_other_modality": _mean(
                [float(target != helper) for target, helper in helpers]
            ),
            "pi_minus_own": {
                "cells_with": len(with_other),
                "with": _mean(with_other),
                "cells_without": len(without),
                "without": _mean(without),
            },
        }
    gains = [
        (MODALITY[pair["task"]] != MODALITY[helper], score - pair["own"])
        for pair in pairs
        for helper, score in _nearest(pair).items()
    ]
    for other, name in ((True, "other_modality"), (False, "same_modality")):
        some_gains = [gain for crosses, gain in gains if crosses == other]
        helped = sum(gain > 0 for gain in some_gains)
        found.setdefault("pairs", {})[name] = {
            "pairs": len(some_gains),
            "mean_gain": _mean(some_gains),
            "helped": helped,
        }
    return found


def _nearest(pair: Mapping[str, Any]) -> dict[str, float]:
    return {helper: pair["with"][helper] for helper in pair["nearest"]}


def prediction(pairs: Pairs) -> dict[str, Any]:
    """How well each predictor ranks a target's helpers by their gain, over all ordered pairs.

    One seed of 16 shots.
    """
    tasks = [pair["task"] for pair in pairs]
    if len(tasks) < len(MODALITY):
        return {}
    transfer = np.zeros((len(tasks), len(tasks)))
    predicted = {name: np.zeros_like(transfer) for name in ("fisher", "trial", "random")}
    for column, pair in enumerate(pairs):
        for row, helper in enumerate(tasks):
            if helper != pair["task"]:
                transfer[row, column] = pair["with"][helper] - pair["own"]
                for name in ("fisher", "trial"):
                    predicted[name][row, column] = pair[name][helper]
    found = {
        name: transfer_statistics.statistics(matrix[None], transfer)
        for name, matrix in predicted.items()
    }
    return {
        name: {figure: value.to_json() for figure, value in figures.items()}
        for name, figures in found.items()
    }


def ceiling(pairs: Pairs) -> dict[str, float | None]:
    """Gain of the plain mean with helpers chosen on the test rows; means over targets.

    `best_helper`: the helper that gains most. `or_none`: the same, or nothing where all lose.
    """
    best = [max(pair["with"].values()) - pair["own"] for pair in pairs]
    return {"best_helper": _mean(best), "or_none": _mean([max(gain, 0.0) for gain in best])}


def _crosses(cell: Mapping[str, Any]) -> bool:
    return any(MODALITY[helper["task"]] != MODALITY[cell["task"]] for helper in cell["helpers"])


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _graph(out: Path) -> list[dict[str, Any]]:
    """Similarities of all pairs of tasks, the most similar first."""
    from pidep.similarity.pool import task_graph

    edges = [
        (a, b, data["similarity"])
        for a, b, data in task_graph(out / "pool" / "lora").edges(data=True)
    ]
    return [
        {"tasks": [a, b], "similarity": value}
        for a, b, value in sorted(edges, key=lambda edge: -edge[2])
    ]


def _read_pairs(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((out / "pairs").glob("*.json"))
    ]


def _summarise(out: Path) -> int:
    cells, missing = read_cells((GRID,), list(MODALITY), out)
    pairs = _read_pairs(out)
    raw = {
        "settings": GRID.model_dump(mode="json"),
        "modalities": modalities(cells),
        "summary": summarise(cells).to_json(),
        "graph": _graph(out),
        "other_modality": crossing(cells, pairs),
        "prediction": prediction(pairs),
        "ceiling": ceiling(pairs),
        "pairs": pairs,
        "cells": cells,
        "missing": missing,
    }
    found = claims(cells, missing)
    path = write_result("suite", command=COMMAND, raw=raw, claims=found)
    for claim in found:
        print(
            f"{'met    ' if claim['met'] else 'NOT MET'}  {claim['claim']}: {claim['measured']} "
            f"(target {claim['target']})"
        )
    for row in raw["modalities"]:
        losing = (
            ", ".join(f"{task} {100 * by:+.1f}" for task, by in row["pi"]["losing"].items())
            or "none"
        )
        where = f"{column_name(row['shots'])}, {row['modality']}"
        print(f"{where}: π minus own {100 * row['pi']['minus_own']:+.2f}, loses at {losing}")
    print(path)
    return 0


def _pair_paths(out: Path, raw: Mapping[str, Any]) -> dict[Path, Any]:
    return {out / "pairs" / f"{pair['task']}.json": pair for pair in raw["pairs"]}


def measure_pairs(out: Path, say: Say) -> None:
    """For every task's first few-shot cell: own expert, plain mean with each helper,
    predictions.
    """
    import torch

    from pidep.backbones.load import load_backbone
    from pidep.lab.compare_grid import Grid

    torch.set_num_threads(1)
    grid = Grid(GRID, load_backbone(GRID.backbone))
    keys = [key for key in grid.cells if (key.shots, key.seed) == (SHOTS, GRID.seeds[0])]
    missing = [out / key.path for key in keys if not (out / key.path).is_file()]
    if missing:
        raise PidepError(f"{missing[0]}: this cell is not measured yet; run --part first")
    with grid.backbone.cached_below(grid.sites["lora"]):
        for done, key in enumerate(keys):
            path = out / "pairs" / f"{key.task}.json"
            if not path.is_file():
                say(done, len(keys), f"pairs of {key.task}")
                write_json(path, _pairs_of(grid, key, out))


def _pairs_of(grid: Grid, key: Key, out: Path) -> dict[str, Any]:
    from pidep.adapters.mixture import Mixture
    from pidep.similarity.fisher import diagonal_fisher
    from pidep.similarity.measures import most_similar
    from pidep.similarity.pool import read_pool
    from pidep.similarity.trial import rank_by_trial
    from pidep.tasks.data import limit
    from pidep.tasks.metrics import score
    from pidep.training.own_expert import train_own_expert
    from pidep.training.scorer import predict_logits

    cell = json.loads((out / key.path).read_text(encoding="utf-8"))
    target, (train, _), pool = (
        grid.targets[key.task],
        grid.rows(key),
        read_pool(out / "pool" / "lora"),
    )
    own, _ = train_own_expert(
        target.scorer, target.task, grid.training(key, num_rows=len(train.rows)), train
    )
    if own.digest != cell["own"]["digest"]:
        raise PidepError(
            f"{out / key.path}: its own expert trained again is another ({own.digest}); run with "
            "--overwrite"
        )
    helpers = {name: entry for name, entry in pool.items() if name != key.task}
    found = {}
    for name, entry in helpers.items():
        logits = predict_logits(
            target.scorer, target.data.test.rows, Mixture.of([own, entry.expert])
        )
        found[name] = score(target.task.metric, target.data.test.labels, logits.argmax(1).tolist())
    sample = limit(train, GRID.fisher_samples, seed=key.seed)
    embedding = diagonal_fisher(grid.backbone, own, sample.rows, sample.labels)
    fisher = most_similar(
        embedding, {name: entry.embedding for name, entry in helpers.items()}, top_k=len(helpers)
    )
    trial = rank_by_trial(
        target.scorer, train, {name: entry.expert for name, entry in helpers.items()}
    )
    return {
        **{
            "task": key.task,
            "shots": key.shots,
            "seed": key.seed,
            "own": cell["methods"]["own"]["score"],
            "with": found,
        },
        "nearest": [helper["task"] for helper in cell["helpers"]],
        "fisher": {one.name: one.similarity for one in fisher},
        "trial": {one.name: one.similarity for one in trial},
    }


COMMAND_LINE = GridCommand(
    "suite",
    "π on sixteen tasks; run it with --prepare, then --part, --pairs, --summarise.",
    (GRID,),
    Path("runs/suite"),
    _summarise,
    {"pairs": ("measure each few-shot cell's own expert with one helper at a time", measure_pairs)},
    _pair_paths,
)


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main())
