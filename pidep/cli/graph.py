"""`pidep graph`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.cli.progress import progress
from pidep.similarity.settings import GraphSettings

if TYPE_CHECKING:
    from pidep.similarity.measures import SiteAgreement
    from pidep.similarity.pool import Explanation

__all__ = ["graph"]

SITES_SHOWN = 3


@options(GraphSettings)
def graph(settings: GraphSettings, json: Json = False) -> None:
    """Show which tasks of a pool are similar, and why."""
    if settings.explain is not None:
        _explain(settings.pool, settings.explain, settings.top_k, json=json)
        return
    import networkx

    from pidep.similarity.graph_files import write_graph

    with progress(logs=True):
        found = write_graph(settings)
    if json:
        render.as_json(networkx.node_link_data(found, edges="edges"))
    elif "top_k" in found.graph:
        _nearest_table(settings.pool, found, found.graph["top_k"])
    else:
        names = sorted(found)
        rows = [[left, *(_similarity(found, left, right) for right in names)] for left in names]
        render.table(f"task similarity in {settings.pool}", ["task", *names], rows)


def _similarity(found: Any, left: str, right: str) -> str:
    return "" if left == right else f"{found.edges[left, right]['similarity']:.4f}"


def _nearest_table(pool: Path, found: Any, top_k: int) -> None:
    rows = []
    for name in sorted(found):
        # An edge exists where either task is a neighbour of the other, so a task can have more
        # than top_k edges. Its own neighbours are the most similar ones.
        near = sorted(found[name].items(), key=lambda item: (-item[1]["similarity"], item[0]))
        cells = [f"{other}  {edge['similarity']:.4f}" for other, edge in near[:top_k]]
        rows.append([name, *cells, *[""] * (top_k - len(cells))])
    render.table(f"most similar tasks in {pool}", ["task", *map(str, range(1, top_k + 1))], rows)


def _explain(pool: Path, task: str, top_k: int | None, *, json: bool) -> None:
    from pidep.similarity.pool import DEFAULT_TOP_K, explain_task

    found = explain_task(pool, task, top_k=top_k or DEFAULT_TOP_K)
    if json:
        render.as_json({"task": task, "neighbours": [_as_json(one) for one in found]})
        return
    rows = [
        [
            one.neighbour.name,
            f"{one.neighbour.similarity:.4f}",
            _sites(one.sites[:SITES_SHOWN]),
            _sites(one.sites[::-1][:SITES_SHOWN]),
        ]
        for one in found
    ]
    columns = ["task", "similarity", "agrees most at", "agrees least at"]
    render.table(f"neighbours of {task} in {pool}", columns, rows)


def _as_json(one: Explanation) -> dict[str, Any]:
    sites = {site.site: site.similarity for site in one.sites}
    return {"name": one.neighbour.name, "similarity": one.neighbour.similarity, "sites": sites}


def _sites(agreements: list[SiteAgreement]) -> str:
    return "\n".join(f"{agreement.similarity:.4f} {agreement.site}" for agreement in agreements)
