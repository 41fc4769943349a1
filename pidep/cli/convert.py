"""`pidep convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.cli.progress import progress
from pidep.deployment.settings import ConvertSettings

__all__ = ["convert"]


@options(ConvertSettings)
def convert(
    settings: ConvertSettings,
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS",
            help="Run folders or expert folders. Several share one graph; PEFT takes one.",
        ),
    ],
    json: Json = False,
) -> None:
    """Write experts for other programs: PEFT, or ONNX Runtime's own adapters.

    An expert that the other program does not have is refused by name. ONNX Runtime's answers are
    compared with PyTorch's before anything is written.
    """
    from pidep.deployment.convert import convert_runs

    with progress(logs=True):
        result = convert_runs(runs, settings)
    if json:
        render.as_json(result.to_json())
        return
    for name, digest in result.experts.items():
        typer.echo(f"{result.out}  {name}  {digest}")
