"""Figures that a run folder does not keep: predictions, and paths between experts.

They are computed again from the run's experts and its task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.adapters.mixture import Mixture
from pidep.artifacts.names import EXPERT_RECORD
from pidep.backbones.backbone import Backbone
from pidep.backbones.load import load_any_backbone
from pidep.errors import BackboneError, TaskError, UsageError
from pidep.experts.folder import Expert, read_expert
from pidep.interpolation.path import ExpertPath, evaluate_path
from pidep.tasks.data import UNLABELLED, Split, data_digest, limit
from pidep.tasks.metrics import score
from pidep.tasks.task import Task
from pidep.training.scorer import predict_logits, scorer_for_expert
from pidep.tuning.job import split_rows, task_rows
from pidep.tuning.run_folder import Run

__all__ = ["PATH_ROWS", "Evaluation", "Paths", "Predictions", "evaluate_run"]

PATH_ROWS = 256
"""Most rows of a path. Every path costs one pass over them for each of its points."""
_log = logging.getLogger(__name__)
OnStep = Callable[[str, int, int, float], None]


# eq=False: comparing arrays gives an array.
@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers of one expert of the run to the test rows."""

    model: str
    labels: npt.NDArray[np.int64]  # [N]
    confidence: npt.NDArray[np.float64]  # [N]
    """Probability of the predicted label."""
    counts: npt.NDArray[np.int64]  # [C, C]
    """Rows by true (row) and predicted (column) label."""
    score: float


@dataclass(frozen=True)
class Paths:
    """Lines from the own expert to others, and the rows they were measured on."""

    rows: str
    num_rows: int
    found: tuple[ExpertPath, ...]
    missing: tuple[str, ...]
    """Helpers that the pool lacks, or holds with another digest."""


@dataclass(frozen=True)
class Evaluation:
    """The recomputed figures."""

    predictions: tuple[Predictions, ...]
    """Empty where answers are free texts, or the test rows have no labels."""
    test: Split
    backbone_parameters: int
    paths: Paths | None


@dataclass(frozen=True)
class _Rows:
    test: Split
    held_back: Split | None


def evaluate_run(
    run: Run, *, pool: Path | None, paths: bool = False, on_step: OnStep | None = None
) -> Evaluation:
    """Predict the test rows with the run's experts; with `paths`, measure lines between experts.

    The lines lead from the own expert to each helper and to the run's result.

    Raises:
        TaskError: the task's rows are gone, or not those of the run.
        BackboneError: the backbone is gone, or not that of the run.
    """
    _log.info("report: reads the test rows and loads the backbone")
    rows = _rows(run)
    backbone = load_any_backbone(run.expert.backbone, device="auto")
    if backbone.digest != run.expert.backbone_digest:
        raise BackboneError(
            f"{run.folder}: tuned on {run.expert.backbone_digest[:19]}…, {backbone.name!r} is "
            f"{backbone.digest[:19]}…"
        )
    free = run.expert.max_answer_length is not None
    if free and paths:
        raise UsageError(
            f"{run.folder}: its answers are free texts, and a path is walked between classifiers; "
            "run without `paths`"
        )
    experts = {} if free or UNLABELLED in rows.test.labels else run.experts
    with backbone.cached_below(sorted(run.expert.sites)):
        predictions: list[Predictions] = []
        for name, expert in experts.items():
            count = {"done": len(predictions), "total": len(experts)}
            _log.info("report: predicts the test rows", extra=count)
            predictions.append(_predictions(run, backbone, name, expert, rows.test))
        found = _paths(run, backbone, pool, rows, on_step) if paths else None
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    return Evaluation(tuple(predictions), rows.test, parameters, found)


def _rows(run: Run) -> _Rows:
    """The test rows and the held-back rows of the run, split as `pidep tune` splits them."""
    config = run.config
    try:
        task = Task.model_validate(run.task)
        data = task_rows(task, unlabelled=run.zero_shot, test_limit=config.get("test_limit"))
    except TaskError as error:
        raise TaskError(f"{error}; pidep report --no-evaluate does without the rows") from error
    except ValueError as error:
        raise TaskError(
            f"{run.folder / 'task.json'}: not a task ({' '.join(str(error).split())[:120]})"
        ) from error
    test = data.test
    given: Any = run.provenance.get("data", {})
    # A data file may have changed since. Figures of other rows would contradict the run's own.
    if data_digest(test) != given.get("test"):
        raise TaskError(
            f"{run.folder}: the task's test rows are not those of the run; pidep report "
            "--no-evaluate does without them"
        )
    if run.zero_shot:
        return _Rows(test, None)
    train, held_back = split_rows(
        data.train,
        shots=config.get("shots"),
        train_limit=config.get("train_limit"),
        validation_fraction=config.get("validation_fraction", 0.1),
        seed=int(config.get("seed", 0)),
    )
    # With another training split, the run would have learned from the rows held back here.
    return _Rows(test, held_back if data_digest(train) == given.get("train") else None)


def _predictions(
    run: Run, backbone: Backbone, name: str, expert: Expert, rows: Split
) -> Predictions:
    scorer = scorer_for_expert(backbone, expert)
    logits = predict_logits(scorer, rows.rows, Mixture.of([expert]))
    confidence, labels = logits.double().softmax(1).max(1)
    predicted = labels.tolist()
    size = len(run.labels) or 1 + max(*rows.labels, *predicted)
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (rows.labels, predicted), 1)
    value = score(run.metric, rows.labels, predicted)
    return Predictions(name, labels.numpy(), confidence.numpy(), counts, value)


def _paths(
    run: Run,
    backbone: Backbone,
    pool: Path | None,
    rows: _Rows,
    on_step: OnStep | None,
) -> Paths:
    if run.own is None:
        raise UsageError(
            f"{run.folder}: no path to walk, a zero-shot run has no own expert to start from; run "
            "without `paths`"
        )
    ends, missing = _ends(run, pool)
    if not ends:
        raise UsageError(
            f"{run.folder}: no path to walk, the run has no helper in the pool and π is its own "
            "expert; give `pool`"
        )
    walked = limit(rows.held_back or rows.test, PATH_ROWS, seed=0)
    found = []
    for name, expert in ends.items():

        def on_point(point: int, total: int, loss: float, phase: str = f"path to {name}") -> None:
            if on_step is not None:
                on_step(phase, point, total, loss)

        scorer = scorer_for_expert(backbone, run.own)
        found.append(
            evaluate_path(
                scorer,
                run.own,
                expert,
                walked,
                run.metric,
                names=("own expert", name),
                on_point=on_point,
            )
        )
    return Paths(
        "test" if rows.held_back is None else "held-back", len(walked.rows), tuple(found), missing
    )


def _ends(run: Run, pool: Path | None) -> tuple[dict[str, Expert], tuple[str, ...]]:
    """Ends of the lines: helpers and the result, and the names of missing helpers."""
    ends: dict[str, Expert] = {}
    missing = []
    for name in run.neighbours:
        if pool is None or not (pool / name / EXPERT_RECORD).is_file():
            missing.append(name)
            continue
        expert = read_expert(pool / name)
        if run.mixture_of.get(name, expert.digest) != expert.digest:
            missing.append(name)
        else:
            ends[name] = expert
    made = {name: expert for name, expert in run.experts.items() if expert is not run.own}
    return ends | made, tuple(missing)
