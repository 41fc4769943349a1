"""`pidep import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["adopt"]


def adopt(
    folder: Annotated[Path, typer.Argument(help="Folder written by peft's save_pretrained (LoRA, prompt or prefix tuning).")],
    task: Annotated[str, typer.Option(help="Task YAML or packaged task it was trained for.")],
    out: Annotated[Path, typer.Option(help="Expert folder to write.")],
    name: Annotated[str | None, typer.Option(help="Name of the expert; the task's name when absent.")] = None,
    backbone: Annotated[str, typer.Option(help="Backbone it was trained on.")] = "minilm",
) -> None:
    """Take over an adapter trained by PEFT: checks that it fits the backbone, adds labels and digests."""
    from pidep.tuning.adopt import adopt as run

    expert = run(folder, task=task, out=out, name=name, backbone=backbone)
    typer.echo(f"{out}  {expert.digest}")
