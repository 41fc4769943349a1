"""Generated texts in the gate: how many are PyTorch's, and what the task's own metric says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pidep.adapters.mixture import attached, mixture_of
from pidep.artifacts.parity import GeneratedParity
from pidep.backbones.backbone import Backbone
from pidep.export.recipe import Recipe
from pidep.export.source import Source
from pidep.inputs.row import Row, as_row
from pidep.runtime.answer import Answer
from pidep.tasks.metrics import score_texts

__all__ = ["generated_parity"]

_ROWS = {"fp32": 32, "fp16": 128, "int8": 128}
"""Rows that are answered by texts, one token at a time. In fp32 each text must be PyTorch's; in
less precision a share of them must, and the metric of few rows is coarse.
"""


def generated_parity(
    answer: Callable[[Sequence[Row]], Sequence[Answer]],
    backbone: Backbone,
    source: Source,
    recipe: Recipe,
) -> GeneratedParity | None:
    """The texts of a task of free answers, in the entry and in PyTorch; None for other tasks.

    Args:
        answer: rows to the answers of the entry under test.
    """
    expert, task, split = source.expert, source.task, source.rows
    if task.target is None:
        return None
    count = _ROWS[recipe.precision]
    rows = [replace(as_row(row), candidates=()) for row in split.rows[:count]]
    with attached(backbone.model, mixture_of(source.served)):
        wanted = backbone.generate(
            rows, max_length=expert.max_length, max_new_tokens=expert.max_answer_length or 1
        )
    found = [one.text for one in answer(rows)]
    targets = split.targets[:count]
    return GeneratedParity(
        rows=len(rows),
        same=sum(one == other for one, other in zip(wanted, found, strict=True)),
        metric=task.metric,
        metric_torch=score_texts(task.metric, targets, wanted),
        metric_exported=score_texts(task.metric, targets, found),
    )
