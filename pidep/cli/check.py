"""`pidep check`."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from pidep.cli import render
from pidep.cli.options import OUTPUT, Json, options
from pidep.tuning.settings import CheckSettings

if TYPE_CHECKING:
    from pidep.tasks.check import Problem, TaskCheck

__all__ = ["check"]


@options(CheckSettings)
def check(
    settings: CheckSettings,
    show: Annotated[
        int,
        typer.Option(
            help="Problems shown of each kind, at most. 0 for all.",
            rich_help_panel=OUTPUT,
            metavar="N",
            min=0,
            show_default=False,
        ),
    ] = 10,
    json: Json = False,
) -> None:
    """List every problem of a task's data before any training.

    Reads all rows and names each problem with its file, row and line: unknown labels, missing and
    empty values, wrong types, equal rows, rows that are training and test rows, labels without
    rows, and texts that are cut. The exit code is 1 when there are errors.
    """
    from pidep.tuning.check import check as run

    found = run(settings)
    if json:
        render.as_json(found.to_json())
    else:
        _print(found, show)
    if found.errors:
        raise typer.Exit(1)


def _print(found: TaskCheck, show: int) -> None:
    from pidep.inputs.places import KINDS

    def group(problem: Problem) -> tuple[str, int]:
        return problem.severity, KINDS.index(problem.kind)

    for (severity, _), problems in groupby(sorted(found.problems, key=group), key=group):
        several = list(problems)
        for problem in several[: show or None]:
            typer.echo(f"{severity}: {problem}")
        if show and len(several) > show:
            typer.echo(f"  and {len(several) - show:,} more like these; --show 0 lists all")
    if found.labels:
        width = max(len("label"), *map(len, found.labels))
        typer.echo(f"{'label'.ljust(width)}  {'train':>7}  {'test':>7}")
        for label, counts in found.labels.items():
            typer.echo(f"{label.ljust(width)}  {counts['train']:>7,}  {counts['test']:>7,}")
    if found.cut_texts is not None:
        typer.echo(str(found.cut_texts))
    sums = {
        "training row": found.rows["train"],
        "test row": found.rows["test"],
        "error": found.errors,
        "warning": found.warnings,
    }
    told = (f"{count:,} {what}{'' if count == 1 else 's'}" for what, count in sums.items())
    typer.echo(f"{found.task}: {', '.join(told)}")
