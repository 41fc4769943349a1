"""`pidep graph`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pidep.cli import render
from pidep.cli.options import OUTPUT, Json
from pidep.errors import UsageError

if TYPE_CHECKING:
    from pidep.similarity.measures import SiteAgreement
    from pidep.similarity.pool import Explanation

__all__ = ["graph"]

SITES_SHOWN = 3


def graph(
    pool: Annotated[
        Path, typer.Argument(metavar="POOL", help="Folder of experts with task embeddings.")
    ],
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="TASK", help="List the sites where this task and its neighbours agree."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Neighbours shown of each task. Without it, all pairs up to 50 tasks, else 3.",
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Draw the graph as a picture.", rich_help_panel=OUTPUT),
    ] = None,
    graphml: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write the graph as GraphML.", rich_help_panel=OUTPUT),
    ] = None,
    json: Json = False,
) -> None:
    """Show which tasks of a pool are similar, and why."""
    if explain is not None:
        if png is not None or graphml is not None:
            raise UsageError(
                "`explain`: is about one task; `png` and `graphml` draw the whole graph, "
                "run them without it"
            )
        _explain(pool, explain, top_k, json=json)
        return
    import networkx

    from pidep.similarity.pool import task_graph

    _check_target("`png`", png, (".png",))
    _check_target("`graphml`", graphml, (".graphml", ".xml"))

    found = task_graph(pool, top_k=top_k)
    if png is not None:
        from pidep.similarity.picture import draw

        draw(found, png)
    if graphml is not None:
        graphml.parent.mkdir(parents=True, exist_ok=True)
        networkx.write_graphml(found, graphml)
    if json:
        render.as_json(networkx.node_link_data(found, edges="edges"))
    elif "top_k" in found.graph:
        _nearest_table(pool, found, found.graph["top_k"])
    else:
        names = sorted(found)
        rows = [[left, *(_similarity(found, left, right) for right in names)] for left in names]
        render.table(f"task similarity in {pool}", ["task", *names], rows)


def _similarity(found: Any, left: str, right: str) -> str:
    return "" if left == right else f"{found.edges[left, right]['similarity']:.4f}"


def _check_target(setting: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written, before anything is written."""
    from pidep.files.atomic_write import check_place

    if path is None:
        return
    if path.suffix.lower() not in suffixes or path.is_dir():
        raise UsageError(f"{setting} {path}: expected a file that ends in {' or '.join(suffixes)}")
    check_place(path.parent, setting)


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
