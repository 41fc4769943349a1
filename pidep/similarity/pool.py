"""A pool: a folder of experts with their task embeddings, and the task graph over it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import networkx
import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError
from pidep.experts.folder import Expert, read_expert, read_tensors
from pidep.similarity.compare import similarity

__all__ = ["PoolEntry", "read_pool", "task_graph"]


@dataclass(frozen=True)
class PoolEntry:
    """An expert and its task's embedding."""

    expert: Expert
    embedding: dict[str, npt.NDArray[np.float32]]


def read_pool(folder: Path) -> dict[str, PoolEntry]:
    """Every expert of a pool that has a task embedding, by folder name; an absent folder is an empty pool.

    Raises:
        ExpertError: an expert in it is damaged.
    """
    if not folder.is_dir():
        return {}
    entries = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path / "expert.json").is_file() or not (path / "fisher.safetensors").is_file():
            continue
        entries[path.name] = PoolEntry(read_expert(path), read_tensors(path / "fisher.safetensors"))
    return entries


def task_graph(folder: Path) -> networkx.Graph:
    """A complete graph over a pool; edges carry `similarity` in [0, 1].

    Raises:
        ExpertError: fewer than two experts.
    """
    entries = read_pool(folder)
    if len(entries) < 2:
        raise ExpertError(
            f"{folder}: {len(entries)} experts with a task embedding; a task graph needs two, train more with pidep tune --pool"
        )
    graph = networkx.Graph()
    for name, entry in entries.items():
        graph.add_node(name, digest=entry.expert.digest, labels=len(entry.expert.labels))
    names = sorted(entries)
    for index, left in enumerate(names):
        for right in names[index + 1 :]:
            graph.add_edge(left, right, similarity=similarity(entries[left].embedding, entries[right].embedding))
    return graph
