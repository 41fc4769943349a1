"""`pidep graph --learn`: measured transfers among a pool's tasks, kept with the pool."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pidep.adapters.mixture import Mixture
from pidep.backbones.backbone import Backbone
from pidep.backbones.load import load_any_backbone
from pidep.errors import ExpertError, UsageError
from pidep.experts.folder import Expert
from pidep.similarity.choose import features_of
from pidep.similarity.estimators import Helper, Target
from pidep.similarity.learned import (
    FEWEST_TARGETS,
    LearnedTransfer,
    MeasuredPair,
    digests_of,
    write_learned,
)
from pidep.similarity.pool import Pool
from pidep.similarity.settings import GraphSettings
from pidep.tasks.data import Split, few_shot_beside
from pidep.tasks.task import Task
from pidep.training.evaluation import evaluate
from pidep.training.own_expert import train_own_expert
from pidep.tuning.job import Job, prepare
from pidep.tuning.run_folder import run_task
from pidep.tuning.settings import TuneSettings

__all__ = ["HELD_ROWS", "learn_transfer", "planned"]

HELD_ROWS = 200
"""Most training rows of a target, beside its shots, that gains are measured on."""
_log = logging.getLogger(__name__)


def learn_transfer(settings: GraphSettings, *, backbone: Backbone | None = None) -> LearnedTransfer:
    """Measure gains of helpers for the pool's own tasks, and write them into the pool.

    Each target gets an own expert of `learn_shots` rows of each label. A gain is the metric of the
    uniform mixture of that expert and one helper, minus the metric of the expert, on at most 200
    other training rows. No test row is read for it.

    Args:
        backbone: the backbone of the pool's experts, where it is loaded already.

    Raises:
        ExpertError: an expert is damaged or of another backbone than the first.
        UsageError: fewer than four tasks can be targets, or the backbone embeds nothing.
    """
    pool = Pool(settings.pool)
    tasks = _targets(pool)
    plan = planned(tasks, list(pool), pairs=settings.learn_pairs, seed=settings.seed)
    # Before the measurement: an expert that comes in meanwhile makes it stale.
    digests = digests_of(settings.pool)
    # Of a large pool, few experts are measured.
    named = sorted({*plan, *(helper for helpers in plan.values() for helper in helpers)})
    experts = {name: pool.expert(name) for name in named}
    first = next(iter(experts.values()))
    backbone = backbone or load_any_backbone(first.backbone, device="auto")
    _check(settings.pool, experts, backbone)
    pairs: list[MeasuredPair] = []
    with backbone.cached_below(sorted(first.sites)):
        for done, (name, helpers) in enumerate(plan.items()):
            count = {"done": done, "total": len(plan)}
            _log.info("graph: measures transfers", extra=count)
            target = _Target.of(name, tasks[name], experts[name], backbone, settings)
            pairs += target.pairs({helper: experts[helper] for helper in helpers})
    learned = LearnedTransfer(digests, settings.learn_shots, settings.seed, tuple(pairs))
    write_learned(settings.pool, learned)
    return learned


def _targets(pool: Pool) -> dict[str, Task]:
    """The tasks of the pool whose rows are known and have labels."""
    found, without = {}, []
    for name, folder in pool.folders.items():
        task = run_task(folder)
        if task is not None and task.labels:
            found[name] = task
        else:
            without.append(name)
    if without:
        _log.info("graph: no target without labels and a task.json: %s", ", ".join(without))
    if len(found) < FEWEST_TARGETS:
        raise UsageError(
            f"{pool.folder}: {len(found)} tasks with labels and a task.json, and learning about "
            f"transfer needs {FEWEST_TARGETS}; train more with pidep tune --pool"
        )
    return found


def _check(pool: Path, experts: Mapping[str, Expert], backbone: Backbone) -> None:
    if not backbone.embeds:
        raise UsageError(
            f"{pool}: backbone {backbone.name!r} embeds nothing, and learning about transfer "
            "compares embeddings; use `neighbours_by=trial`"
        )
    first = next(iter(experts.values()))
    for name, expert in experts.items():
        if expert.backbone_digest != backbone.digest:
            raise ExpertError(
                f"{pool / name}: expert of another backbone ({expert.backbone!r}) than "
                f"{backbone.name!r}; use one pool per backbone"
            )
        if (expert.kind, set(expert.sites)) != (first.kind, set(first.sites)):
            raise ExpertError(
                f"{pool / name}: of another kind or on other sites than {first.name!r}; use one "
                "pool for each"
            )


def planned(
    targets: Sequence[str] | Mapping[str, Task], helpers: Sequence[str], *, pairs: int, seed: int
) -> dict[str, list[str]]:
    """Target to the helpers that are measured for it: about equally many each, `pairs` in all.

    Each target has two helpers or more, because one alone has no order. Few pairs mean few targets.
    """
    rng = random.Random(seed)
    order = rng.sample(sorted(targets), len(targets))
    order = order[: max(FEWEST_TARGETS, pairs // 2)]
    each, more = divmod(max(pairs, 2 * len(order)), len(order))
    found = {}
    for place, target in enumerate(order):
        others = sorted(name for name in helpers if name != target)
        found[target] = rng.sample(others, min(each + (place < more), len(others)))
    return found


@dataclass(frozen=True)
class _Target:
    """A task of the pool, with the few rows that it plays a target with."""

    name: str
    job: Job
    shots: Split
    held: Split
    own: Expert

    @classmethod
    def of(
        cls, name: str, task: Task, expert: Expert, backbone: Backbone, settings: GraphSettings
    ) -> _Target:
        config = TuneSettings(
            task=task.name,
            name=name,
            shots=1,  # any number: it is the recipe of few shots, and these are drawn below
            backbone=expert.backbone,
            kind=expert.kind,
            sites=tuple(sorted(expert.sites)),
            rank=expert.rank,
            max_length=expert.max_length,
            seed=settings.seed,
        )
        torch.manual_seed(settings.seed)
        job = prepare(config, backbone, Path(), task=task)
        shots, held = few_shot_beside(
            job.data.train, shots=settings.learn_shots, held=HELD_ROWS, seed=settings.seed
        )
        job = replace(job, train=shots)
        own, _ = train_own_expert(job.scorer, job.task, job.training, shots, None, name=name)
        return cls(name, job, shots, held, own)

    def pairs(self, helpers: Mapping[str, Expert]) -> list[MeasuredPair]:
        """The measured gain of each helper."""
        scorer, metric = self.job.scorer, self.job.task.metric
        target = Target(scorer, self.shots)
        features = features_of(target, {name: Helper(one) for name, one in helpers.items()})

        def measured(*experts: Expert) -> float:
            return evaluate(scorer, self.held, metric, Mixture.of(experts)).value

        before = measured(self.own)
        return [
            MeasuredPair(self.name, name, features[name], measured(self.own, helper) - before)
            for name, helper in helpers.items()
        ]
