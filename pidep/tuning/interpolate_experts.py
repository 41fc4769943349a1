"""Given experts interpolated on a task's rows, and the mixture as one expert."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pidep import __version__
from pidep.backbones.backbone import Backbone
from pidep.backbones.load import load_any_backbone
from pidep.errors import ExpertError, UsageError
from pidep.experts.folder import Expert
from pidep.experts.mixed import MixedExpert
from pidep.interpolation.auto import Interpolated
from pidep.interpolation.candidates import CandidateTrainer, held_back
from pidep.interpolation.policies import interpolate
from pidep.interpolation.settings import InterpolateSettings
from pidep.similarity.fisher import diagonal_fisher
from pidep.similarity.index import fisher_kind
from pidep.similarity.measures import Embedding, similarity
from pidep.tasks.data import limit
from pidep.tasks.task import Task
from pidep.training.loop import OnStep
from pidep.training.own_expert import as_expert, own_expert_trainer, train_own_expert
from pidep.tuning.by_reference import mixture_by_reference
from pidep.tuning.job import Job, prepare
from pidep.tuning.settings import TuneSettings

__all__ = [
    "Helper",
    "InterpolatedExperts",
    "folded_expert",
    "interpolate_experts",
    "interpolation_settings",
    "referring_expert",
]


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Helper:
    """An expert that helps, with its task embedding where there is one."""

    expert: Expert
    embedding: Embedding | None = None


@dataclass(frozen=True)
class InterpolatedExperts:
    """A mixture that was learned, and the expert that it folds into."""

    expert: Expert
    mixed: Interpolated
    by_reference: MixedExpert | None
    """The mixture by reference to its parts, where the expert is larger than they are."""


def interpolate_experts(
    config: TuneSettings,
    helpers: Sequence[Helper],
    *,
    own: Expert | None = None,
    task: Task | None = None,
    backbone: Backbone | None = None,
    on_step: OnStep | None = None,
) -> InterpolatedExperts:
    """Interpolate the helpers and the task's own expert on the task's training rows.

    Args:
        config: the task, and the helpers' kind, sites and rank. It names no pool.
        own: the own expert; trained first when absent.
        task: the task, where it is in memory.
        backbone: the backbone of `config`, where it is loaded already.
        on_step: called after every training step.

    Raises:
        UsageError: the policy reads no rows, or two experts have one name.
        ExpertError: an expert belongs to another backbone, or has another kind or other sites.
    """
    if config.policy == "zero-shot":
        raise UsageError("interpolate: `policy=zero-shot` reads no rows; use tune with a pool")
    torch.manual_seed(config.seed)
    # Nothing is written: a folder would only hold checkpoints.
    backbone = backbone or load_any_backbone(config.backbone, device=config.device)
    job = prepare(config, backbone, Path(), task=task)
    experts = [helper.expert for helper in helpers]
    _check_names([own.name if own else job.name, *(expert.name for expert in experts)], job.name)
    for expert in [*experts, *([] if own is None else [own])]:
        _check(job, expert)
    if config.alpha_start == "similarity":
        _check_embeddings(job, helpers)
    with job.scorer.backbone.cached_below(job.sites):
        if own is None:
            own = _own_expert(job, on_step)
        trainer = CandidateTrainer(
            job.scorer,
            tuple(experts),
            interpolation_settings(job, [own, *experts]),
            own_expert_trainer(job.scorer, job.task, job.training, name=job.name, on_step=on_step),
            on_step=on_step,
        )
        mixed = interpolate(
            trainer,
            own,
            job.train,
            job.validation,
            similarities=_similarities(job, own, helpers),
        )
        named = {expert.name: expert for expert in experts}
        held_out = mixed.held_out or held_back(job.scorer, job.validation, mixed.mixture)
        folded, _ = job.decided(folded_expert(job, own, named, mixed), mixed.mixture, held_out)
    return InterpolatedExperts(folded, mixed, referring_expert(folded, own, experts, mixed))


def _own_expert(job: Job, on_step: OnStep | None) -> Expert:
    expert, _ = train_own_expert(
        job.scorer,
        job.task,
        job.training,
        job.train,
        job.validation,
        name=job.name,
        provenance={"pidep": __version__},
        on_step=on_step,
    )
    return expert


def interpolation_settings(job: Job, experts: Sequence[Expert]) -> InterpolateSettings:
    """The job's settings for a mixture of these experts."""
    config = job.config
    assert config.policy != "zero-shot"
    schedule = job.training.schedule(f"{job.name}: interpolation", steps=config.mixture_steps)
    # Other experts in the mixture make another training run, so its checkpoints do not fit.
    digests = "".join(expert.digest for expert in experts)
    return InterpolateSettings(
        replace(schedule, fingerprint=schedule.fingerprint + digests),
        policy=config.policy,
        alpha_per=config.alpha_per,
        alpha_start=config.alpha_start,
        alpha_learning_rate=config.alpha_learning_rate,
        own_learning_rate=job.training.peak_learning_rate,
        expert_learning_rate=config.expert_learning_rate,
        folds=config.folds,
    )


def folded_expert(
    job: Job, own: Expert, helpers: Mapping[str, Expert], mixed: Interpolated
) -> Expert:
    """The mixture as one expert that records its parts and the decision.

    Args:
        helpers: by the names that the record has for them.
    """
    decision = mixed.decision
    _log.info("%s: %s chosen (%s)", job.name, decision.chosen, decision.why)
    digests = {job.name: own.digest, **{name: one.digest for name, one in helpers.items()}}
    return as_expert(
        job.scorer,
        job.task,
        mixed.mixture.folded(),
        name=job.name,
        kind=own.kind,
        provenance={
            **own.provenance,
            "mixture_of": digests,
            "decision": mixed.decision.to_json(),
        },
    )


def referring_expert(
    folded: Expert, own: Expert, helpers: Sequence[Expert], mixed: Interpolated
) -> MixedExpert | None:
    """The mixture by reference to its parts; None where the folded expert is no larger.

    Args:
        helpers: in the order of the mixture, where they are its last experts.
    """
    # The own expert comes first, and a second time where it was trained inside the mixture.
    count = mixed.mixture.num_experts - len(helpers)
    return mixture_by_reference(folded, mixed.mixture, [*[own] * count, *helpers])


def _check_embeddings(job: Job, helpers: Sequence[Helper]) -> None:
    """Refuse helpers whose similarity to the task cannot be computed."""
    for helper in helpers:
        kind = fisher_kind(helper.expert.provenance)
        if helper.embedding is None:
            raise UsageError(
                f"interpolate: `alpha_start=similarity`: helper {helper.expert.name!r} has no task "
                "embedding; give the folder of its run or of its pool entry"
            )
        if kind != job.config.fisher:
            raise UsageError(
                f"interpolate: `alpha_start=similarity`: the embedding of helper "
                f"{helper.expert.name!r} is of `fisher={kind}`, the task's is of "
                f"{job.config.fisher}; give `fisher={kind}`"
            )


def _similarities(job: Job, own: Expert, helpers: Sequence[Helper]) -> list[float] | None:
    """The similarity of each helper's task, where α starts from it."""
    if job.config.alpha_start != "similarity":
        return None
    sample = limit(job.train, job.config.fisher_samples, seed=job.config.seed)
    mine = diagonal_fisher(
        job.scorer.backbone, own, sample.rows, sample.labels, kind=job.config.fisher
    )
    return [similarity(mine, one.embedding) for one in helpers if one.embedding is not None]


def _check_names(names: Sequence[str], job_name: str) -> None:
    """Each name once: the record of the mixture lists its parts by name."""
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UsageError(
                f"interpolate: expected experts of different names, {name!r} is there twice; "
                "leave one out, or give `name` where it is the task's"
            )
        if number and name == job_name:
            raise UsageError(
                f"interpolate: helper {name!r} has the name of the task's own expert; give `name`"
            )


def _check(job: Job, expert: Expert) -> None:
    """Same backbone, kind and sites as the job."""
    backbone = job.scorer.backbone
    if expert.backbone_digest != backbone.digest:
        raise ExpertError(
            f"expert {expert.name!r}: made for backbone {expert.backbone!r} "
            f"({expert.backbone_digest[:19]}…), {backbone.name!r} is {backbone.digest[:19]}…; "
            "interpolate experts of one backbone"
        )
    if expert.kind != job.config.kind or set(expert.sites) != set(job.sites):
        raise ExpertError(
            f"expert {expert.name!r}: is of kind {expert.kind!r} on {len(expert.sites)} sites, "
            f"expected {job.config.kind!r} on the same {len(job.sites)} sites as the first helper"
        )
