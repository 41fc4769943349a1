"""`pidep doctor`."""

from __future__ import annotations

import typer

from pidep.cli import render
from pidep.cli.command import with_flags
from pidep.cli.options import Json, options
from pidep.deployment.settings import DoctorSettings
from pidep.errors import UsageError
from pidep.settings import settings_of

__all__ = ["doctor"]


@options(DoctorSettings)
def doctor(settings: DoctorSettings, json: Json = False) -> None:
    """Report what this machine can run, or what is wrong with a running server.

    Lists the installed packages, the path that the kernels take and why, and what can serve. With
    --url, checks a running server as a client without its key sees it, and changes nothing on it:
    one line a check, with what to do. A fault gives exit code 1.
    """
    if settings.url is None:
        _require_no_server(settings)
        _machine(json=json)
        return
    _server(settings, settings.url, json=json)


def _require_no_server(settings: DoctorSettings) -> None:
    given = [
        one.name for one in settings_of(DoctorSettings) if one.name in settings.model_fields_set
    ]
    if given:
        raise UsageError(f"`{given[0]}`: is about a running server; give `url` as well")


def _machine(*, json: bool) -> None:
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


def _server(settings: DoctorSettings, url: str, *, json: bool) -> None:
    from pidep.deployment.server_doctor import diagnose_server, require_healthy

    found = diagnose_server(
        url,
        protocol=settings.protocol,
        model=settings.model,
        entry=settings.entry,
        metrics=settings.metrics,
        timeout_s=settings.timeout,
    )
    if json:
        render.as_json([one.to_json() for one in found])
    else:
        flags = {one.name: one.flag for one in settings_of(DoctorSettings)}
        for one in found:
            mend = f"; {with_flags(one.mend, flags)}" if one.mend else ""
            # A server's own words are a part of it, and a line is one line.
            text = " ".join(f"{one.check}: {one.found}{mend}".split())
            typer.echo(f"{one.level:8} {text}")
    require_healthy(found)
