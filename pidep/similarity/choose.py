"""Which experts of a pool help a target: the one place where `neighbours_by` acts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pidep.errors import TaskError
from pidep.similarity.estimators import H_SCORE, Helper, Target, ranked
from pidep.similarity.estimators.leep import LEEP
from pidep.similarity.estimators.logme import LOGME
from pidep.similarity.estimators.trial import TRIAL
from pidep.similarity.learned import FEATURES, PredictedGain, fresh_learned
from pidep.similarity.measures import Embedding, Neighbour
from pidep.similarity.pool import Pool
from pidep.similarity.trial import SHORT_LIST, rank_by_trial
from pidep.tasks.data import Split
from pidep.tasks.task import Task
from pidep.training.scorer import Scorer

__all__ = ["Choice", "ChosenBy", "choose", "chosen_by", "features_of"]

ChosenBy = Literal["fisher", "trial", "h-score", "ranker"]
"""What compares a target with the experts of a pool."""
_READS_LABELS = {"h-score": "the H-score", "ranker": "the ranker"}


@dataclass(frozen=True)
class Choice:
    """The neighbours of a target, and why they were chosen."""

    neighbours: list[Neighbour]
    """Best first; `similarity` is the figure that chose them."""
    predicted: Mapping[str, PredictedGain] = field(default_factory=dict)
    """Neighbour to its predicted gain, where the ranker chose it."""


def chosen_by(
    asked: Literal["auto", "fisher", "trial", "h-score", "ranker"], task: Task, *, embeds: bool
) -> ChosenBy:
    """What a request means for a task; `auto` is what predicted best on pools of different tasks.

    That is the trial, which also works for every task (decision 038). The H-score needs a backbone
    that embeds and labels that all rows share.

    Args:
        embeds: whether the backbone has embeddings of rows.

    Raises:
        TaskError: the H-score or the ranker was asked for by name, and the task does not allow it.
    """
    if asked == "auto":
        return "trial"
    allowed = embeds and bool(task.labels)
    if asked in _READS_LABELS and not allowed:
        why = "the task has none" if embeds else "the backbone embeds nothing"
        raise TaskError(
            f"task {task.name!r}: {_READS_LABELS[asked]} compares embeddings of rows with labels, "
            f"and {why}; use `neighbours_by=trial`"
        )
    return asked


def choose(
    by: ChosenBy,
    pool: Pool,
    name: str,
    embedding: Embedding,
    scorer: Scorer,
    rows: Split,
    *,
    top_k: int,
) -> Choice:
    """The experts of a pool that are predicted to help most; `top_k` at most.

    Args:
        name: the target's; the ranker learns from no pair with a task of this name.
        embedding: the task embedding at the target's own expert.
        rows: labelled training rows of the target.

    Raises:
        ExpertError: an expert is damaged, or not comparable with the target.
        UsageError: the ranker was asked for, and the pool has learned nothing, or has changed.
    """
    if by == "fisher":
        return Choice(pool.nearest(embedding, top_k=top_k))
    # Each expert costs a pass over the rows, so a large pool is narrowed down by embeddings first.
    candidates = pool.nearest(embedding, top_k=SHORT_LIST)
    experts = {near.name: pool.expert(near.name) for near in candidates}
    if by == "trial":
        # Helpers that the bare backbone beats add as much as others (decision 037), so they stay.
        return Choice(rank_by_trial(scorer, rows, experts)[:top_k])
    target = Target(scorer, rows)
    helpers = {name: Helper(expert) for name, expert in experts.items()}
    if by == "h-score":
        return Choice(ranked(H_SCORE, target, helpers)[:top_k])
    if not helpers:
        return Choice([])
    learned = fresh_learned(pool.folder).without(name)
    predicted = learned.predict(features_of(target, helpers))
    # Nobody is a candidate, too: a helper that is predicted to lose is left out.
    found = [Neighbour(name, one.gain) for name, one in predicted.items() if one.gain > 0]
    best = sorted(found, key=lambda one: (-one.similarity, one.name))[:top_k]
    return Choice(best, {near.name: predicted[near.name] for near in best})


def features_of(target: Target, helpers: Mapping[str, Helper]) -> dict[str, dict[str, float]]:
    """Helper to the features that a ranker reads, from one forward pass for each helper.

    A helper without labels of its own has no LEEP, and gets the mean of the others.
    """
    able = {name: one for name, one in helpers.items() if one.expert.label_embeddings.size}
    leep = LEEP(target, able)
    mean = float(np.mean(list(leep.values()))) if leep else 0.0
    found = {one.name: one(target, helpers) for one in (H_SCORE, LOGME, TRIAL)}
    found["leep"] = {name: leep.get(name, mean) for name in helpers}
    return {name: {feature: found[feature][name] for feature in FEATURES} for name in helpers}
