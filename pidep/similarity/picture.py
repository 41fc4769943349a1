"""The task graph as a picture."""

from __future__ import annotations

from pathlib import Path

import networkx

__all__ = ["draw"]


def draw(graph: networkx.Graph, path: Path) -> None:
    """A PNG: nodes are tasks, an edge's width and label its similarity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 6), dpi=120)
    weights = [graph.edges[edge]["similarity"] for edge in graph.edges]
    low, span = min(weights), (max(weights) - min(weights)) or 1.0
    strength = [(weight - low) / span for weight in weights]
    layout = networkx.circular_layout(graph)
    networkx.draw_networkx_nodes(graph, layout, ax=axes, node_size=2600, node_color="#dbe9f6", edgecolors="#2b6cb0")
    networkx.draw_networkx_labels(graph, layout, ax=axes, font_size=10)
    networkx.draw_networkx_edges(graph, layout, ax=axes, width=[0.8 + 5 * value for value in strength], edge_color="#2b6cb0", alpha=0.6)
    labels = {edge: f"{graph.edges[edge]['similarity']:.3f}" for edge in graph.edges}
    networkx.draw_networkx_edge_labels(graph, layout, edge_labels=labels, ax=axes, font_size=8, label_pos=0.35)
    axes.set_title("Task graph: normalised cosine of the tasks' Fisher embeddings")
    axes.set_axis_off()
    axes.margins(0.2)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
