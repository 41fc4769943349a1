"""A pool: a folder of experts with their task embeddings, and the task graph over it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import networkx
import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError, did_you_mean
from pidep.experts.folder import Expert, read_expert
from pidep.files.tensor_file import read_tensors
from pidep.similarity.index import EMBEDDING_FILE, TaskIndex, fisher_kind, read_record, task_folders
from pidep.similarity.measures import Neighbour, SiteAgreement, explain, similarity

__all__ = ["COMPLETE_UP_TO", "DEFAULT_TOP_K", "Explanation", "PoolEntry", "explain_task", "read_pool", "task_graph"]

COMPLETE_UP_TO = 50
"""Tasks up to which the graph holds every pair; above, each task's top-k."""
DEFAULT_TOP_K = 3


@dataclass(frozen=True)
class PoolEntry:
    """An expert and its task's embedding."""

    expert: Expert
    embedding: dict[str, npt.NDArray[np.float32]]

    @property
    def fisher(self) -> str:
        """Which Fisher the embedding is."""
        return fisher_kind(self.expert.provenance)


@dataclass(frozen=True)
class Explanation:
    """A neighbour and the sites by how far they agree, best first."""

    neighbour: Neighbour
    sites: list[SiteAgreement]


def read_pool(folder: Path) -> dict[str, PoolEntry]:
    """Every expert of a pool that has a task embedding, by folder name; an absent folder is an empty pool.

    Raises:
        ExpertError: an expert in it is damaged.
    """
    return {name: PoolEntry(read_expert(path), read_tensors(path / EMBEDDING_FILE)) for name, path in task_folders(folder).items()}


def task_graph(folder: Path, *, top_k: int | None = None) -> networkx.Graph:
    """The graph over a pool; edges carry `similarity` in [0, 1].

    With `top_k`, and above `COMPLETE_UP_TO` tasks, it holds each task's most similar others only (the graph's `top_k` says so).

    Raises:
        ExpertError: fewer than two experts, or experts that cannot be compared.
    """
    folders = task_folders(folder)
    if len(folders) < 2:
        raise ExpertError(
            f"{folder}: {len(folders)} experts with a task embedding; a task graph needs two, train more with pidep tune --pool"
        )
    if top_k is None and len(folders) > COMPLETE_UP_TO:
        top_k = DEFAULT_TOP_K
    return _complete(folder) if top_k is None else _nearest(folder, top_k)


def _complete(folder: Path) -> networkx.Graph:
    entries = read_pool(folder)
    graph = networkx.Graph()
    for name, entry in entries.items():
        graph.add_node(name, digest=entry.expert.digest, labels=len(entry.expert.labels))
    names = sorted(entries)
    for index, left in enumerate(names):
        for right in names[index + 1 :]:
            graph.add_edge(left, right, similarity=_similarity(folder, left, entries[left], right, entries[right]))
    return graph


def _similarity(folder: Path, left: str, first: PoolEntry, right: str, second: PoolEntry) -> float:
    if first.expert.backbone_digest != second.expert.backbone_digest:
        raise ExpertError(f"{folder}: {left} and {right} are experts of different backbones; use one pool per backbone")
    if first.fisher != second.fisher:
        raise ExpertError(
            f"{folder}: the task embedding of {left} is of the {first.fisher} Fisher, that of {right} of the {second.fisher} one; "
            "tune one of them again with the other's --fisher"
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
        graph.add_node(name, digest=record["digest"], labels=len(record["labels"]))
    for name, neighbours in index.all_top_k(top_k):
        graph.add_edges_from((name, near.name, {"similarity": near.similarity}) for near in neighbours)
    return graph


def explain_task(folder: Path, name: str, *, top_k: int = DEFAULT_TOP_K) -> list[Explanation]:
    """A task's most similar others in the pool, best first, and at which sites each agrees with it.

    Raises:
        ExpertError: the pool has no such task, no other, or tasks that cannot be compared.
    """
    folders = task_folders(folder)
    if name not in folders:
        raise ExpertError(f"{folder}: no task {name!r} with a task embedding{did_you_mean(name, folders)}; pidep graph lists them")
    if len(folders) < 2:
        raise ExpertError(f"{folder}: {name!r} is the only task; train more with pidep tune --pool")
    own = read_tensors(folders[name] / EMBEDDING_FILE)
    neighbours = TaskIndex.open(folder).top_k(own, top_k, exclude={name})
    return [Explanation(near, explain(own, read_tensors(folders[near.name] / EMBEDDING_FILE))) for near in neighbours]
