"""`pidep doctor`."""

from __future__ import annotations

import typer

from pidep.cli import render
from pidep.cli.options import Json

__all__ = ["doctor"]


def doctor(json: Json = False) -> None:
    """Report what this machine can run.

    Lists the installed packages, the path that the kernels take and why, and what can serve.
    """
    from pidep.deployment.doctor import diagnose

    found = diagnose().to_json()
    if json:
        render.as_json(found)
        return
    shown = ""
    for group, values in found.items():
        for name, value in values.items():
            typer.echo(f"{group if group != shown else '':10} {name:18} {value}")
            shown = group
