"""`pidep tune` as a function: own expert, neighbours, interpolation, evaluation, run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pidep import __version__
from pidep.adapters.mixture import Mixture
from pidep.backbones.backbone import Backbone
from pidep.backbones.load import load_any_backbone
from pidep.errors import UsageError
from pidep.experts.folder import Expert, check_expert_place, write_expert
from pidep.experts.mixed import MixedExpert
from pidep.files.atomic_write import check_place, in_place, temporary_sibling
from pidep.interpolation.auto import tuned_own
from pidep.interpolation.candidates import CandidateTrainer, held_back, own_on_folds
from pidep.interpolation.policies import interpolate
from pidep.similarity.choose import Choice, choose
from pidep.similarity.embedding_cache import cached_fisher
from pidep.similarity.measures import Embedding, Neighbour, similarity
from pidep.similarity.pool import Pool
from pidep.tasks.data import Split, data_digest, limit
from pidep.tasks.memory import write_task
from pidep.tasks.task import Task, load_task
from pidep.training.evaluation import Measurement, evaluate
from pidep.training.loop import OnStep, TrainReport
from pidep.training.own_expert import own_expert_trainer, train_own_expert
from pidep.training.scorer import scorer_for_expert
from pidep.tuning import zero_shot
from pidep.tuning.class_priors import ClassPriors
from pidep.tuning.floors import floors
from pidep.tuning.helpers import pool_of
from pidep.tuning.interpolate_experts import (
    folded_expert,
    interpolation_settings,
    referring_expert,
)
from pidep.tuning.job import Job, prepare
from pidep.tuning.phase_times import PhaseTimes
from pidep.tuning.run_folder import (
    METHODS,
    Alpha,
    TuneResult,
    write_by_reference,
    write_run,
    write_task_record,
)
from pidep.tuning.run_place import (
    FINGERPRINT,
    check_pool_place,
    check_resumed,
    check_run_place,
    missing_helpers,
)
from pidep.tuning.settings import TuneSettings

__all__ = ["TuneResult", "tune"]

_HELPER_SETTINGS: dict[str, Any] = {
    "shots": None,
    "top_k": 0,
    "policy": "auto",
    "unlabelled": None,
    "class_prior": (),
}
"""Settings of a helper's run: it learns from all of its rows, also for a few-shot target, and class
priors are the target's.
"""


def tune(
    config: TuneSettings,
    out: Path,
    *,
    task: Task | None = None,
    resume: bool = False,
    overwrite: bool = False,
    backbone: Backbone | None = None,
    on_step: OnStep | None = None,
) -> TuneResult:
    """Tune an expert of a task; write the run folder `out` and, unless few-shot, the pool.

    The test split is read once, at the end. `metrics` holds `backbone` and `own_expert`, with
    neighbours also `uniform` and `pi`, and without neighbours `own_tuned` where few shots were
    better learned at a high rate. Tasks with labels also have `majority` and, where the backbone
    embeds, `probe`. With class priors, `pi` or `own_priors` is decided for them.

    Args:
        task: the task, where it is in memory; its rows become files in `out/data`.
        resume: go on from the checkpoints in `out`.
        overwrite: replace another run in `out`, and the pool's expert of this name.
        backbone: the backbone of `config`, where it is loaded already.
        on_step: called after every training step.

    Raises:
        TaskError, BackboneError, ExpertError, UsageError: the request does not fit together;
            nothing was written.
    """
    started = time.monotonic()
    name = config.name or (task or load_task(config.task)).name
    _check_places(config, out)
    check_run_place(out, config, name, resume=resume, overwrite=overwrite)
    if config.policy == "zero-shot":
        zero_shot.check_request(config)
    missing = missing_helpers(config, name)
    # Every generator below has a seed of its own; this one is for code of third parties.
    torch.manual_seed(config.seed)
    backbone = backbone or load_any_backbone(config.backbone, device=config.device)
    job = prepare(config, backbone, out, task=task)
    _check_replaced(job, resume=resume, overwrite=overwrite)
    # A pool that does not fit is refused here, before minutes of training.
    pool = pool_of(job)
    if pool is not None and config.policy == "zero-shot" and not missing:
        zero_shot.require_experts(pool)
    if task is not None:
        # Only now: a request that does not fit leaves no files behind.
        config = config.model_copy(update={"task": str(_write_data(task, out))})
        job = prepare(config, backbone, out)
    if config.policy == "zero-shot":
        zero_shot.warn()
    for helper, reference in missing.items():
        _train_helper(config, helper, reference, backbone, resume=resume, on_step=on_step)
    if missing:
        pool = pool_of(job)
    # Every phase below reads the same rows, so the frozen layers run once per row for all of them.
    with backbone.cached_below(job.sites):
        if config.policy == "zero-shot":
            return zero_shot.mix(job, pool, started)
        return _learn(job, pool, started, resume=resume, on_step=on_step)


def _check_replaced(job: Job, *, resume: bool, overwrite: bool) -> None:
    """Refuse to replace what another run has made, in the run folder and in the pool."""
    if resume and not overwrite:
        check_resumed(job.out, job.fingerprint)
    if job.config.pool is not None and _joins_pool(job.config):
        place = job.config.pool / job.name
        check_expert_place(place)
        if not overwrite:
            check_pool_place(place, job.task, job.name, fingerprint=job.fingerprint)


def _write_data(task: Task, out: Path) -> Path:
    """Write a task with its rows to `out/data`, whole or not at all; its task file.

    Raises:
        UsageError: `out/data` holds something else.
    """
    held = out / "data"
    # A project often has a folder of this name, and the rows would replace it as a whole.
    if held.exists() and not (held / "task.yaml").is_file():
        raise UsageError(
            f"{held}: holds data that no run has written, and the rows of this run would replace "
            "it; choose another `out`"
        )
    # Beside `out`: a row that cannot be written must not leave the run folder behind.
    with temporary_sibling(out) as temporary:
        path = write_task(task, temporary)
        out.mkdir(exist_ok=True)
        with in_place(out / "data", temporary):
            return out / "data" / path.name


def _check_places(config: TuneSettings, out: Path) -> None:
    check_place(out, "`out`")
    for folder in (out / "own", out / "expert"):
        check_expert_place(folder)
    if config.pool is not None:
        check_place(config.pool, "`pool`")


def _train_helper(
    config: TuneSettings,
    name: str,
    task: str,
    backbone: Backbone,
    *,
    resume: bool,
    on_step: OnStep | None,
) -> None:
    assert config.pool is not None
    own: dict[str, Any] = {"task": task, "name": None, "helpers": (), "add_to_pool": True}
    # A hidden folder: a pool lists the folders without a leading dot as experts.
    out = config.pool / ".runs" / name
    tune(
        config.model_copy(update={**own, **_HELPER_SETTINGS}),
        out,
        resume=resume,
        overwrite=True,  # what it replaces is a run whose expert the pool has lost
        backbone=backbone,
        on_step=on_step,
    )


@dataclass(frozen=True)
class _Learned:
    """What a run serves, and how it was found."""

    final: Expert
    priors: ClassPriors
    measured: dict[str, Measurement]
    alpha: Alpha
    mixture: MixedExpert | None = None
    """`final` by reference, where that is smaller."""
    reports: Mapping[str, TrainReport] = field(default_factory=dict)


def _learn(
    job: Job, pool: Pool | None, started: float, *, resume: bool, on_step: OnStep | None
) -> TuneResult:
    """Everything after the checks: train, choose neighbours, interpolate, evaluate, write."""
    config, metric, times = job.config, job.task.metric, PhaseTimes()
    own, own_report = _own_expert(job, resume=resume, on_step=on_step)
    times.end("own expert")
    # The mean over a sample is close to that over all rows, at a fraction of the time.
    sample = limit(job.train, config.fisher_samples, seed=config.seed)
    embedding = _task_embedding(job, own, sample)
    choice = _choice(job, pool, embedding, sample)
    neighbours = choice.neighbours
    times.end("neighbours")
    # The test rows are read for the metrics only; no decision depends on them.
    measured = {**floors(job), "backbone": _tested(job, None)}
    measured |= {"own_expert": _tested(job, Mixture.of([own]))}
    times.end("evaluate")
    if pool is not None and neighbours:
        similarities = _similarities(job, pool, embedding, neighbours)
        learned = _interpolated(
            job, pool, own, neighbours, similarities, times, resume=resume, on_step=on_step
        )
    else:
        learned = _alone(job, own, times, on_step=on_step)
    measured |= learned.measured
    # In the order of every table; the last one is the result.
    metrics = {name: measured[name].value for name in METHODS if name in measured}
    final = replace(learned.final, metrics={metric: metrics})
    own = replace(own, metrics={metric: metrics["own_expert"]})
    _write_experts(job, own, final, embedding)
    write_by_reference(job.out, learned.mixture)
    seconds = round(time.monotonic() - started, 3)
    digest = (learned.mixture or final).digest
    result = TuneResult(
        *(job.out, job.name, digest, metric, metrics, neighbours, seconds),
        intervals={name: measured[name].interval for name in metrics},
        cut_texts=job.cut_texts,
        class_priors=learned.priors,
        neighbours_by=job.neighbours_by if neighbours else None,
        predicted=choice.predicted,
    )
    write_run(job, result, learned.alpha, {"own": own_report, **learned.reports}, times.seconds)
    return result


def _tested(job: Job, mixture: Mixture | None, expert: Expert | None = None) -> Measurement:
    """The metric on the test rows, with the scale and bias of an expert where one is given."""
    backbone = job.scorer.backbone
    scorer = job.scorer if expert is None else scorer_for_expert(backbone, expert)
    return evaluate(scorer, job.data.test, job.task.metric, mixture)


def _interpolated(
    job: Job,
    pool: Pool,
    own: Expert,
    neighbours: list[Neighbour],
    similarities: list[float] | None,
    times: PhaseTimes,
    *,
    resume: bool,
    on_step: OnStep | None,
) -> _Learned:
    """The own expert interpolated with its neighbours."""
    named = {near.name: pool.expert(near.name) for near in neighbours}
    trainer = CandidateTrainer(
        job.scorer,
        tuple(named.values()),
        interpolation_settings(job, [own, *named.values()]),
        own_expert_trainer(job.scorer, job.task, job.training, name=job.name, on_step=on_step),
        job.out / "checkpoint" / "interpolation",
        resume,
        on_step,
    )
    mixed = interpolate(trainer, own, job.train, job.validation, similarities=similarities)
    held_out = mixed.held_out or held_back(job.scorer, job.validation, mixed.mixture)
    folded = folded_expert(job, own, named, mixed)
    final, priors = job.decided(folded, mixed.mixture, held_out)
    times.end("interpolate")
    measured = {"uniform": _tested(job, mixed.uniform)}
    if final is not folded:
        measured["pi_plain"] = _tested(job, mixed.mixture)
    measured["pi"] = _tested(job, mixed.mixture, final)
    times.end("evaluate")
    return _Learned(
        final,
        priors,
        measured,
        Alpha.of(mixed.experts, mixed.mixture.alphas()),
        referring_expert(final, own, tuple(named.values()), mixed),
        mixed.reports,
    )


def _alone(job: Job, own: Expert, times: PhaseTimes, *, on_step: OnStep | None) -> _Learned:
    """The own expert without neighbours; of few shots, at the better of two rates."""
    train_own = own_expert_trainer(
        job.scorer, job.task, job.training, name=job.name, on_step=on_step
    )
    tuned, measured = own, {}
    final = own
    if job.config.policy == "auto" and job.validation is None:
        settings = interpolation_settings(job, [own])
        tuned, decision = tuned_own(job.scorer, own, job.train, settings, train_own=train_own)
        times.end("learning rate")
        if tuned is not own:
            measured["own_tuned"] = _tested(job, Mixture.of([tuned]))
        provenance = {**own.provenance, "decision": decision.to_json()}
        final = replace(own, sites=tuned.sites, provenance=provenance)
    served = Mixture.of([final])
    held_out = held_back(job.scorer, job.validation, served)
    if held_out is None and job.wants_priors:
        trainer = CandidateTrainer(job.scorer, (), interpolation_settings(job, [own]), train_own)
        held_out = own_on_folds(trainer, job.train, high_rate=tuned is not own)
    decided, priors = job.decided(final, served, held_out)
    if decided is not final:
        measured["own_priors"] = _tested(job, served, decided)
    times.end("evaluate")
    return _Learned(decided, priors, measured, Alpha.of((job.name,), {}))


def _own_expert(job: Job, *, resume: bool, on_step: OnStep | None) -> tuple[Expert, TrainReport]:
    return train_own_expert(
        job.scorer,
        job.task,
        job.training,
        job.train,
        job.validation,
        name=job.name,
        provenance={
            "fisher": job.config.fisher,
            "pidep": __version__,
            FINGERPRINT: job.fingerprint,
        },
        checkpoint=job.out / "checkpoint" / "own",
        resume=resume,
        on_step=on_step,
    )


def _task_embedding(job: Job, own: Expert, sample: Split) -> Embedding:
    return cached_fisher(
        job.out / "checkpoint" / "fisher",
        job.scorer.backbone,
        own,
        sample.rows,
        sample.labels,
        data_digest=data_digest(sample),
        kind=job.config.fisher,
    )


def _choice(job: Job, pool: Pool | None, embedding: Embedding, sample: Split) -> Choice:
    if pool is None:
        return Choice([])
    by, top_k = job.neighbours_by, job.config.top_k
    return choose(by, pool, job.name, embedding, job.scorer, sample, top_k=top_k)


def _similarities(
    job: Job, pool: Pool, embedding: Embedding, neighbours: Sequence[Neighbour]
) -> list[float] | None:
    """Similarity to each neighbour in [0, 1], where α starts from it; whatever chose them."""
    if job.config.alpha_start != "similarity":
        return None
    return [similarity(embedding, pool.embedding(near.name)) for near in neighbours]


def _write_experts(job: Job, own: Expert, final: Expert, embedding: Embedding) -> None:
    """Write both experts into the run folder and, where asked for, the own one into the pool."""
    config, fisher = job.config, dict(embedding)
    # Experts come before `result.json`, which says that the folder is complete.
    write_expert(own, job.out / "own", fisher=fisher)
    write_expert(final, job.out / "expert", fisher=fisher)
    if config.pool is not None and _joins_pool(config):
        write_expert(own, config.pool / job.name, fisher=fisher)
        # So that an expert of a pool can be exported by its name alone.
        write_task_record(config.pool / job.name, job.task)


def _joins_pool(config: TuneSettings) -> bool:
    """Whether the run's own expert is added to the pool."""
    if config.policy == "zero-shot":
        return False
    # An own expert of few shots would be a poor helper for others.
    return config.shots is None if config.add_to_pool is None else config.add_to_pool
