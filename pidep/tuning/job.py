"""A task made ready for tuning: rows split, label texts embedded, sites found."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pidep.adapters.mixture import Mixture, find_sites
from pidep.backbones.backbone import Backbone
from pidep.errors import TaskError
from pidep.experts.folder import Expert, check_name
from pidep.experts.kinds import expert_kind
from pidep.inputs.row import as_row
from pidep.inputs.tokenize import Tokenize
from pidep.interpolation.held_out import HeldOut
from pidep.similarity.choose import ChosenBy, chosen_by
from pidep.tasks.data import (
    Split,
    TaskData,
    data_digest,
    few_shot,
    hold_out,
    limit,
    load_data,
    load_texts,
)
from pidep.tasks.hub import with_labels
from pidep.tasks.lengths import TextLengths, measure_lengths
from pidep.tasks.task import Task, load_task
from pidep.training.scorer import Scorer, scorer_for_task
from pidep.training.settings import TrainingSettings, few_shot_factor
from pidep.tuning.class_priors import (
    ClassPriors,
    check_request,
    decided,
    given_priors,
    unlabelled_rows,
)
from pidep.tuning.settings import TuneSettings

__all__ = [
    "Job",
    "count_cut_texts",
    "prepare",
    "require_every_label",
    "split_rows",
    "task_rows",
    "with_targets",
]

_log = logging.getLogger(__name__)

_UNRELATED_TO_OWN_EXPERT = {
    "task",
    "device",
    "pool",
    "helpers",
    "top_k",
    "neighbours_by",
    "test_limit",
    "add_to_pool",
    "name",
    "fisher",
    "temperature",
    "unlabelled",
    "class_prior",
}
"""Settings that training the own expert does not depend on."""


@dataclass(frozen=True)
class Job:
    """A task made ready for tuning."""

    config: TuneSettings
    task: Task
    name: str
    data: TaskData
    train: Split
    validation: Split | None
    scorer: Scorer
    sites: list[str]
    out: Path
    cut_texts: TextLengths | None = None
    """How many texts of the rows are cut; None where no row has a text."""
    unlabelled: Split | None = None
    """Rows of the target that class priors are estimated from."""
    class_prior: dict[str, float] | None = None
    """Label to share, where the user gives them."""

    @property
    def neighbours_by(self) -> ChosenBy:
        """What chooses the neighbours; `auto` is decided here."""
        embeds = self.scorer.backbone.embeds
        return chosen_by(self.config.neighbours_by, self.task, embeds=embeds)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything the own expert depends on; a resumed run must have the same.

        Rows count, and not the files that hold them: a run may be moved.
        """
        keep = self.config.model_dump(mode="json", exclude=_UNRELATED_TO_OWN_EXPERT)
        # The settings alone are not enough: a data file can change under the same name.
        content = [
            keep,
            self.task.model_dump(mode="json", exclude={"data"}),
            self.scorer.backbone.digest,
            data_digest(self.train),
            self.sites,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def training(self) -> TrainingSettings:
        """How the own expert is trained."""
        config, few = self.config, self.config.shots is not None
        # A few-shot run learns its own expert in at most the steps of its mixture: more steps
        # only learn the shots by heart.
        most = (config.mixture_steps or config.steps) if few else config.steps
        default_rate = config.learning_rate is None
        return TrainingSettings(
            kind=config.kind,
            sites=tuple(self.sites),
            rank=config.rank,
            scaling=expert_kind(config.kind).scaling(
                config.lora_alpha, config.rank, rank_stabilized=config.rank_stabilized
            ),
            rank_stabilized=config.rank_stabilized,
            learning_rate=config.learning_rate,
            learning_rate_factor=few_shot_factor(len(self.train.labels))
            if few and default_rate
            else 1.0,
            steps=min(config.steps, most),
            batch_size=config.batch_size,
            warmup=config.warmup,
            weight_decay=config.weight_decay,
            eval_every=config.eval_every,
            patience=config.patience,
            seed=config.seed,
            fingerprint=self.fingerprint,
        )

    @property
    def wants_priors(self) -> bool:
        """Whether class priors are given or estimated."""
        return self.unlabelled is not None or self.class_prior is not None

    def decided(
        self, expert: Expert, mixture: Mixture, held_out: HeldOut | None
    ) -> tuple[Expert, ClassPriors]:
        """The expert with the bias of the job's class priors; see `class_priors.decided`."""
        rows, known = self.unlabelled, self.class_prior
        return decided(
            *(expert, mixture, self.scorer, self.train, held_out), given=known, unlabelled=rows
        )


def task_rows(task: Task, *, unlabelled: bool, test_limit: int | None) -> TaskData:
    """All training rows of a task, and the test rows of a run.

    Args:
        unlabelled: do not read the labels.
    """
    data = load_texts(task) if unlabelled else load_data(task)
    if task.target is not None:
        data = with_targets(data)
    # Seed 0 whatever the run: runs of different seeds are compared on the same test rows.
    return TaskData(data.train, limit(data.test, test_limit, seed=0))


def split_rows(
    rows: Split,
    *,
    shots: int | None,
    train_limit: int | None,
    validation_fraction: float,
    seed: int,
) -> tuple[Split, Split | None]:
    """The training rows and the rows held back; shots leave none to hold back."""
    if shots is not None:
        return few_shot(rows, shots=shots, seed=seed), None
    kept = limit(rows, train_limit, seed=seed)
    return hold_out(kept, fraction=validation_fraction, seed=seed)


def _labelled_rows(task: Task, config: TuneSettings, data: TaskData) -> tuple[Split, Split | None]:
    """As `split_rows`; refuses rows that lack a label."""
    train, validation = split_rows(
        data.train,
        shots=config.shots,
        train_limit=config.train_limit,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
    )
    require_every_label(task, train)
    return train, validation


def require_every_label(task: Task, train: Split) -> None:
    """Refuse training rows that lack a label of the task.

    Raises:
        TaskError: a label has no row.
    """
    missing = set(range(len(task.labels))) - set(train.labels)
    if missing:
        raise TaskError(
            f"task {task.name!r}: no training row has the label "
            f"{list(task.labels)[min(missing)]!r}; give one or drop the label"
        )


def prepare(
    config: TuneSettings, backbone: Backbone, out: Path, *, task: Task | None = None
) -> Job:
    """The job of a configuration: task and rows read, labels embedded, sites found.

    Args:
        task: the task, where it is in memory; `config.task` is its name then.

    Raises:
        TaskError, ExpertError: the task, its rows or a site is missing, or they do not fit.
        UsageError: class priors that cannot be.
    """
    check_request(config)
    task = with_labels(task or load_task(config.task))
    unlabelled = config.policy == "zero-shot"
    free = task.target is not None
    _check_answers(task, config, backbone)
    data = task_rows(task, unlabelled=unlabelled, test_limit=config.test_limit)
    max_length = min(config.max_length or task.max_length, backbone.max_positions)
    train, validation = (
        (limit(data.train, config.train_limit, seed=config.seed), None)
        if unlabelled
        else _labelled_rows(task, config, data)
    )
    given = given_priors(config.class_prior, task)
    rows = None if config.unlabelled is None else unlabelled_rows(task, config.unlabelled)
    return Job(
        config=config,
        task=task,
        name=check_name(config.name or task.name),
        data=data,
        train=train,
        validation=validation,
        scorer=scorer_for_task(
            backbone,
            task,
            max_length=max_length,
            max_answer_length=config.max_answer_length if free else None,
        ),
        sites=find_sites(backbone.model, config.sites, kind=config.kind),
        out=out,
        cut_texts=count_cut_texts(task, backbone, [train, validation, data.test], max_length),
        unlabelled=rows,
        class_prior=given,
    )


def count_cut_texts(
    task: Task, backbone: Backbone, splits: Sequence[Split | None], max_length: int
) -> TextLengths | None:
    """How many texts are cut; a warning says so before minutes of training.

    Raises:
        TaskError: a text has no token for the backbone.
    """
    rows = [row for split in splits if split is not None for row in split.rows]
    tokenize, most = Tokenize(backbone.tokenizer_json), backbone.max_positions
    try:
        found = measure_lengths(rows, tokenize, max_length=max_length, most=most)
    except TaskError as error:
        raise TaskError(f"task {task.name!r}: {error}") from error
    if found is not None and found.cut:
        _log.warning("task %r: %s", task.name, found)
    return found


def _check_answers(task: Task, config: TuneSettings, backbone: Backbone) -> None:
    """Refuse a task whose answers the backbone cannot give."""
    if task.target is not None and not backbone.generates:
        raise TaskError(
            f"task {task.name!r}: its answers are free texts (target), and backbone "
            f"{backbone.name!r} embeds; "
            "give an encoder-decoder as `backbone`, or a task with labels or candidates"
        )
    if task.target is not None and (config.fisher == "true" or config.policy == "zero-shot"):
        asked = "`policy=zero-shot`" if config.policy == "zero-shot" else "`fisher=true`"
        raise TaskError(
            f"task {task.name!r}: its answers are free texts, which {asked} would have to draw; "
            "use the default"
        )
    if config.pool is not None and config.top_k > 0:
        chosen_by(config.neighbours_by, task, embeds=backbone.embeds)
    if task.candidates_are == "image" and task.candidates is not None and not backbone.embeds:
        raise TaskError(
            f"task {task.name!r}: its candidates are images, and backbone {backbone.name!r} scores "
            "texts; use pidep-mini"
        )


def with_targets(data: TaskData) -> TaskData:
    """Rows for training on free answers: the only candidate, at label 0, is the first target."""
    return TaskData(_with_targets(data.train), _with_targets(data.test))


def _with_targets(split: Split) -> Split:
    rows = [
        replace(as_row(row), candidates=(targets[0],))
        for row, targets in zip(split.rows, split.targets, strict=True)
    ]
    return replace(split, rows=list(rows), labels=[0] * len(rows))
