"""`pidep graph` as a function: the task graph of a pool, also as a picture and as GraphML."""

from __future__ import annotations

from pathlib import Path

import networkx

from pidep.errors import UsageError
from pidep.files.atomic_write import check_place
from pidep.similarity.pool import task_graph
from pidep.similarity.settings import GraphSettings

__all__ = ["write_graph"]


def write_graph(settings: GraphSettings) -> networkx.Graph:
    """The task graph of the pool; written to `png` and `graphml` where they are given.

    Raises:
        UsageError: a file cannot be written; nothing was written.
        ExpertError: fewer than two experts, or experts that cannot be compared.
    """
    _check_file("`png`", settings.png)
    _check_file("`graphml`", settings.graphml)
    graph = task_graph(settings.pool, top_k=settings.top_k)
    if settings.png is not None:
        from pidep.similarity.picture import draw

        draw(graph, settings.png)
    if settings.graphml is not None:
        settings.graphml.parent.mkdir(parents=True, exist_ok=True)
        networkx.write_graphml(graph, settings.graphml)
    return graph


def _check_file(setting: str, path: Path | None) -> None:
    """Refuse a file that cannot be written, before anything is written."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{setting} {path}: is a folder; give a file")
    check_place(path.parent, setting)
