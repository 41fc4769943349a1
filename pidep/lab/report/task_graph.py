"""The picture of the task graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pidep.lab.report.figures import short
from pidep.lab.report.neighbourhood import Neighbourhood
from pidep.lab.report.svg import MUTED, PAPER, SERIES, SURFACE, draw

__all__ = ["graph"]

WIDEST = 5.0
"""Width of the line between the most similar tasks, in points."""
NEAREST = 3
LABELLED = 6
"""Tasks up to which the graph draws every pair with its number; above, only the `NEAREST`."""


def graph(near: Neighbourhood) -> str:
    """The task graph on a circle, similar tasks next to each other."""
    count = len(near.names)
    pairs = near.nearest(NEAREST if count > LABELLED else count)
    weights = {pair: float(near.similarity[pair]) for pair in pairs}

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        # A circle and no force layout: the same tasks are always in the same places.
        turn = [2 * math.pi * row / count + math.pi / 2 for row in range(count)]
        places = [(math.cos(angle), math.sin(angle)) for angle in turn]
        own = near.names.index(near.target)
        _lines(axes, places, weights, own, numbers=count <= LABELLED)
        for row, (name, (x, y)) in enumerate(zip(near.names, places, strict=True)):
            mine = row == own
            face = SERIES[0] if mine else SURFACE
            axes.plot(x, y, "o", markersize=11, color=face, markeredgecolor=SERIES[0], zorder=3)
            side = "center" if abs(x) < 0.2 else ("left" if x > 0 else "right")
            weight = "bold" if mine else "normal"
            axes.text(
                *(1.13 * x, 1.13 * y, short(name)),
                ha=side,
                va="center",
                fontweight=weight,
                zorder=4,
            )
        axes.set(xlim=(-1.7, 1.7), ylim=(-1.3, 1.3), aspect="equal")
        axes.set_axis_off()
        figure.legend(
            handles=_legend_of_graph(near.target, list(weights.values())),
            loc="outside lower center",
            ncols=2,
        )

    return draw(
        "graph",
        f"Task graph of {count} tasks: the width of a line is in proportion to the similarity",
        paint,
        width=6.4,
        height=4.9 if count <= LABELLED else 6.3,
    )


def _lines(
    axes: Any,
    places: Sequence[tuple[float, float]],
    weights: Mapping[tuple[int, int], float],
    own: int,
    *,
    numbers: bool,
) -> None:
    """A line for each pair of tasks; the target's are drawn last, above the others."""
    widest = max(weights.values())
    for (left, right), weight in sorted(weights.items(), key=lambda item: own in item[0]):
        (x0, y0), (x1, y1) = places[left], places[right]
        color = SERIES[0] if own in (left, right) else MUTED
        width = _line_width(weight, widest)
        axes.plot([x0, x1], [y0, y1], color=color, linewidth=width, alpha=0.65, zorder=1)
        if numbers:
            # Away from the centre, where the diagonals of a circle meet.
            axes.text(
                *(0.62 * x0 + 0.38 * x1, 0.62 * y0 + 0.38 * y1, f"{weight:.3f}"),
                ha="center",
                va="center",
                fontsize=8,
                color=MUTED,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.2},
                zorder=2,
            )


def _line_width(similarity: float, widest: float) -> float:
    """In proportion: a task half as similar has a line half as wide."""
    return WIDEST * similarity / widest if widest > 0 else 0.0


def _legend_of_graph(target: str, similarities: Sequence[float]) -> list[Any]:
    from matplotlib.lines import Line2D

    look: Any = {"linestyle": "none", "marker": "o", "markersize": 8, "markeredgecolor": SERIES[0]}
    low, high = min(similarities), max(similarities)
    lines = [
        Line2D(
            [], [], color=MUTED, linewidth=_line_width(value, high), label=f"{what}: {value:.3f}"
        )
        for what, value in (("least similarity", low), ("greatest similarity", high))
    ]
    return [
        Line2D([], [], color=SERIES[0], label=f"target: {short(target)}", **look),
        Line2D([], [], color=SURFACE, label="task of the pool", **look),
        *(lines if high > low else lines[:1]),
    ]
