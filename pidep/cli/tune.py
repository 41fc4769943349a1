"""`pidep tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render
from pidep.cli.options import OUTPUT, Json, options
from pidep.cli.progress import progress
from pidep.tuning.settings import TuneSettings

__all__ = ["tune"]


@options(TuneSettings, yaml=True)
def tune(
    settings: TuneSettings,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder to write. Without it, runs/<task>.",
            rich_help_panel=OUTPUT,
            metavar="PATH",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue from the run folder's checkpoint.", rich_help_panel=OUTPUT
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace another run in the run folder, and the pool's expert of this name.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Train an expert for a task and interpolate it with its neighbours.

    Trains the task's own expert, finds the most similar tasks in the pool, interpolates their
    experts with it, and measures the result on the test rows. Writes a run folder.
    """
    from pidep.tuning.run_folder import METHODS
    from pidep.tuning.tune import tune as run

    folder = out or Path("runs") / Path(settings.task).stem
    with progress() as shown:
        result = run(settings, folder, resume=resume, overwrite=overwrite, on_step=shown.step)
    if json:
        render.as_json(result.to_json())
        return
    if result.metrics:
        rows = [[METHODS[key], f"{value:.4f}"] for key, value in result.metrics.items()]
        title = f"{result.name}: {result.metric} on the test split"
        render.table(title, ["model", result.metric], rows)
    else:
        typer.echo(f"{result.name}: the test rows have no labels, so nothing was measured")
    if result.neighbours:
        rows = [[near.name, f"{near.similarity:.4f}"] for near in result.neighbours]
        render.table("nearest tasks", ["task", "similarity"], rows)
    typer.echo(f"{result.run}  {result.digest}")
