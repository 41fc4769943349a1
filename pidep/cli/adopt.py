"""`pidep import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli.options import OUTPUT

__all__ = ["adopt"]


def adopt(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder written by PEFT's save_pretrained (LoRA, prompt or prefix tuning).",
        ),
    ],
    task: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="Task file or packaged task the adapter was trained for."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="PATH", help="Expert folder to write.", rich_help_panel=OUTPUT),
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Name of the expert. Without it, the task's name."),
    ] = None,
    backbone: Annotated[
        str, typer.Option(metavar="TEXT", help="Backbone the adapter was trained on.")
    ] = "minilm",
) -> None:
    """Turn an adapter trained by PEFT into an expert.

    Checks that the adapter fits the backbone, and adds labels and digests.
    """
    from pidep.tuning.import_peft import import_peft as run

    expert = run(folder, task=task, out=out, name=name, backbone=backbone)
    typer.echo(f"{out}  {expert.digest}")
