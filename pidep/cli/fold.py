"""`pidep fold`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render
from pidep.cli.options import OUTPUT, Json

__all__ = ["fold"]


def fold(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder or expert folder of a LoRA.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="PATH", help="Expert folder to write.", rich_help_panel=OUTPUT)
    ],
    rank: Annotated[int, typer.Option(min=1, metavar="N", help="Rank of the LoRA to write.")],
    max_error: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="X", help="Refuse a larger relative error of any site's update."
        ),
    ] = 0.1,
    json: Json = False,
) -> None:
    """Compress a mixture into one LoRA of a small rank.

    A mixture of LoRAs is a LoRA whose rank is the sum of theirs. This one is truncated by SVD, and
    the error of each site is reported.
    """
    from pidep.tuning.fold import fold_expert

    result = fold_expert(run, out, rank=rank, max_error=max_error)
    if json:
        render.as_json(result.to_json())
        return
    rows = [[site, f"{error:.2e}"] for site, error in result.errors.items()]
    render.table(f"{out}  {result.digest}", ["site", "relative error"], rows)
