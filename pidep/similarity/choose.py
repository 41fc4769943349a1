"""Which experts of a pool help a target: the one place where `neighbours_by` acts."""

from __future__ import annotations

from typing import Literal

from pidep.errors import TaskError
from pidep.similarity.estimators import H_SCORE, Helper, Target, ranked
from pidep.similarity.measures import Embedding, Neighbour
from pidep.similarity.pool import Pool
from pidep.similarity.trial import SHORT_LIST, neighbours_by_trial
from pidep.tasks.data import Split
from pidep.tasks.task import Task
from pidep.training.scorer import Scorer

__all__ = ["ChosenBy", "choose", "chosen_by"]

ChosenBy = Literal["fisher", "trial", "h-score"]
"""What compares a target with the experts of a pool."""


def chosen_by(
    asked: Literal["auto", "fisher", "trial", "h-score"], task: Task, *, embeds: bool
) -> ChosenBy:
    """What a request means for a task; `auto` is what predicts best among what the task allows.

    The H-score needs a backbone that embeds and labels that all rows share. A trial needs answers
    only, so it works for every other task (decision 038).

    Args:
        embeds: whether the backbone has embeddings of rows.

    Raises:
        TaskError: the H-score was asked for by name, and the task does not allow it.
    """
    allowed = embeds and bool(task.labels)
    if asked == "auto":
        return "h-score" if allowed else "trial"
    if asked == "h-score" and not allowed:
        why = "the task has none" if embeds else "the backbone embeds nothing"
        raise TaskError(
            f"task {task.name!r}: the H-score compares embeddings of rows with labels, and {why}; "
            "use `neighbours_by=trial`"
        )
    return asked


def choose(
    by: ChosenBy,
    pool: Pool,
    embedding: Embedding,
    scorer: Scorer,
    rows: Split,
    *,
    top_k: int,
) -> list[Neighbour]:
    """The experts of a pool that are predicted to help most, best first; `top_k` at most.

    Args:
        embedding: the task embedding at the target's own expert.
        rows: labelled training rows of the target.

    Raises:
        ExpertError: an expert is damaged, or not comparable with the target.
    """
    if by == "fisher":
        return pool.nearest(embedding, top_k=top_k)
    # Each expert costs a pass over the rows, so a large pool is narrowed down by embeddings first.
    candidates = pool.nearest(embedding, top_k=SHORT_LIST)
    experts = {near.name: pool.expert(near.name) for near in candidates}
    if by == "h-score":
        helpers = {name: Helper(expert) for name, expert in experts.items()}
        return ranked(H_SCORE, Target(scorer, rows), helpers)[:top_k]
    return neighbours_by_trial(scorer, rows, experts, top_k=top_k)
