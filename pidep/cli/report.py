"""`pidep report`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.cli.progress import progress
from pidep.lab.settings import ReportSettings

if TYPE_CHECKING:
    from pidep.lab.report.evaluate import Paths

__all__ = ["report"]


@options(ReportSettings)
def report(settings: ReportSettings, json: Json = False) -> None:
    """Write a self-contained HTML page about a run."""
    from pidep.lab.report import write_report

    with progress(logs=True) as shown:
        found = write_report(settings, on_step=shown.step)
    if json:
        render.as_json(found.to_json())
        return
    if found.evaluation and found.evaluation.paths:
        _draw_paths(found.evaluation.paths)
    typer.echo(f"{found.out}  {found.num_bytes / 1000:.0f} kB")


def _draw_paths(paths: Paths) -> None:
    rows = [
        [
            line.end,
            f"{line.points[0].loss:.4f}",
            f"{line.points[-1].loss:.4f}",
            f"{line.best.loss:.4f}",
            f"{line.best.t:.1f}",
            f"{line.barrier:.4f}",
        ]
        for line in paths.found
    ]
    title = f"loss from the own expert to …, {paths.num_rows} {paths.rows} rows"
    render.table(title, ["to", "t = 0", "t = 1", "lowest", "at t", "barrier"], rows)
