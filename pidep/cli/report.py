"""`pidep report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render
from pidep.cli.options import OUTPUT, Json

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of pidep tune.")],
    pool: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Folder of the helpers' experts. Without it, the run's own pool."
        ),
    ] = None,
    path: Annotated[
        bool,
        typer.Option(
            "--path",
            help="Also measure the loss along the lines from the own expert to the others.",
        ),
    ] = False,
    no_evaluate: Annotated[
        bool,
        typer.Option("--no-evaluate", help="Load no backbone. Leaves out the confusion matrix."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Page to write. Without it, report.html in the run folder.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write a self-contained HTML page about a run."""
    from pidep.lab.report import write_report

    with render.progress() as on_step:
        found = write_report(
            run, out, pool=pool, evaluate=not no_evaluate, paths=path, on_step=on_step
        )
    if json:
        render.as_json(found.to_json())
        return
    walked = found.evaluation and found.evaluation.paths
    if walked:
        render.table(
            f"loss from the own expert to …, {walked.num_rows} {walked.rows} rows",
            ["to", "t = 0", "t = 1", "lowest", "at t", "barrier"],
            [
                [
                    line.end,
                    f"{line.points[0].loss:.4f}",
                    f"{line.points[-1].loss:.4f}",
                    f"{line.best.loss:.4f}",
                    f"{line.best.t:.1f}",
                    f"{line.barrier:.4f}",
                ]
                for line in walked.found
            ],
        )
    typer.echo(f"{found.out}  {found.num_bytes / 1000:.0f} kB")
