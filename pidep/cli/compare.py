"""`pidep compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.cli.progress import progress
from pidep.lab.compare_summary import MethodScores, Summary
from pidep.lab.settings import CompareSettings, GridSettings

if TYPE_CHECKING:
    pass

__all__ = ["compare", "draw_tables"]

NAMES = {
    "backbone": "bare backbone",
    "own": "own expert",
    "own_tuned": "own, rate chosen",
    "bitfit": "BitFit",
    "full": "full fine-tuning",
    "uniform": "uniform mixture",
    "uniform_outputs": "uniform, outputs",
    "joint": "joint training",
    "peft_linear": "PEFT linear",
    "peft_svd": "PEFT svd",
    "peft_cat": "PEFT cat",
    "lorahub": "LoraHub",
    "pi": "π",
    "pi_trial": "π, by trial",
}


@options(CompareSettings, GridSettings, yaml=True)
def compare(settings: CompareSettings, grid: GridSettings, json: Json = False) -> None:
    """Measure π-Tuning against its baselines on the same rows and seeds.

    Each task is the target once and the other tasks help it. Every method has the same rows, seeds
    and steps. The grid continues cell by cell where an earlier run stopped.
    """
    # Imported after the checks: torch takes seconds, and a wrong option should not wait for it.
    from pidep.backbones.load import load_backbone
    from pidep.files.atomic_write import check_place
    from pidep.lab.compare import compare as run
    from pidep.lab.compare_grid import Grid

    check_place(grid.out, "`out`")
    cells = Grid(settings, load_backbone(settings.backbone, device=settings.device))
    with progress() as shown:
        result = run(cells, grid, on_cell=shown.cell)
    if json:
        render.as_json(result.to_json())
        return
    if result.cells:
        draw_tables(result.summary)
    if result.missing:
        typer.echo(
            f"{result.missing} of {result.missing + len(result.cells)} cells are not measured yet"
        )
    typer.echo(str(result.out))


def draw_tables(summary: Summary) -> None:
    """Print a table for each column of the grid: methods down, tasks across, mean ± sd in %."""
    for kind, shots in dict.fromkeys((row.kind, row.shots) for row in summary.runs):
        here = [row for row in summary.runs if (row.kind, row.shots) == (kind, shots)]
        tasks = list(dict.fromkeys(row.task for row in here))
        means = {
            row.method: row.mean
            for row in summary.averages
            if (row.kind, row.shots) == (kind, shots)
        }
        cells = {(row.method, row.task): _mean_and_sd(row) for row in here}
        seeds = max(len(row.scores) for row in here)
        column = f"{shots} shots a label" if shots else "full data"
        title = f"{kind}, {column}, {seeds} {'seed' if seeds == 1 else 'seeds'}"
        rows = [
            [NAMES[name], *(cells.get((name, task), "") for task in tasks), f"{100 * mean:.1f}"]
            for name, mean in means.items()
        ]
        render.table(title, ["method", *tasks, "average"], rows)
    for lost in summary.losing:
        column = f"{lost.kind}, {lost.task}, {lost.shots or 'full'}"
        difference = f"{100 * lost.difference:+.1f}"
        typer.echo(f"π loses: {column}: {difference} against {NAMES[lost.against]}")


def _mean_and_sd(row: MethodScores) -> str:
    mean = f"{100 * row.mean:.1f}"
    return mean if row.sd is None else f"{mean} ± {100 * row.sd:.1f}"
