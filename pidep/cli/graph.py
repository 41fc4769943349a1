"""`pidep graph`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pidep.cli import render
from pidep.errors import UsageError

if TYPE_CHECKING:
    from pidep.similarity.measures import SiteAgreement
    from pidep.similarity.pool import Explanation

__all__ = ["graph"]

SITES_SHOWN = 3


def graph(
    pool: Annotated[Path, typer.Argument(help="Folder of experts with task embeddings.")],
    explain: Annotated[str | None, typer.Option(metavar="TASK", help="Say at which sites this task and its neighbours agree.")] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Neighbours of each task. Default: all pairs up to 50 tasks, 3 above; 3 to explain.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Write the graph as a picture.")] = None,
    graphml: Annotated[Path | None, typer.Option(help="Write the graph as GraphML.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON (the graph as node-link).")] = False,
) -> None:
    """Show which tasks of a pool are alike, and why."""
    if explain is not None:
        if png is not None or graphml is not None:
            raise UsageError("--explain: is about one task; --png and --graphml draw the whole graph, run them without it")
        _explain(pool, explain, top_k, json=json)
        return
    import networkx

    from pidep.similarity.pool import task_graph

    _check_target("--png", png, (".png",))
    _check_target("--graphml", graphml, (".graphml", ".xml"))

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
        rows = [[left, *("" if left == right else f"{found.edges[left, right]['similarity']:.4f}" for right in names)] for left in names]
        render.table(f"task similarity in {pool}", ["task", *names], rows)


def _check_target(flag: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written, before anything is."""
    from pidep.files.atomic_write import check_place

    if path is None:
        return
    if path.suffix.lower() not in suffixes or path.is_dir():
        raise UsageError(f"{flag} {path}: expected a file that ends in {' or '.join(suffixes)}")
    check_place(path.parent, flag)


def _nearest_table(pool: Path, found: Any, top_k: int) -> None:
    rows = []
    for name in sorted(found):
        # a task may be among the nearest of one that is not among its own: those edges fall to the end
        near = sorted(found[name].items(), key=lambda item: (-item[1]["similarity"], item[0]))[:top_k]
        rows.append([name, *(f"{other}  {edge['similarity']:.4f}" for other, edge in near), *[""] * (top_k - len(near))])
    render.table(f"most similar tasks in {pool}", ["task", *map(str, range(1, top_k + 1))], rows)


def _explain(pool: Path, task: str, top_k: int | None, *, json: bool) -> None:
    from pidep.similarity.pool import DEFAULT_TOP_K, explain_task

    found = explain_task(pool, task, top_k=top_k or DEFAULT_TOP_K)
    if json:
        render.as_json({"task": task, "neighbours": [_as_json(one) for one in found]})
        return
    rows = [
        [one.neighbour.name, f"{one.neighbour.similarity:.4f}", _sites(one.sites[:SITES_SHOWN]), _sites(one.sites[::-1][:SITES_SHOWN])]
        for one in found
    ]
    render.table(f"why {task}'s neighbours in {pool} are its neighbours", ["task", "similarity", "agrees most at", "agrees least at"], rows)


def _as_json(one: Explanation) -> dict[str, Any]:
    sites = {site.site: site.similarity for site in one.sites}
    return {"name": one.neighbour.name, "similarity": one.neighbour.similarity, "sites": sites}


def _sites(agreements: list[SiteAgreement]) -> str:
    return "\n".join(f"{agreement.similarity:.4f} {agreement.site}" for agreement in agreements)
