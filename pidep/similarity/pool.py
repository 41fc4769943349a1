"""A pool: a folder of experts with their task embeddings, and the task graph over it. No torch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import networkx
import numpy as np
import numpy.typing as npt

from pidep.artifacts.names import TASK_EMBEDDING
from pidep.errors import ExpertError, did_you_mean
from pidep.experts.folder import Expert, read_expert
from pidep.experts.resolve import resolve_expert_folder
from pidep.files.tensor_file import read_tensors
from pidep.similarity.index import (
    TaskIndex,
    fisher_kind,
    read_record,
    task_folders,
)
from pidep.similarity.measures import (
    Embedding,
    Neighbour,
    SiteAgreement,
    explain,
    most_similar,
    similarity,
)

__all__ = [
    "COMPLETE_UP_TO",
    "DEFAULT_TOP_K",
    "INDEXED_FROM",
    "Explanation",
    "HasRun",
    "Pool",
    "PoolEntry",
    "explain_task",
    "read_pool",
    "task_graph",
]

_LOG = logging.getLogger(__name__)

COMPLETE_UP_TO = 50
"""Tasks up to which the graph holds every pair; above, each task's nearest."""
INDEXED_FROM = 256
"""Tasks from which `Pool.nearest` uses the index instead of reading every embedding."""
DEFAULT_TOP_K = 3


class HasRun(Protocol):
    """Something that wrote a run folder, such as the result of `pidep.tune`."""

    @property
    def run(self) -> Path:
        """The run folder."""


@dataclass(frozen=True)
class PoolEntry:
    """An expert and its task's embedding."""

    expert: Expert
    embedding: dict[str, npt.NDArray[np.float32]]

    @property
    def fisher(self) -> str:
        """The kind of Fisher of the embedding."""
        return fisher_kind(self.expert.provenance)


@dataclass(frozen=True)
class Explanation:
    """A neighbour, and the sites by their agreement, best first."""

    neighbour: Neighbour
    sites: list[SiteAgreement]


class Pool:
    """The experts of a folder that have a task embedding, as the folder is now.

    Experts and embeddings are read when they are first needed, and verified then. An absent
    folder is an empty pool.

    Args:
        exclude: names that are left out, such as the target's own.
    """

    def __init__(self, folder: str | Path, *, exclude: Collection[str] = ()) -> None:
        self.folder = Path(folder)
        self._excluded = frozenset(exclude)
        folders = task_folders(self.folder)
        self._folders = {name: path for name, path in folders.items() if name not in self._excluded}
        self._experts: dict[str, Expert] = {}
        self._embeddings: dict[str, dict[str, npt.NDArray[np.float32]]] = {}

    @cached_property
    def index(self) -> TaskIndex:
        """The index over the folder; new or changed tasks are added to it on first use.

        Raises:
            ExpertError: the experts are not all of one backbone, kind, sites, rank and Fisher.
        """
        return TaskIndex.open(self.folder)

    def __len__(self) -> int:
        return len(self._folders)

    def __iter__(self) -> Iterator[str]:
        """Names, sorted."""
        return iter(self._folders)

    def __contains__(self, name: object) -> bool:
        return name in self._folders

    @property
    def folders(self) -> dict[str, Path]:
        """The expert folder of each name."""
        return dict(self._folders)

    def expert(self, name: str) -> Expert:
        """The expert of this name.

        Raises:
            ExpertError: the pool has no such expert, or it is damaged.
        """
        if name not in self._experts:
            self._experts[name] = read_expert(self._folder_of(name))
        return self._experts[name]

    def embedding(self, name: str) -> dict[str, npt.NDArray[np.float32]]:
        """The task embedding of this name.

        Raises:
            ExpertError: the pool has no such task, or the embedding is damaged.
        """
        if name not in self._embeddings:
            self._embeddings[name] = read_tensors(self._folder_of(name) / TASK_EMBEDDING)
        return self._embeddings[name]

    def entries(self) -> dict[str, PoolEntry]:
        """Every expert with its embedding; reads the whole pool.

        Raises:
            ExpertError: an expert or an embedding is damaged.
        """
        return {name: PoolEntry(self.expert(name), self.embedding(name)) for name in self}

    def nearest(
        self,
        target: Embedding | str | Path | HasRun,
        top_k: int = DEFAULT_TOP_K,
        *,
        exclude: Collection[str] = (),
    ) -> list[Neighbour]:
        """The `top_k` most similar tasks, best first; ties by name. Similarities are exact.

        Large pools are not read as a whole: an index on disk finds the short list.

        Args:
            target: the name of a task in the pool, a run folder, an expert folder, a result of
                `tune`, or a task embedding. All but an embedding have a name, which is left out.
            exclude: further names that are left out.

        Raises:
            ExpertError: the target has no task embedding, or one of other sites or another rank
                than the pool's.
        """
        embedding, own = self._target(target)
        left_out = self._excluded | set(exclude) | own
        names = [name for name in self if name not in left_out]
        if top_k < 1 or not names:
            return []
        # Below that, the index's short list holds every task and would save nothing.
        if len(names) >= INDEXED_FROM:
            return self.index.top_k(embedding, top_k, exclude=left_out)
        return most_similar(embedding, {name: self.embedding(name) for name in names}, top_k=top_k)

    def _target(self, target: Embedding | str | Path | HasRun) -> tuple[Embedding, frozenset[str]]:
        """The target's embedding, and its name where it has one."""
        if isinstance(target, Mapping):
            return target, frozenset()
        if isinstance(target, str) and target in self:
            return self.embedding(target), frozenset({target})
        run = target if isinstance(target, str | Path) else target.run
        folder = resolve_expert_folder(Path(run))
        if not (folder / TASK_EMBEDDING).is_file():
            raise ExpertError(
                f"{run}: no task embedding ({TASK_EMBEDDING}), and no task of {self.folder}"
                f"{did_you_mean(str(run), self._folders)}; give a task of the pool, or a folder "
                "that pidep tune wrote"
            )
        return read_tensors(folder / TASK_EMBEDDING), frozenset({read_expert(folder).name})

    def _folder_of(self, name: str) -> Path:
        if name not in self._folders:
            raise ExpertError(
                f"{self.folder}: no task {name!r} with a task embedding"
                f"{did_you_mean(name, self._folders)}; pidep graph lists them"
            )
        return self._folders[name]


def read_pool(folder: Path) -> dict[str, PoolEntry]:
    """Every expert of a pool with its embedding, by name; an absent folder is an empty pool.

    Raises:
        ExpertError: an expert or an embedding is damaged.
    """
    return Pool(folder).entries()


def task_graph(folder: Path, *, top_k: int | None = None) -> networkx.Graph:
    """The graph over a pool; edges carry `similarity` in [0, 1].

    With `top_k`, and above `COMPLETE_UP_TO` tasks, the graph holds only the most similar others
    of each task; its attribute `top_k` is set then.

    Raises:
        ExpertError: fewer than two experts, or experts that cannot be compared.
    """
    folders = task_folders(folder)
    if len(folders) < 2:
        raise ExpertError(
            f"{folder}: {len(folders)} experts with a task embedding; a task graph needs two, "
            "train more with pidep tune --pool"
        )
    if top_k is None and len(folders) > COMPLETE_UP_TO:
        top_k = DEFAULT_TOP_K
    return _complete(folder) if top_k is None else _nearest(folder, min(top_k, len(folders) - 1))


def _complete(folder: Path) -> networkx.Graph:
    entries = read_pool(folder)
    graph = networkx.Graph()
    for name, entry in entries.items():
        graph.add_node(name, digest=entry.expert.digest, labels=len(entry.expert.labels))
    names = sorted(entries)
    for index, left in enumerate(names):
        count = {"done": index, "total": len(names)}
        _LOG.info("graph: compares tasks with all others", extra=count)
        for right in names[index + 1 :]:
            graph.add_edge(
                left,
                right,
                similarity=_similarity(folder, left, entries[left], right, entries[right]),
            )
    return graph


def _similarity(folder: Path, left: str, first: PoolEntry, right: str, second: PoolEntry) -> float:
    if first.expert.backbone_digest != second.expert.backbone_digest:
        raise ExpertError(
            f"{folder}: {left} and {right} are experts of different backbones; use one pool per "
            "backbone"
        )
    if first.fisher != second.fisher:
        raise ExpertError(
            f"{folder}: the task embedding of {left} is of the {first.fisher} Fisher, that of "
            f"{right} of the {second.fisher} one; "
            "tune one of them again with the other's `fisher`"
        )
    try:
        return similarity(first.embedding, second.embedding)
    except ExpertError as error:
        raise ExpertError(f"{folder}: {left} and {right} cannot be compared: {error}") from error


def _nearest(folder: Path, top_k: int) -> networkx.Graph:
    index = TaskIndex.open(folder)
    graph = networkx.Graph(top_k=top_k)
    for name in index.names:
        record = read_record(folder / name)
        graph.add_node(name, digest=record.digest, labels=len(record.labels))
    for name, neighbours in index.all_top_k(top_k):
        graph.add_edges_from(
            (name, near.name, {"similarity": near.similarity}) for near in neighbours
        )
    return graph


def explain_task(folder: Path, name: str, *, top_k: int = DEFAULT_TOP_K) -> list[Explanation]:
    """The most similar tasks of a task in the pool, and the sites of agreement with each.

    Raises:
        ExpertError: the pool has no such task, no other task, or tasks that cannot be compared.
    """
    pool = Pool(folder)
    own = pool.embedding(name)
    if len(pool) < 2:
        raise ExpertError(f"{folder}: {name!r} is the only task; train more with pidep tune --pool")
    # The index also refuses pools of several backbones or Fishers, whose similarities mean nothing.
    neighbours = pool.index.top_k(own, top_k, exclude={name})
    return [Explanation(near, explain(own, pool.embedding(near.name))) for near in neighbours]
