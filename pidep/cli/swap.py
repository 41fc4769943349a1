"""`pidep swap`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.deployment.settings import SwapSettings

__all__ = ["swap"]


@options(SwapSettings)
def swap(
    settings: SwapSettings,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name under which the expert is served.")
    ],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or expert folder.")],
    json: Json = False,
) -> None:
    """Replace an expert on a running server.

    Publishes a new version of the expert. Returns when the server answers with its digest.
    """
    from pidep.experts.mixture_folder import read_served
    from pidep.experts.resolve import resolve_served_folder
    from pidep.serving.swap import swap_expert

    expert = read_served(resolve_served_folder(run))
    result = swap_expert(
        name,
        expert,
        settings.repo,
        settings.url,
        timeout_s=settings.timeout,
        allow_new_labels=settings.allow_new_labels,
    )
    if json:
        render.as_json(result.to_json())
        return
    old = result.old_digest or "new"
    typer.echo(f"{name}: {old} → {result.new_digest} in {result.seconds:.3f} s")
