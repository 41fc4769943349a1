"""`pidep graph`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render

__all__ = ["graph"]


def graph(
    pool: Annotated[Path, typer.Argument(help="Folder of experts with task embeddings.")],
    png: Annotated[Path | None, typer.Option(help="Write the graph as a picture.")] = None,
    graphml: Annotated[Path | None, typer.Option(help="Write the graph as GraphML.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the graph as JSON (node-link).")] = False,
) -> None:
    """Show which tasks of a pool are alike."""
    import networkx

    from pidep.similarity.pool import task_graph

    found = task_graph(pool)
    if png is not None:
        from pidep.similarity.picture import draw

        draw(found, png)
    if graphml is not None:
        graphml.parent.mkdir(parents=True, exist_ok=True)
        networkx.write_graphml(found, graphml)
    if json:
        render.as_json(networkx.node_link_data(found, edges="edges"))
        return
    names = sorted(found)
    rows = [[left, *("" if left == right else f"{found.edges[left, right]['similarity']:.4f}" for right in names)] for left in names]
    render.table(f"task similarity in {pool}", ["task", *names], rows)
