"""A task made ready for tuning: its rows split, its label texts embedded, its sites found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pidep.adapters.kinds import adapter_kind
from pidep.adapters.mixture import Mixture, find_sites
from pidep.adapters.places import peft_can
from pidep.adapters.site import Tensors
from pidep.backbones.backbone import Backbone
from pidep.errors import TaskError
from pidep.experts.folder import Expert, check_name
from pidep.experts.kinds import expert_kind
from pidep.inputs.row import as_row
from pidep.tasks.data import Split, TaskData, data_digest, few_shot, hold_out, limit, load_data, load_texts
from pidep.tasks.hub import with_labels
from pidep.tasks.metrics import score, score_texts
from pidep.tasks.task import Task, load_task
from pidep.training.loop import Schedule, Scorer, few_shot_share, predict_answers, predict_logits
from pidep.tuning.settings import TuneConfig

__all__ = ["LOGIT_SCALE", "Job", "as_expert", "evaluate", "label_embeddings", "prepare", "scorer_of", "with_targets"]

LOGIT_SCALE = 20.0
"""Cosines are multiplied by this before the softmax (a temperature of 0.05, as sentence encoders are trained with)."""
_NOT_OF_THE_OWN_EXPERT = {"pool", "helpers", "top_k", "neighbours_by", "test_limit", "add_to_pool", "name", "fisher", "temperature"}
"""Settings its training does not depend on."""


@dataclass(frozen=True)
class Job:
    """A task made ready."""

    config: TuneConfig
    task: Task
    name: str
    data: TaskData
    train: Split
    validation: Split | None
    scorer: Scorer
    sites: list[str]
    out: Path

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything the own expert depends on; what a resumed run must agree with."""
        keep = self.config.model_dump(mode="json", exclude=_NOT_OF_THE_OWN_EXPERT)
        content = [keep, self.task.model_dump(mode="json"), self.scorer.backbone.digest, data_digest(self.train), self.sites]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the own expert: the one given, else the kind's, of few shots a share of it."""
        usual = adapter_kind(self.config.kind).learning_rate
        return self.config.learning_rate or usual * (1.0 if self.config.shots is None else few_shot_share(len(self.train.labels)))

    @property
    def scaling(self) -> float:
        """s of a LoRA; 1 for other kinds."""
        config = self.config
        return expert_kind(config.kind).scaling(config.lora_alpha, config.rank, rank_stabilized=config.rank_stabilized)

    def schedule(self, phase: str, steps: int) -> Schedule:
        """This run's settings for a phase."""
        config = self.config
        return Schedule(
            phase=phase,
            steps=steps,
            batch_size=config.batch_size,
            warmup=config.warmup,
            weight_decay=config.weight_decay,
            eval_every=min(config.eval_every, steps) if steps else 1,
            patience=config.patience,
            seed=config.seed,
            fingerprint=f"{phase}:{self.fingerprint}",
        )


def label_embeddings(backbone: Backbone, task: Task) -> torch.Tensor:
    """`[C, D]`: the bare backbone's reading of the label texts; they stay fixed, whatever the expert. None for a task of candidates.

    D is 0 for an encoder-decoder, which scores the texts themselves.
    """
    return backbone.label_embeddings(list(task.labels.values()))


def evaluate(scorer: Scorer, split: Split, metric: str, mixture: Mixture | None = None) -> float:
    """The metric of a mixture (or the bare backbone) on a split; free answers are generated."""
    if scorer.max_answer_length is not None:
        return score_texts(metric, split.targets, predict_answers(scorer, split.rows, mixture))
    predictions = predict_logits(scorer, split.rows, mixture).argmax(1).tolist()
    return score(metric, split.labels, predictions)


def _rows(task: Task, config: TuneConfig, data: TaskData) -> tuple[Split, Split | None]:
    """Rows to train on, and those held back."""
    if config.shots is not None:
        train, validation = few_shot(data.train, shots=config.shots, seed=config.seed), None
    else:
        rows = limit(data.train, config.train_limit, seed=config.seed)
        train, validation = hold_out(rows, fraction=config.validation_fraction, seed=config.seed)
    missing = set(range(len(task.labels))) - set(train.labels)
    if missing:
        raise TaskError(
            f"task {task.name!r}: no training row has the label {list(task.labels)[min(missing)]!r}; give one or drop the label"
        )
    return train, validation


def prepare(config: TuneConfig, backbone: Backbone, out: Path) -> Job:
    """Read the task and its rows, embed its labels, find the sites.

    Raises:
        TaskError, ExpertError: something of it is not there or does not fit together.
    """
    task = with_labels(load_task(config.task))
    unlabelled = config.policy == "zero-shot"
    free = task.target is not None
    _check_answers(task, config, backbone)
    data = load_texts(task) if unlabelled else load_data(task)
    if free:
        data = with_targets(data)
    max_length = min(config.max_length or task.max_length, backbone.max_positions)
    data = TaskData(data.train, limit(data.test, config.test_limit, seed=0))
    train, validation = (limit(data.train, config.train_limit, seed=config.seed), None) if unlabelled else _rows(task, config, data)
    return Job(
        config=config,
        task=task,
        name=check_name(config.name or task.name),
        data=data,
        train=train,
        validation=validation,
        scorer=scorer_of(backbone, task, max_length=max_length, max_answer_length=config.max_answer_length if free else None),
        sites=find_sites(backbone.model, config.sites, kind=config.kind),
        out=out,
    )


def scorer_of(backbone: Backbone, task: Task, *, max_length: int, max_answer_length: int | None) -> Scorer:
    """How rows of a task are scored: by cosines with embedded labels, or by what an encoder-decoder makes of texts."""
    scale = backbone.logit_scale
    return Scorer(backbone, label_embeddings(backbone, task), scale, max_length, tuple(task.labels.values()), max_answer_length)


def _check_answers(task: Task, config: TuneConfig, backbone: Backbone) -> None:
    """Refuse a task that the backbone has no answers for."""
    if task.target is not None and not backbone.generates:
        raise TaskError(
            f"task {task.name!r}: its answers are free texts (target), and backbone {backbone.name!r} embeds; "
            "give an encoder-decoder with --backbone, or a task with labels or candidates"
        )
    if task.target is not None and (config.fisher == "true" or config.policy == "zero-shot"):
        asked = "--policy zero-shot" if config.policy == "zero-shot" else "--fisher true"
        raise TaskError(f"task {task.name!r}: its answers are free texts, which {asked} would have to draw; use the default")
    if task.candidates_are == "image" and task.candidates is not None and not backbone.embeds:
        raise TaskError(f"task {task.name!r}: its candidates are images, and backbone {backbone.name!r} scores texts; use pidep-mini")


def with_targets(data: TaskData) -> TaskData:
    """Rows whose one candidate is the first text that answers them, at label 0: what a task of free answers is trained on."""
    return TaskData(_with_targets(data.train), _with_targets(data.test))


def _with_targets(split: Split) -> Split:
    rows = [replace(as_row(row), candidates=(targets[0],)) for row, targets in zip(split.rows, split.targets, strict=True)]
    return replace(split, rows=list(rows), labels=[0] * len(rows))


def as_expert(job: Job, sites: Mapping[str, Tensors], scaling: float, provenance: dict[str, Any], *, stabilized: bool = False) -> Expert:
    """Tensors as an expert of the job's task."""
    return Expert(
        name=job.name,
        backbone=job.scorer.backbone.name,
        backbone_digest=job.scorer.backbone.digest,
        sites=dict(sites),
        scaling=scaling,
        kind=job.config.kind,
        peft=peft_can(job.scorer.backbone.model, list(sites), kind=job.config.kind),
        rank_stabilized=stabilized,
        labels=tuple(job.task.labels),
        label_texts=tuple(job.task.labels.values()),
        label_embeddings=job.scorer.label_embeddings.numpy(),
        logit_scale=job.scorer.logit_scale,
        max_length=job.scorer.max_length,
        max_answer_length=job.scorer.max_answer_length,
        provenance=provenance,
    )
