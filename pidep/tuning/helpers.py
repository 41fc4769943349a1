"""The pool of a run: checked against the run before anything is trained."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pidep.adapters.mixture import fresh
from pidep.errors import ExpertError
from pidep.similarity import pool as pool_module
from pidep.similarity.index import fisher_kind, read_record
from pidep.similarity.learned import fresh_learned
from pidep.similarity.measures import TensorLayout
from pidep.similarity.pool import Pool
from pidep.tuning.job import Job

__all__ = ["pool_of"]


def pool_of(job: Job) -> Pool | None:
    """The run's pool without the target itself; None without a pool, or with `top_k` 0.

    A small pool is read and verified as a whole. Of a large one only the records are checked
    here; the experts of the neighbours are read and verified when they are taken.

    Raises:
        ExpertError: an expert in the pool is damaged, or has another backbone, kind, sites, rank
            or Fisher than the run.
        UsageError: the ranker was asked for, and the pool has not learned enough, or has changed.
    """
    config = job.config
    if config.pool is None or config.top_k == 0:
        return None
    pool = Pool(config.pool, exclude={job.name})
    if job.neighbours_by == "ranker" and config.policy != "zero-shot":
        # What the ranker would refuse after minutes of training.
        _ = fresh_learned(config.pool).without(job.name).ranker
    # Zero-shot asks every expert, so it reads a large pool as a whole, too.
    if len(pool) < pool_module.INDEXED_FROM or config.policy == "zero-shot":
        _check_experts(job, pool)
        return pool
    for folder in pool.folders.values():
        record = read_record(folder)
        made_for = (record.backbone, record.backbone_digest)
        _check(job, folder, record.kind, record.sites, made_for)
        _check_fisher(folder, fisher_kind(record.provenance), config.fisher)
    if pool.index.layout != _layout_of(job):
        raise ExpertError(
            f"{pool.folder}: its experts are of another rank than this run's; "
            "use the same `rank` for the whole pool"
        )
    return pool


def _check_experts(job: Job, pool: Pool) -> None:
    """Refuse a pool with an expert that cannot be mixed with the run's own."""
    layout = _layout_of(job)
    # A zero-shot run has no embedding of its own; the pool's only have to agree.
    fisher: str | None = None if job.config.policy == "zero-shot" else job.config.fisher
    for name, entry in pool.entries().items():
        expert, folder = entry.expert, pool.folder / name
        made_for = (expert.backbone, expert.backbone_digest)
        _check(job, folder, expert.kind, expert.sites, made_for)
        fisher = fisher or entry.fisher
        _check_fisher(folder, entry.fisher, fisher)
        try:
            layout.vector(entry.embedding)
        except ExpertError as error:
            raise ExpertError(f"{folder}: {error}") from error


def _layout_of(job: Job) -> TensorLayout:
    """The layout of the embeddings of this run's experts."""
    config, model = job.config, job.scorer.backbone.model
    start = fresh(model, job.sites, kind=config.kind, rank=config.rank)
    return TensorLayout.of(
        {
            f"{site}.{name}": array
            for site, tensors in start.items()
            for name, array in tensors.items()
        }
    )


def _check_fisher(where: Path, found: str, expected: str) -> None:
    """Refuse another Fisher: its embeddings have another scale and shape."""
    if found != expected:
        raise ExpertError(
            f"{where}: its task embedding is of the {found} Fisher, expected {expected}; "
            f"use `fisher={found}`, or one pool per Fisher"
        )


def _check(
    job: Job, where: Path, kind: str, sites: Collection[str], made_for: tuple[str, str]
) -> None:
    """Refuse another backbone (name and digest), kind or sites than the run's."""
    backbone, (name, digest) = job.scorer.backbone, made_for
    if digest != backbone.digest:
        raise ExpertError(
            f"{where}: expert of another backbone ({name!r}, {digest[:19]}…), "
            f"this run uses {backbone.name!r} ({backbone.digest[:19]}…); "
            "use one pool per backbone"
        )
    if kind != job.config.kind:
        raise ExpertError(
            f"{where}: is of kind {kind!r}, this run is {job.config.kind!r}; use one pool per kind"
        )
    if set(sites) != set(job.sites):
        raise ExpertError(
            f"{where}: acts on {len(sites)} sites, this run on {len(job.sites)}; "
            "use the same `sites` for the whole pool"
        )
