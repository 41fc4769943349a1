"""`pidep predict`."""

from __future__ import annotations

import json as jsonlib

import typer

from pidep.cli.options import options
from pidep.cli.progress import progress
from pidep.tuning.settings import PredictSettings

__all__ = ["predict"]

SHOWN = 20
"""Wrong rows that are listed; the others are counted."""


@options(PredictSettings)
def predict(settings: PredictSettings) -> None:
    """Answer the rows of a file offline.

    Reads the rows as the task's data was read, and writes label, scores and digest of each row.
    Needs no server and no export. Wrong rows are listed, and nothing is written then.
    """
    from pidep.tuning.predict_file import WrongRows, predict_file

    try:
        with progress(logs=True):
            found = predict_file(settings)
    except WrongRows as error:
        for fault in error.faults[:SHOWN]:
            typer.echo(fault, err=True)
        if len(error.faults) > SHOWN:
            typer.echo(f"and {len(error.faults) - SHOWN} more", err=True)
        raise
    if settings.out is not None:
        typer.echo(f"{settings.out}  {len(found.answers)} rows  {found.digest}")
        return
    for record in found.records():
        typer.echo(jsonlib.dumps(record, ensure_ascii=False))
