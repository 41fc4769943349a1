"""The pool seen from a run: who may help, checked before anything is trained; large pools are not read as a whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pidep.adapters.mixture import fresh
from pidep.errors import ExpertError
from pidep.experts.folder import Expert, read_expert
from pidep.similarity.index import TaskIndex, read_record, task_folders
from pidep.similarity.measures import Embedding, Layout, Neighbour, most_similar
from pidep.similarity.pool import PoolEntry, read_pool
from pidep.tuning.job import Job

__all__ = ["INDEXED_FROM", "Helpers", "ReadPool", "helpers_of"]

INDEXED_FROM = 256
"""Experts in a pool from which `TaskIndex` finds the neighbours, and only theirs are read."""


class Helpers(Protocol):
    """A pool whose experts all fit the run."""

    def nearest(self, embedding: Embedding, *, top_k: int) -> list[Neighbour]:
        """The most similar tasks, best first."""

    def expert(self, name: str) -> Expert:
        """One of them."""


@dataclass(frozen=True)
class ReadPool:
    """A small pool, read and verified as a whole."""

    entries: Mapping[str, PoolEntry] = field(default_factory=dict)

    def nearest(self, embedding: Embedding, *, top_k: int) -> list[Neighbour]:
        """Exact."""
        return most_similar(embedding, {name: entry.embedding for name, entry in self.entries.items()}, top_k=top_k)

    def expert(self, name: str) -> Expert:
        """Read already."""
        return self.entries[name].expert


@dataclass(frozen=True)
class IndexedPool:
    """A large pool: `expert.json` of every expert was checked; tensors are read of those that are taken."""

    index: TaskIndex
    without: Collection[str]

    def nearest(self, embedding: Embedding, *, top_k: int) -> list[Neighbour]:
        """From the index's short list; similarities are exact."""
        return self.index.top_k(embedding, top_k, exclude=self.without)

    def expert(self, name: str) -> Expert:
        """Read and verified now."""
        return read_expert(self.index.pool / name)


def helpers_of(job: Job) -> Helpers:
    """The pool without the target itself; empty without `--pool` or with `--top-k 0`.

    Raises:
        ExpertError: an expert in it is damaged, or of another backbone, kind, sites, rank or Fisher.
    """
    pool = job.config.pool
    if pool is None or job.config.top_k == 0:
        return ReadPool()
    others = {name: folder for name, folder in task_folders(pool).items() if name != job.name}
    if len(others) < INDEXED_FROM or job.config.policy == "zero-shot":  # which asks every one of them
        return ReadPool(_fitting_pool(job, pool))
    for folder in others.values():
        record = read_record(folder)
        _check(job, folder, record["kind"], record["sites"], (record["backbone"], record["backbone_digest"]))
        _check_fisher(folder, record["fisher"], job.config.fisher)
    index = TaskIndex.open(pool)
    if index.layout != _layout(job):
        raise ExpertError(f"{pool}: its experts are of another rank than this run's; use the same --rank for the whole pool")
    return IndexedPool(index, {job.name})


def _fitting_pool(job: Job, pool: Path) -> dict[str, PoolEntry]:
    """Every expert of a pool but the target's, with its task embedding.

    Raises:
        ExpertError: an expert in it is damaged, or of another backbone, kind, sites, rank or Fisher.
    """
    layout = _layout(job)
    fisher: str | None = None if job.config.policy == "zero-shot" else job.config.fisher
    entries = {name: entry for name, entry in read_pool(pool).items() if name != job.name}
    for name, entry in entries.items():
        expert = entry.expert
        _check(job, pool / name, expert.kind, expert.sites, (expert.backbone, expert.backbone_digest))
        fisher = fisher or entry.fisher
        _check_fisher(pool / name, entry.fisher, fisher)
        try:
            layout.vector(entry.embedding)
        except ExpertError as error:
            raise ExpertError(f"{pool / name}: {error}") from error
    return entries


def _layout(job: Job) -> Layout:
    """Of the embeddings of this run's experts."""
    start = fresh(job.scorer.backbone.model, job.sites, kind=job.config.kind, size=job.config.rank)
    return Layout.of({f"{site}.{name}": array for site, tensors in start.items() for name, array in tensors.items()})


def _check_fisher(where: Path, found: str, expected: str) -> None:
    """Embeddings of different Fishers have different scales and shapes: their similarity would mean nothing."""
    if found != expected:
        raise ExpertError(
            f"{where}: its task embedding is of the {found} Fisher, expected {expected}; use --fisher {found}, or one pool per Fisher"
        )


def _check(job: Job, where: Path, kind: str, sites: Collection[str], made_for: tuple[str, str]) -> None:
    """Same backbone (name and digest), kind and sites as the run."""
    backbone, (name, digest) = job.scorer.backbone, made_for
    if digest != backbone.digest:
        raise ExpertError(
            f"{where}: expert of another backbone ({name!r}, {digest[:19]}…), "
            f"this run uses {backbone.name!r} ({backbone.digest[:19]}…); use one pool per backbone"
        )
    if kind != job.config.kind:
        raise ExpertError(f"{where}: is of kind {kind!r}, this run is {job.config.kind!r}; use one pool per kind")
    if set(sites) != set(job.sites):
        raise ExpertError(f"{where}: acts on {len(sites)} sites, this run on {len(job.sites)}; use the same --sites for the whole pool")
