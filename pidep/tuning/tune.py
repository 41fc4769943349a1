"""`pidep tune` as a function: own expert, prediction, interpolation, evaluation, run folder."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pidep import __version__
from pidep.adapters.mixture import Mixture, fresh
from pidep.adapters.site import Tensors
from pidep.backbones.backbone import Backbone
from pidep.backbones.load import load_any_backbone
from pidep.errors import UsageError
from pidep.experts.folder import Expert, check_expert_place, write_expert
from pidep.files.atomic_write import check_place
from pidep.interpolation.interpolate import Interpolated, InterpolateSettings, TrainOwn, interpolate, tuned_own
from pidep.similarity.embedding_cache import cached_fisher
from pidep.similarity.measures import Embedding, Neighbour
from pidep.similarity.trial import SHORT_LIST, by_trial
from pidep.tasks.data import Split, data_digest, limit
from pidep.tasks.task import load_task
from pidep.training.loop import OnStep, TrainReport, fit
from pidep.tuning import zero_shot
from pidep.tuning.helpers import Helpers, helpers_of
from pidep.tuning.job import LOGIT_SCALE, Job, as_expert, evaluate, label_embeddings, prepare
from pidep.tuning.run_folder import Laps, Mixed, TuneResult, run_expert, write_run
from pidep.tuning.settings import TuneConfig

__all__ = ["LOGIT_SCALE", "TuneResult", "evaluate", "label_embeddings", "run_expert", "tune"]

_ON_FULL_DATA: dict[str, Any] = {"shots": None, "top_k": 0, "policy": "auto"}
"""How a helper is trained, whatever its target asks for."""


def _train_expert(
    job: Job,
    train: Split,
    validation: Split | None,
    *,
    harder: float = 1.0,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_step: OnStep | None,
) -> tuple[dict[str, Tensors], TrainReport]:
    """A fresh expert, trained alone on the rows, at so many times the usual rate."""
    config = job.config
    start = fresh(job.scorer.backbone.model, job.sites, kind=config.kind, size=config.rank)
    mixture = Mixture([start], [job.scaling], kind=config.kind)
    steps = config.steps if config.shots is None else min(config.steps, config.mixture_steps or config.steps)
    groups = [(mixture.expert_parameters(), job.learning_rate * harder)]
    schedule = job.schedule(f"{job.name}: own expert", steps)
    report = fit(job.scorer, mixture, groups, train, validation, schedule, checkpoint=checkpoint, resume=resume, on_step=on_step)
    return dict(mixture.part(0)), report


def _own_expert(job: Job, *, resume: bool, on_step: OnStep | None) -> tuple[Expert, TrainReport]:
    checkpoint = job.out / "checkpoint" / "own"
    sites, report = _train_expert(job, job.train, job.validation, checkpoint=checkpoint, resume=resume, on_step=on_step)
    provenance = {
        "train": data_digest(job.train),
        "rows": len(job.train.rows),
        "seed": job.config.seed,
        "fisher": job.config.fisher,
        "pidep": __version__,
    }
    return as_expert(job, sites, job.scaling, provenance, stabilized=job.config.rank_stabilized), report


def _interpolate(
    job: Job, own: Expert, helpers: list[Expert], neighbours: list[Neighbour], *, resume: bool, on_step: OnStep | None
) -> Interpolated:
    settings = _interpolation(job, [own, *helpers])
    return interpolate(
        job.scorer,
        own,
        helpers,
        job.train,
        job.validation,
        settings,
        train_own=_train_own(job, on_step),
        similarities=[near.similarity for near in neighbours],
        checkpoint=job.out / "checkpoint" / "interpolation",
        resume=resume,
        on_step=on_step,
    )


def _interpolation(job: Job, experts: list[Expert]) -> InterpolateSettings:
    config = job.config
    assert config.policy != "zero-shot"
    schedule = job.schedule(f"{job.name}: interpolation", config.mixture_steps)
    schedule = replace(schedule, fingerprint=schedule.fingerprint + "".join(expert.digest for expert in experts))
    return InterpolateSettings(
        schedule,
        policy=config.policy,
        alpha_per=config.alpha_per,
        alpha_start=config.alpha_start,
        alpha_learning_rate=config.alpha_learning_rate,
        own_learning_rate=job.learning_rate,
        expert_learning_rate=config.expert_learning_rate,
        folds=config.folds,
    )


def _train_own(job: Job, on_step: OnStep | None) -> TrainOwn:
    """The own expert's recipe, for other rows and rates."""

    def train_own(rows: Split, harder: float) -> Expert:
        return as_expert(job, _train_expert(job, rows, None, harder=harder, on_step=on_step)[0], job.scaling, {})

    return train_own


def _missing_helpers(config: TuneConfig) -> dict[str, str]:
    """Helpers asked for that the pool lacks: name to task."""
    if config.helpers and config.pool is None:
        raise UsageError("helpers: need --pool, the folder their experts are kept in")
    named = {load_task(reference).name: reference for reference in config.helpers}
    return {name: task for name, task in named.items() if config.pool and not (config.pool / name / "expert.json").is_file()}


def _train_helper(
    config: TuneConfig, name: str, task: str, backbone: Backbone, *, resume: bool, on_step: OnStep | None
) -> None:
    assert config.pool is not None
    update: dict[str, Any] = {"task": task, "name": None, "helpers": [], "add_to_pool": True, **_ON_FULL_DATA}
    tune(config.model_copy(update=update), config.pool / ".runs" / name, resume=resume, backbone=backbone, on_step=on_step)


def tune(
    config: TuneConfig, out: Path, *, resume: bool = False, backbone: Backbone | None = None, on_step: OnStep | None = None
) -> TuneResult:
    """Train, predict, interpolate, evaluate; write `out` and (unless few-shot) the pool.

    The test split is read once, at the end. `metrics` holds `backbone`, `own_expert`, and with neighbours `uniform` and `pi`;
    without any `own_tuned` where few shots were better learned harder.

    Raises:
        TaskError, BackboneError, ExpertError, UsageError: the request does not fit together; nothing was written.
    """
    started = time.monotonic()
    _check_places(config, out)
    if config.policy == "zero-shot":
        zero_shot.check_request(config)
    missing = _missing_helpers(config)
    torch.manual_seed(config.seed)
    backbone = backbone or load_any_backbone(config.backbone)
    job = prepare(config, backbone, out)
    if config.pool is not None:
        check_expert_place(config.pool / job.name)
    pool = helpers_of(job)  # a pool that does not fit is refused before anything is trained
    for name, task in missing.items():
        _train_helper(config, name, task, backbone, resume=resume, on_step=on_step)
    if missing:
        pool = helpers_of(job)
    with backbone.cached_below(job.sites):
        if config.policy == "zero-shot":
            return zero_shot.mix(job, pool, started)
        return _learn(job, pool, started, resume=resume, on_step=on_step)


def _check_places(config: TuneConfig, out: Path) -> None:
    check_place(out, "--out")
    for folder in (out / "own", out / "expert"):
        check_expert_place(folder)
    if config.pool is not None:
        check_place(config.pool, "--pool")


def _learn(job: Job, pool: Helpers, started: float, *, resume: bool, on_step: OnStep | None) -> TuneResult:
    """Everything after the request was found to fit together."""
    config, metric, laps = job.config, job.task.metric, Laps()

    def tested(mixture: Mixture | None) -> float:
        return evaluate(job.scorer, job.data.test, metric, mixture)

    own, own_report = _own_expert(job, resume=resume, on_step=on_step)
    laps.lap("own expert")
    sample = limit(job.train, config.fisher_samples, seed=config.seed)
    cache = job.out / "checkpoint" / "fisher"
    digest = data_digest(sample)
    embedding = cached_fisher(cache, job.scorer.backbone, own, sample.rows, sample.labels, data_digest=digest, kind=config.fisher)
    neighbours = _neighbours(job, pool, embedding, sample)
    laps.lap("predict")
    metrics = {"backbone": tested(None), "own_expert": tested(Mixture.of([own]))}
    laps.lap("evaluate")
    reports = {"own": own_report}
    final, mixed = own, None
    if neighbours:
        helpers = [pool.expert(near.name) for near in neighbours]
        mixed = _interpolate(job, own, helpers, neighbours, resume=resume, on_step=on_step)
        reports |= mixed.reports
        laps.lap("interpolate")
        metrics |= {"uniform": tested(mixed.uniform), "pi": tested(mixed.mixture)}
        laps.lap("evaluate")
        provenance = {
            **own.provenance,
            "mixture_of": {job.name: own.digest, **{near.name: helper.digest for near, helper in zip(neighbours, helpers, strict=True)}},
            "decision": mixed.decision.to_json(),
        }
        final = as_expert(job, mixed.mixture.folded(), 1.0, provenance)
    elif config.policy == "auto" and job.validation is None:
        tuned, decision = tuned_own(job.scorer, own, job.train, _interpolation(job, [own]), train_own=_train_own(job, on_step))
        laps.lap("how hard to train")
        if tuned is not own:
            metrics |= {"own_tuned": tested(Mixture.of([tuned]))}
            laps.lap("evaluate")
        final = replace(own, sites=tuned.sites, provenance={**own.provenance, "decision": decision.to_json()})
    final = replace(final, metrics={metric: metrics})
    measured = replace(own, metrics={metric: metrics["own_expert"]})
    write_expert(measured, job.out / "own", fisher=embedding)
    write_expert(final, job.out / "expert", fisher=embedding)
    if config.pool is not None and (config.add_to_pool if config.add_to_pool is not None else config.shots is None):
        write_expert(measured, config.pool / job.name, fisher=embedding)
    result = TuneResult(job.out, job.name, final.digest, metric, metrics, neighbours, round(time.monotonic() - started, 3))
    write_run(job, result, _mixed(job, mixed), reports, laps.seconds)
    return result


def _neighbours(job: Job, pool: Helpers, embedding: Embedding, sample: Split) -> list[Neighbour]:
    config = job.config
    if config.neighbours_by == "fisher" or config.top_k == 0:
        return pool.nearest(embedding, top_k=config.top_k)
    tried = pool.nearest(embedding, top_k=SHORT_LIST)
    return by_trial(job.scorer, sample, {near.name: pool.expert(near.name) for near in tried}, top_k=config.top_k)


def _mixed(job: Job, found: Interpolated | None) -> Mixed:
    return Mixed((job.name,), {}) if found is None else Mixed(found.experts, found.mixture.alphas())
