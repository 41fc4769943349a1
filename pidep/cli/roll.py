"""`pidep roll`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.deployment.settings import RollSettings
from pidep.errors import UsageError

__all__ = ["roll"]


@options(RollSettings)
def roll(
    settings: RollSettings,
    entry: Annotated[
        Path,
        typer.Argument(
            metavar="ENTRY", help="Folder of a merged model, such as staging/model_repo/film."
        ),
    ],
    json: Json = False,
) -> None:
    """Roll a merged model to a new version on running servers.

    Puts the entry into the servers' repository, lets each server load it, and returns when all of
    them show its digest. Where one does not, the old entry is put back. The key of administrative
    calls is in a file, or in the environment variable PIDEP_ADMIN_KEY.
    """
    from pidep.serving.admin_key import read_admin_key
    from pidep.serving.launch_options import ADMIN_KEY_VARIABLE
    from pidep.serving.roll import roll_entry

    key = read_admin_key(settings.admin_key_file)
    if not key:
        raise UsageError(
            f"{ADMIN_KEY_VARIABLE}: not set, and no `admin_key_file`; give the key that the "
            "servers were started with"
        )
    result = roll_entry(entry, settings.repo, settings.url, key=key, timeout_s=settings.timeout)
    if json:
        render.as_json(result.to_json())
        return
    old = result.old_entry or "new"
    servers = f"{len(result.urls)} server{'s' if len(result.urls) > 1 else ''}"
    typer.echo(f"{result.model}: {old} → {result.new_entry} on {servers} in {result.seconds:.3f} s")
