"""`pidep report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="Run folder of pidep tune.")],
    pool: Annotated[Path | None, typer.Option(help="Folder of the helpers' experts. Default: the run's own pool.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page; report.html in the run folder when absent.")] = None,
    path: Annotated[bool, typer.Option("--path", help="Also walk the lines from the own expert to each helper and to π.")] = False,
    no_evaluate: Annotated[bool, typer.Option("--no-evaluate", help="Load no backbone; leaves the confusion matrix out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was computed as JSON.")] = False,
) -> None:
    """Write one self-contained HTML page about a run."""
    from pidep.lab.report import write_report

    with render.progress() as on_step:
        found = write_report(run, out, pool=pool, evaluate=not no_evaluate, paths=path, on_step=on_step)
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
