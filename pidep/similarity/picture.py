"""The task graph as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx

from pidep.errors import UsageError

__all__ = ["draw"]

NAMED_UP_TO = 50
"""Tasks up to which names and figures are readable."""
WIDEST = 6.0
"""Width of the line between the most similar tasks, in points."""
DRAWN_UP_TO = 2000
"""Tasks up to which the layout takes seconds; its time is quadratic."""


def draw(graph: networkx.Graph, path: Path) -> None:
    """Write a PNG: nodes are tasks; width and label of an edge are its similarity.

    More than 50 tasks are drawn as dots, similar ones close together.

    Raises:
        UsageError: more than 2,000 tasks.
    """
    if len(graph) > DRAWN_UP_TO:
        raise UsageError(
            f"{path}: draws up to {DRAWN_UP_TO} tasks, the graph has {len(graph)}; write `graphml` "
            "for a program made for it"
        )
    # Imported here: a task graph without a picture needs no matplotlib.
    import matplotlib

    # A file is written, so no display is needed. Servers have none.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    named = len(graph) <= NAMED_UP_TO
    side = 6 + min(len(graph), NAMED_UP_TO) / 5
    figure, axes = pyplot.subplots(figsize=(side + 1, side), dpi=120)
    weights = [graph.edges[edge]["similarity"] for edge in graph.edges]
    most = max(weights) or 1.0
    layout = (
        networkx.circular_layout(graph)
        if named
        else networkx.spring_layout(graph, weight="similarity", seed=0)
    )
    look = (
        {"node_size": 2600, "node_color": "#dbe9f6", "edgecolors": "#2b6cb0"}
        if named
        else {"node_size": 8, "node_color": "#2b6cb0"}
    )
    networkx.draw_networkx_nodes(graph, layout, ax=axes, **look)
    # In proportion: a pair that is half as similar has a line half as wide.
    widest = WIDEST if named else WIDEST / 10
    widths = [widest * weight / most for weight in weights]
    networkx.draw_networkx_edges(
        graph, layout, ax=axes, width=widths, edge_color="#2b6cb0", alpha=0.6
    )
    if named:
        _names_and_legend(graph, layout, axes, weights)
    axes.set_title("Task graph: normalised cosine of the tasks' Fisher embeddings")
    axes.set_axis_off()
    axes.margins(0.2 if named else 0.02)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def _names_and_legend(
    graph: networkx.Graph, layout: Any, axes: Any, weights: Sequence[float]
) -> None:
    """Names of the tasks, similarities, and what the widths mean."""
    from matplotlib.lines import Line2D

    most = max(weights) or 1.0
    axes.legend(
        handles=[
            Line2D(
                [],
                [],
                color="#2b6cb0",
                alpha=0.6,
                linewidth=WIDEST * weight / most,
                label=f"{what}: {weight:.3f}",
            )
            for what, weight in (
                ("least similarity", min(weights)),
                ("greatest similarity", max(weights)),
            )
        ],
        loc="lower center",
        bbox_to_anchor=(0.5, -0.06),
        ncols=2,
        frameon=False,
    )
    networkx.draw_networkx_labels(graph, layout, ax=axes, font_size=10)
    labels = {edge: f"{graph.edges[edge]['similarity']:.3f}" for edge in graph.edges}
    networkx.draw_networkx_edge_labels(
        graph, layout, edge_labels=labels, ax=axes, font_size=8, label_pos=0.35
    )
