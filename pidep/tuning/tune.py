"""`pidep tune` as a function: own expert, prediction, interpolation, evaluation, run folder."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pidep import __version__
from pidep.atomic_write import check_place, write_json, write_text
from pidep.backbones.encoder import Encoder, load_backbone
from pidep.errors import ExpertError, TaskError, UsageError
from pidep.experts.folder import Expert, check_expert_place, check_name, read_expert, write_expert
from pidep.experts.kinds import kind_named
from pidep.experts.kinds.lora import scaling
from pidep.experts.mixture import Mixture, find_sites, fresh
from pidep.experts.places import peft_can
from pidep.experts.site import Tensors
from pidep.similarity.compare import Layout, Neighbour, most_similar
from pidep.similarity.embedding_cache import cached_fisher
from pidep.similarity.pool import PoolEntry, read_pool
from pidep.tasks.data import Split, TaskData, data_digest, few_shot, hold_out, limit, load_data
from pidep.tasks.metrics import score
from pidep.tasks.task import Task, load_task
from pidep.tuning.config import TuneConfig
from pidep.tuning.interpolate import Interpolated, InterpolateSettings, interpolate
from pidep.tuning.trainer import OnStep, Schedule, Scorer, TrainReport, fit, predict_logits

__all__ = ["LOGIT_SCALE", "TuneResult", "evaluate", "label_embeddings", "tune"]

LOGIT_SCALE = 20.0
"""Cosines are multiplied by this before the softmax (a temperature of 0.05, as sentence encoders are trained with)."""


@dataclass(frozen=True)
class TuneResult:
    """What a run found; `run` is its folder."""

    run: Path
    name: str
    digest: str
    metric: str
    metrics: dict[str, float]
    neighbours: list[Neighbour]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "run": str(self.run),
            "name": self.name,
            "digest": self.digest,
            "metric": self.metric,
            "metrics": self.metrics,
            "neighbours": [{"name": near.name, "similarity": near.similarity} for near in self.neighbours],
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class _Job:
    """A task made ready: data split, label texts embedded."""

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
        keep = self.config.model_dump(mode="json", exclude={"pool", "helpers", "top_k", "test_limit", "add_to_pool", "name"})
        content = [keep, self.task.model_dump(mode="json"), self.scorer.backbone.digest, data_digest(self.train), self.sites]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the own expert: the one given, else the kind's, and half of it for a few shots, soon known by heart."""
        usual = kind_named(self.config.kind).learning_rate
        return self.config.learning_rate or (usual if self.config.shots is None else usual / 2)

    @property
    def scaling(self) -> float:
        """s of a LoRA; 1 for other kinds."""
        config = self.config
        if config.kind != "lora":
            return 1.0
        return scaling(config.lora_alpha, config.rank, rank_stabilized=config.rank_stabilized)

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


def label_embeddings(backbone: Encoder, task: Task) -> torch.Tensor:
    """`[C, D]`: the bare backbone's reading of the label texts; they stay fixed, whatever the expert."""
    return backbone.encode(list(task.labels.values()), max_length=backbone.max_positions)


def evaluate(scorer: Scorer, split: Split, metric: str, mixture: Mixture | None = None) -> float:
    """The metric of a mixture (or the bare backbone) on a split."""
    predictions = predict_logits(scorer, split.texts, mixture).argmax(1).tolist()
    return score(metric, split.labels, predictions)


def _prepare(config: TuneConfig, backbone: Encoder, out: Path) -> _Job:
    task = load_task(config.task)
    data = load_data(task)
    max_length = min(config.max_length or task.max_length, backbone.max_positions)
    data = TaskData(data.train, limit(data.test, config.test_limit, seed=0))
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
    return _Job(
        config=config,
        task=task,
        name=check_name(config.name or task.name),
        data=data,
        train=train,
        validation=validation,
        scorer=Scorer(backbone, label_embeddings(backbone, task), LOGIT_SCALE, max_length),
        sites=find_sites(backbone.model, config.sites, kind=config.kind),
        out=out,
    )


def _as_expert(job: _Job, sites: Mapping[str, Tensors], scaling: float, provenance: dict[str, Any], *, stabilized: bool = False) -> Expert:
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
        logit_scale=LOGIT_SCALE,
        max_length=job.scorer.max_length,
        provenance=provenance,
    )


def _train_expert(
    job: _Job, train: Split, validation: Split | None, *, checkpoint: Path | None = None, resume: bool = False, on_step: OnStep | None
) -> tuple[dict[str, Tensors], TrainReport]:
    """A fresh expert, trained alone on the rows."""
    config = job.config
    start = fresh(job.scorer.backbone.model, job.sites, kind=config.kind, size=config.rank)
    mixture = Mixture([start], [job.scaling], kind=config.kind)
    steps = config.steps if config.shots is None else min(config.steps, config.mixture_steps or config.steps)
    groups = [(mixture.expert_parameters(), job.learning_rate)]
    schedule = job.schedule(f"{job.name}: own expert", steps)
    report = fit(job.scorer, mixture, groups, train, validation, schedule, checkpoint=checkpoint, resume=resume, on_step=on_step)
    return dict(mixture.part(0)), report


def _own_expert(job: _Job, *, resume: bool, on_step: OnStep | None) -> tuple[Expert, TrainReport]:
    checkpoint = job.out / "checkpoint" / "own"
    sites, report = _train_expert(job, job.train, job.validation, checkpoint=checkpoint, resume=resume, on_step=on_step)
    provenance = {"train": data_digest(job.train), "rows": len(job.train.texts), "seed": job.config.seed, "pidep": __version__}
    return _as_expert(job, sites, job.scaling, provenance, stabilized=job.config.rank_stabilized), report


def _fitting_pool(job: _Job) -> dict[str, PoolEntry]:
    """The pool without the target itself, checked before anything is trained: same backbone, same kind, same sites."""
    if job.config.pool is None or job.config.top_k == 0:
        return {}
    pool = {name: entry for name, entry in read_pool(job.config.pool).items() if name != job.name}
    backbone = job.scorer.backbone
    start = fresh(backbone.model, job.sites, kind=job.config.kind, size=job.config.rank)
    layout = Layout.of({f"{site}.{name}": array for site, tensors in start.items() for name, array in tensors.items()})
    for name, entry in pool.items():
        expert = entry.expert
        if expert.backbone_digest != backbone.digest:
            raise ExpertError(
                f"{job.config.pool / name}: expert of another backbone ({expert.backbone!r}, {expert.backbone_digest[:19]}…), "
                f"this run uses {backbone.name!r} ({backbone.digest[:19]}…); use one pool per backbone"
            )
        if expert.kind != job.config.kind:
            raise ExpertError(
                f"{job.config.pool / name}: is of kind {expert.kind!r}, this run is {job.config.kind!r}; use one pool per kind"
            )
        if expert.sites.keys() != set(job.sites):
            raise ExpertError(
                f"{job.config.pool / name}: acts on {len(expert.sites)} sites, this run on {len(job.sites)}; "
                "use the same --sites for the whole pool"
            )
        try:
            layout.vector(entry.embedding)
        except ExpertError as error:
            raise ExpertError(f"{job.config.pool / name}: {error}") from error
    return pool


def _interpolate(
    job: _Job, own: Expert, helpers: list[Expert], neighbours: list[Neighbour], *, resume: bool, on_step: OnStep | None
) -> Interpolated:
    config = job.config
    schedule = job.schedule(f"{job.name}: interpolation", config.mixture_steps)
    schedule = replace(schedule, fingerprint=schedule.fingerprint + "".join(expert.digest for expert in [own, *helpers]))
    settings = InterpolateSettings(
        schedule,
        policy=config.policy,
        alpha_per=config.alpha_per,
        alpha_start=config.alpha_start,
        alpha_learning_rate=config.alpha_learning_rate,
        own_learning_rate=job.learning_rate,
        expert_learning_rate=config.expert_learning_rate,
        folds=config.folds,
    )

    def train_own(rows: Split) -> Expert:
        return _as_expert(job, _train_expert(job, rows, None, on_step=on_step)[0], job.scaling, {})

    return interpolate(
        job.scorer,
        own,
        helpers,
        job.train,
        job.validation,
        settings,
        train_own=train_own,
        similarities=[near.similarity for near in neighbours],
        checkpoint=job.out / "checkpoint" / "interpolation",
        resume=resume,
        on_step=on_step,
    )


def _train_helpers(config: TuneConfig, backbone: Encoder, *, resume: bool, on_step: OnStep | None) -> None:
    if config.helpers and config.pool is None:
        raise UsageError("helpers: need --pool, the folder their experts are kept in")
    for reference in config.helpers:
        name = load_task(reference).name
        assert config.pool is not None
        if (config.pool / name / "expert.json").is_file():
            continue
        update: dict[str, Any] = {"task": reference, "name": None, "helpers": [], "shots": None, "top_k": 0, "add_to_pool": True}
        tune(config.model_copy(update=update), config.pool / ".runs" / name, resume=resume, backbone=backbone, on_step=on_step)


def tune(
    config: TuneConfig, out: Path, *, resume: bool = False, backbone: Encoder | None = None, on_step: OnStep | None = None
) -> TuneResult:
    """Train, predict, interpolate, evaluate; write `out` and (unless few-shot) the pool.

    The test split is read once, at the end. `metrics` holds `backbone`, `own_expert`, and with neighbours `uniform` and `pi`.

    Raises:
        TaskError, BackboneError, ExpertError, UsageError: the request does not fit together; nothing was written.
    """
    started = time.monotonic()
    check_place(out, "--out")
    for folder in (out / "own", out / "expert"):
        check_expert_place(folder)
    torch.manual_seed(config.seed)
    backbone = backbone or load_backbone(config.backbone)
    job = _prepare(config, backbone, out)
    if config.pool is not None:
        check_place(config.pool, "--pool")
        check_expert_place(config.pool / job.name)
    _train_helpers(config, backbone, resume=resume, on_step=on_step)
    pool = _fitting_pool(job)
    with backbone.cached_below(job.sites):
        return _learn(job, pool, started, resume=resume, on_step=on_step)


class _Laps:
    """Seconds by phase."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """The time since the last lap was this phase's."""
        now = time.monotonic()
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + now - self._last, 3)
        self._last = now


def _learn(job: _Job, pool: Mapping[str, PoolEntry], started: float, *, resume: bool, on_step: OnStep | None) -> TuneResult:
    """Everything after the request was found to fit together."""
    config, metric, laps = job.config, job.task.metric, _Laps()

    def tested(mixture: Mixture | None) -> float:
        return evaluate(job.scorer, job.data.test, metric, mixture)

    own, own_report = _own_expert(job, resume=resume, on_step=on_step)
    laps.lap("own expert")
    sample = limit(job.train, config.fisher_samples, seed=config.seed)
    cache = job.out / "checkpoint" / "fisher"
    embedding = cached_fisher(cache, job.scorer.backbone, own, sample.texts, sample.labels, data_digest=data_digest(sample))
    neighbours = most_similar(embedding, {name: entry.embedding for name, entry in pool.items()}, top_k=config.top_k)
    laps.lap("predict")
    metrics = {"backbone": tested(None), "own_expert": tested(Mixture.of([own]))}
    laps.lap("evaluate")
    reports = {"own": own_report}
    final, mixed = own, None
    if neighbours:
        helpers = [pool[near.name].expert for near in neighbours]
        mixed = _interpolate(job, own, helpers, neighbours, resume=resume, on_step=on_step)
        reports |= mixed.reports
        laps.lap("interpolate")
        metrics |= {"uniform": tested(mixed.uniform), "pi": tested(mixed.mixture)}
        laps.lap("evaluate")
        provenance = {
            **own.provenance,
            "mixture_of": {job.name: own.digest, **{near.name: pool[near.name].expert.digest for near in neighbours}},
            "decision": mixed.decision.to_json(),
        }
        final = _as_expert(job, mixed.mixture.folded(), 1.0, provenance)
    final = replace(final, metrics={metric: metrics})
    measured = replace(own, metrics={metric: metrics["own_expert"]})
    write_expert(measured, job.out / "own", fisher=embedding)
    write_expert(final, job.out / "expert", fisher=embedding)
    if config.pool is not None and (config.add_to_pool if config.add_to_pool is not None else config.shots is None):
        write_expert(measured, config.pool / job.name, fisher=embedding)
    result = TuneResult(job.out, job.name, final.digest, metric, metrics, neighbours, round(time.monotonic() - started, 3))
    _write_run(job, result, mixed, reports, laps.seconds)
    return result


def _write_run(
    job: _Job, result: TuneResult, mixed: Interpolated | None, reports: dict[str, TrainReport], seconds: dict[str, float]
) -> None:
    out = job.out
    alphas = mixed.mixture.alphas() if mixed is not None else {}
    write_text(out / "config.yaml", json.dumps(job.config.model_dump(mode="json"), indent=2) + "\n")
    write_json(out / "task.json", job.task.model_dump(mode="json"))
    write_json(
        out / "alpha.json",
        {
            "experts": mixed.experts if mixed is not None else [job.name],
            "sites": alphas,
            "mean": np.mean(list(alphas.values()), axis=0).tolist() if alphas else [1.0],
        },
    )
    write_json(out / "similarity.json", {near.name: near.similarity for near in result.neighbours})
    write_json(out / "metrics.json", {"metric": result.metric, "test_rows": len(job.data.test.texts), **result.metrics})
    write_json(
        out / "provenance.json",
        {
            "backbone": {
                "name": job.scorer.backbone.name,
                "digest": job.scorer.backbone.digest,
                "parameters": sum(parameter.numel() for parameter in job.scorer.backbone.model.parameters()),
            },
            "data": {"train": data_digest(job.train), "test": data_digest(job.data.test), "train_rows": len(job.train.texts)},
            "phases": {
                phase: {
                    "steps": report.steps,
                    "best_step": report.best_step,
                    "validation_loss": report.validation_loss,
                    "history": report.history,
                }
                for phase, report in reports.items()
            },
            "versions": {name: version(name) for name in ("torch", "transformers", "numpy")} | {"pidep": __version__},
            "python": platform.python_version(),
            "seconds": result.seconds,
            "seconds_by_phase": seconds,
        },
    )
    write_json(out / "result.json", result.to_json())


def run_expert(folder: Path) -> Expert:
    """The expert of a run folder, or of an expert folder."""
    return read_expert(folder / "expert" if (folder / "expert" / "expert.json").is_file() else folder)
