"""The figures of a report."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pidep.lab.report.neighbourhood import Neighbourhood
from pidep.lab.report.svg import INK, MUTED, PAPER, SERIES, draw
from pidep.tuning.run_folder import Alpha, Phase

if TYPE_CHECKING:
    from pidep.lab.report.evaluate import Paths, Predictions

__all__ = [
    "EQUAL",
    "NAMES_OF_PHASES",
    "alpha",
    "confusion",
    "curves",
    "most_off_uniform",
    "paths",
    "set_loss_axis",
    "short",
    "similarity",
]

Matrix = npt.NDArray[np.float64]
EMPTY, FULL = np.array([232, 238, 244]) / 255, np.array([23, 78, 130]) / 255
"""Ends of the ramp of every heat map."""
BELOW = np.array([134, 56, 8]) / 255
"""End of the ramp of negative values; as dark as `FULL`, so text has the same contrast."""
READ_LIGHT = 0.73
"""Shade from which white text has more contrast than black; both have 4.5 there."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
"""Lines differ in more than colour."""
ACROSS = 3
"""Most panels in a row; more would be too small to read."""
ANNOTATED = 12
"""Rows of a heat map up to which its cells show numbers."""
NAMED = 30
"""Labels up to which a confusion matrix names them."""
MARKED = 12
"""Points up to which a curve has marks."""
EQUAL = 5e-5
"""Differences of α from uniform that four digits do not show."""
NAMES_OF_PHASES = {
    "own": "own expert",
    "interpolation": "interpolation",
    "in_context": "own expert, in context",
    "joint": "joint training",
}


def curves(phases: Sequence[Phase]) -> str:
    """Loss, and held-out loss where there is one, of each phase."""

    def paint(figure: Any) -> None:
        panels = figure.subplots(1, len(phases), squeeze=False)[0]
        for axes, phase in zip(panels, phases, strict=True):
            steps = [entry.step for entry in phase.history]
            axes.plot(
                steps,
                [entry.loss for entry in phase.history],
                color=SERIES[0],
                # Many marks would hide the line; one point alone would be invisible without.
                marker="o" if len(steps) <= MARKED else "",
                markersize=3.5,
                label="training batch",
            )
            held = [
                (entry.step, entry.held_out)
                for entry in phase.history
                if entry.held_out is not None
            ]
            if held:
                axes.plot(
                    *zip(*held, strict=True),
                    color=SERIES[1],
                    linestyle="--",
                    marker="s",
                    markersize=3.5,
                    label="held-out rows",
                )
            axes.axvline(
                phase.best_step,
                color=MUTED,
                linewidth=0.8,
                linestyle=":",
                label=f"kept: step {phase.best_step}",
            )
            set_loss_axis(
                axes,
                [
                    value
                    for entry in phase.history
                    for value in (entry.loss, entry.held_out)
                    if value is not None
                ],
            )
            axes.set_title(NAMES_OF_PHASES.get(phase.name, phase.name))
            axes.set_xlabel("step")
            axes.set_ylabel("loss (nats a row)")
            axes.set_xlim(0, max(1, *steps) * 1.04)
            axes.locator_params(axis="x", integer=True)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)

    return draw(
        "curves",
        "Learning curves: loss by step for each phase",
        paint,
        width=max(5.0, 4.4 * len(phases)),
        height=3.5,
    )


def set_loss_axis(axes: Any, values: Sequence[float]) -> None:
    """Scale a loss axis from zero, or logarithmically if values differ by more than 50 times."""
    axes.grid(axis="y")
    if min(values) > 0 and max(values) / min(values) > 50:
        axes.set_yscale("log")
        axes.minorticks_off()
        # The default writes powers in mathematics, which is off: a label may hold dollars.
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(0, max(values) * 1.08 or 1)


def similarity(near: Neighbourhood) -> str:
    """Heat map of the similarities under a dendrogram of 1 − similarity."""
    from scipy.cluster.hierarchy import dendrogram  # type: ignore[import-untyped]

    count = len(near.names)
    low, high = near.span
    side = 2.0 + 0.5 * min(count, 6) + 0.24 * max(0, count - 6)

    def paint(figure: Any) -> None:
        tree, heat = figure.subplots(2, 1, sharex=True, height_ratios=(1, max(1.8, side / 1.6)))
        drawn = dendrogram(near.tree, no_plot=True)
        for xs, ys in zip(drawn["icoord"], drawn["dcoord"], strict=True):
            tree.plot([x / 10 - 0.5 for x in xs], ys, color=MUTED, linewidth=1.2)
        tree.set_ylim(0, float(near.tree[:, 2].max()) * 1.08 or 1)
        tree.spines["bottom"].set_visible(False)
        tree.tick_params(bottom=False, labelbottom=False)
        tree.set_ylabel("1 − similarity")
        shade = (
            (near.similarity - low) / (high - low)
            if high > low
            else np.full_like(near.similarity, 0.5)
        )
        _heat(
            heat,
            np.where(np.eye(count, dtype=bool), np.nan, shade),
            near.similarity,
            "{:.3f}",
            aspect="auto",
        )
        names = [short(name) for name in near.names]
        _ticks(heat, names, names)
        for label in [*heat.get_xticklabels(), *heat.get_yticklabels()]:
            if label.get_text() == short(near.target):
                label.set_fontweight("bold")
                label.set_color(INK)

    title = (
        f"Similarity of {count} tasks, from {low:.3f} to {high:.3f}, in the order of a dendrogram"
    )
    return draw("similarity", title, paint, width=side + 1.4, height=side + 1.2)


def most_off_uniform(found: Alpha) -> float:
    """The greatest distance of an α from its value in a uniform mixture."""
    uniform = 1 / len(found.experts)
    return max(
        (abs(weight - uniform) for weights in found.sites.values() for weight in weights),
        default=0.0,
    )


def alpha(found: Alpha) -> str:
    """α minus its uniform value, by layer and site.

    A panel for each expert, or one panel where layers have one site.
    """
    rows, columns, weights = _by_layer(found)
    most = max(most_off_uniform(found), EQUAL)
    off = weights - 1 / len(found.experts)
    # Enough digits that the greatest difference has two of its own.
    form = f"{{:+.{min(4, max(2, 1 - math.floor(math.log10(most))))}f}}"
    title = (
        f"α of {len(found.experts)} experts at {len(found.sites)} sites, up to {most:.4f} from "
        "uniform"
    )
    names = [short(name) for name in found.experts]

    def one_panel(figure: Any) -> None:
        axes = figure.subplots()
        _heat(axes, off[:, 0] / most, off[:, 0], form, aspect="auto")
        _ticks(axes, names, rows)

    def a_panel_each(figure: Any) -> None:
        panels = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
        for number, (axes, name) in enumerate(zip(panels, names, strict=False)):
            _heat(axes, off[:, :, number] / most, off[:, :, number], form, aspect="auto")
            _ticks(axes, columns, rows)
            axes.set_title(f"{name}, mean {found.mean[number]:.3f}", fontsize=9)
            axes.tick_params(axis="x", labelbottom=number + across >= len(names))
        for axes in panels[len(names) :]:
            axes.remove()

    if len(columns) == 1:
        return draw(
            "alpha", title, one_panel, width=2.2 + 0.8 * len(names), height=1.6 + 0.32 * len(rows)
        )
    across = min(ACROSS, len(names))
    down = math.ceil(len(names) / across)
    width = 1.0 + across * max(1.6, 0.55 * len(columns))
    return draw(
        "alpha", title, a_panel_each, width=width, height=1.4 + down * (0.5 + 0.3 * len(rows))
    )


def _by_layer(found: Alpha) -> tuple[list[str], list[str], npt.NDArray[np.float64]]:
    """Layers (rows), places in a layer (columns), and weights [rows, columns, K].

    A weight is NaN where a layer has no such place.
    """
    places = {}
    for site in found.sites:
        parts = re.fullmatch(r"(.*?)\.(\d+)(?:\.(.*))?", site)
        places[site] = (
            (f"{parts[1].rpartition('.')[2]} {parts[2]}", parts[3] or "") if parts else (site, "")
        )
    rows = sorted({row for row, _ in places.values()}, key=_by_number)
    columns = sorted({column for _, column in places.values()})
    tensor = np.full((len(rows), len(columns), len(found.experts)), np.nan)
    for site, (row, column) in places.items():
        tensor[rows.index(row), columns.index(column)] = found.sites[site]
    return rows, columns, tensor


def _by_number(row: str) -> tuple[str, int]:
    """Layer 10 after layer 9."""
    stem, _, number = row.rpartition(" ")
    return (stem, int(number)) if number.isdigit() else (row, 0)


def confusion(found: Predictions, labels: Sequence[str], *, name: str) -> str:
    """Counts, shaded by the share of the true label's rows."""
    count = len(labels)
    shares = found.counts / np.maximum(found.counts.sum(1, keepdims=True), 1)
    side = 1.9 + (0.75 * count if count <= ANNOTATED else 0.2 * min(count, NAMED))

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        _heat(axes, shares, found.counts.astype(np.float64), "{:.0f}", aspect="equal")
        if count <= NAMED:
            _ticks(axes, [short(label) for label in labels], [short(label) for label in labels])
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")

    return draw(
        name,
        f"Confusion matrix of {found.model} on the test rows",
        paint,
        width=side + 0.9,
        height=side + 0.4,
    )


def paths(found: Paths) -> str:
    """Loss and metric along every line from the own expert."""

    def paint(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for number, path in enumerate(found.found):
            look = {
                "color": SERIES[number % len(SERIES)],
                "linestyle": DASHES[number % len(DASHES)],
                "marker": "o",
                "markersize": 3,
            }
            ts = [point.t for point in path.points]
            left.plot(
                ts,
                [point.loss for point in path.points],
                label=f"own expert → {short(path.end)}",
                **look,
            )
            right.plot(ts, [point.metric for point in path.points], **look)
        for axes, title in (
            (left, "loss (nats a row)"),
            (right, found.found[0].metric.replace("_", " ")),
        ):
            axes.set_title(title)
            axes.set_xlabel("t: 0 own expert, 1 the other")
            axes.grid(axis="y")
            axes.margins(x=0.02)
        figure.legend(
            *left.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(4, len(found.found)),
        )

    return draw(
        "path", "Loss and metric along the lines between experts", paint, width=8.8, height=3.7
    )


def _heat(axes: Any, shade: Matrix, values: Matrix, form: str, *, aspect: str) -> None:
    """Cells shaded from -1 to 1, empty for NaN; with numbers where there are few cells."""
    known = ~np.isnan(shade)
    depth = np.nan_to_num(shade).clip(-1, 1)[..., None]
    colors = EMPTY + np.abs(depth) * (np.where(depth < 0, BELOW, FULL) - EMPTY)
    axes.imshow(np.dstack([colors, known.astype(np.float64)]), aspect=aspect)
    axes.set_xticks(np.arange(-0.5, shade.shape[1]), minor=True)
    axes.set_yticks(np.arange(-0.5, shade.shape[0]), minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=1.2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if max(shade.shape) > ANNOTATED:
        return
    for row, column in zip(*np.nonzero(known), strict=True):
        ink = "#ffffff" if abs(shade[row, column]) > READ_LIGHT else "#000000"
        axes.text(
            column,
            row,
            form.format(values[row, column]),
            ha="center",
            va="center",
            fontsize=8,
            color=ink,
        )


def _ticks(axes: Any, columns: Sequence[str], rows: Sequence[str]) -> None:
    wide = max(map(len, columns)) > 6 and len(columns) > 2
    axes.set_xticks(
        range(len(columns)),
        columns,
        rotation=40 if wide else 0,
        ha="right" if wide else "center",
        rotation_mode="anchor",
    )
    axes.set_yticks(range(len(rows)), rows)


def short(name: str, limit: int = 24) -> str:
    """A name on one line, cut, without characters that XML cannot hold."""
    line = "".join(letter if letter.isprintable() else " " for letter in name)
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
