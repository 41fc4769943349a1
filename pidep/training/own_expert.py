"""Learning an own expert: a fresh expert, trained alone on the rows of one task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pidep.adapters.mixture import Mixture, fresh
from pidep.adapters.places import peft_can
from pidep.adapters.site import Tensors
from pidep.experts.folder import Expert
from pidep.tasks.data import Split, data_digest
from pidep.tasks.task import Task
from pidep.training.loop import OnStep, TrainReport, fit
from pidep.training.scorer import Scorer
from pidep.training.settings import TrainingSettings

__all__ = ["TrainOwn", "as_expert", "own_expert_trainer", "train_own_expert"]

TrainOwn = Callable[[Split, float], Expert]
"""Trains the own expert on other rows, at a multiple of its peak learning rate."""


def train_own_expert(
    scorer: Scorer,
    task: Task,
    settings: TrainingSettings,
    train: Split,
    validation: Split | None = None,
    *,
    name: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> tuple[Expert, TrainReport]:
    """An expert of the task, and how its training went.

    Args:
        validation: rows that decide which state is kept; without them it is the last one.
        name: the expert's name; the task's when absent.
        provenance: facts that the expert keeps, besides digest and number of the rows and seed.
        checkpoint: folder that training can go on from, with `resume`.

    Raises:
        Diverged: the loss became NaN or Inf.
        UsageError: the checkpoint belongs to other settings.
    """
    name = name or task.name
    # Experts of all tasks start from the same tensors, so that their parameters can be mixed.
    start = fresh(scorer.backbone.model, settings.sites, kind=settings.kind, rank=settings.rank)
    mixture = Mixture([start], [settings.scaling], kind=settings.kind)
    report = fit(
        scorer,
        mixture,
        [(mixture.expert_parameters(), settings.peak_learning_rate)],
        train,
        validation,
        settings.schedule(f"{name}: own expert"),
        checkpoint=checkpoint,
        resume=resume,
        on_step=on_step,
    )
    # Digests of rows say later whether two experts learned from the same data.
    facts = {"train": data_digest(train), "rows": len(train.rows), "seed": settings.seed}
    expert = as_expert(
        scorer,
        task,
        mixture.part(0),
        name=name,
        kind=settings.kind,
        scaling=settings.scaling,
        rank_stabilized=settings.rank_stabilized,
        provenance={**facts, **(provenance or {})},
    )
    return expert, report


def own_expert_trainer(
    scorer: Scorer,
    task: Task,
    settings: TrainingSettings,
    *,
    name: str | None = None,
    on_step: OnStep | None = None,
) -> TrainOwn:
    """A function that trains the own expert again, as `interpolate` needs it for its folds."""

    def train_own(rows: Split, rate_factor: float) -> Expert:
        # No rows are held back: the folds are held out already, and shots are few.
        return train_own_expert(
            scorer, task, settings.at_rate(rate_factor), rows, name=name, on_step=on_step
        )[0]

    return train_own


def as_expert(
    scorer: Scorer,
    task: Task,
    sites: Mapping[str, Tensors],
    *,
    kind: str,
    name: str | None = None,
    scaling: float = 1.0,
    rank_stabilized: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Expert:
    """Tensors as an expert of the task, with everything that its answers depend on."""
    backbone = scorer.backbone
    return Expert(
        name=name or task.name,
        backbone=backbone.name,
        backbone_digest=backbone.digest,
        sites=dict(sites),
        scaling=scaling,
        kind=kind,
        peft=peft_can(backbone.model, list(sites), kind=kind),
        rank_stabilized=rank_stabilized,
        labels=tuple(task.labels),
        label_texts=tuple(task.labels.values()),
        label_embeddings=scorer.label_embeddings.numpy(),
        logit_scale=scorer.logit_scale,
        max_length=scorer.max_length,
        max_answer_length=scorer.max_answer_length,
        template=task.template,
        provenance=dict(provenance or {}),
    )
