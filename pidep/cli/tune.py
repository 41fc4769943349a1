"""`pidep tune`."""

from __future__ import annotations

from pathlib import Path

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.cli.progress import progress
from pidep.tuning.settings import RunSettings, TuneSettings

__all__ = ["tune"]


@options(TuneSettings, RunSettings, yaml=True)
def tune(settings: TuneSettings, where: RunSettings, json: Json = False) -> None:
    """Train an expert for a task and interpolate it with its neighbours.

    Trains the task's own expert, finds the tasks of the pool whose experts help, interpolates these
    experts with it, and measures the result on the test rows. Writes a run folder.
    """
    from pidep.similarity.estimate_names import ESTIMATES, how_text
    from pidep.similarity.learned import COVERAGE
    from pidep.similarity.learned_text import points_interval
    from pidep.tuning.priors_sentence import priors_sentence
    from pidep.tuning.run_folder import METHODS
    from pidep.tuning.tune import tune as run
    from pidep.tuning.under_floors import under_sentence

    with progress() as shown:
        result = run(
            settings,
            where.out or Path("runs") / Path(settings.task).stem,
            resume=where.resume,
            overwrite=where.overwrite,
            on_step=shown.step,
        )
    if json:
        render.as_json(result.to_json())
        return
    if result.metrics:
        rows = [[METHODS[key], f"{value:.4f}"] for key, value in result.metrics.items()]
        title = f"{result.name}: {result.metric} on the test split"
        render.table(title, ["model", result.metric], rows)
    else:
        typer.echo(f"{result.name}: the test rows have no labels, so nothing was measured")
    if told := under_sentence(result.metric, result.metrics):
        typer.echo(f"{result.name}: {told}")
    if result.class_priors is not None and result.class_priors.source != "training":
        typer.echo(f"class priors: {priors_sentence(result.class_priors.to_json())}")
    if result.neighbours:
        by = str(result.neighbours_by)
        columns = ["task", ESTIMATES[by]]
        rows = [[near.name, f"{near.similarity:.4f}"] for near in result.neighbours]
        if result.predicted:
            columns.append(f"{COVERAGE:.0%} interval, in points")
            for row in rows:
                row.append(points_interval(result.predicted[row[0]]))
        render.table(f"neighbours, {how_text(by)}", columns, rows)
    typer.echo(f"{result.run}  {result.digest}")
