"""`pidep fold`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render

__all__ = ["fold"]


def fold(
    run: Annotated[Path, typer.Argument(help="Run folder or expert folder (LoRA).")],
    out: Annotated[Path, typer.Option(help="Expert folder to write.")],
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA to write.")],
    max_error: Annotated[float, typer.Option(min=0, max=1, help="Largest relative error of an update that is accepted.")] = 0.1,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fold a mixture's LoRA (rank Σ rank_k) into one of a small rank by truncated SVD; the error is reported, too much is refused."""
    from pidep.tuning.fold import shrink

    result = shrink(run, out, rank=rank, max_error=max_error)
    if json:
        render.as_json(result.to_json())
        return
    render.table(f"{out}  {result.digest}", ["site", "relative error"], [[site, f"{error:.2e}"] for site, error in result.errors.items()])
