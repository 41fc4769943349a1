"""`pidep serve`."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from pidep.cli.command import with_flags
from pidep.cli.options import options
from pidep.deployment.settings import ServeSettings
from pidep.errors import PidepError
from pidep.settings import settings_of

__all__ = ["serve"]

_STOPPING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
"""Signals that stop the server cleanly. SIGHUP comes when the terminal is closed."""
_log = logging.getLogger(__name__)


@options(ServeSettings)
def serve(
    settings: ServeSettings,
    repo: Annotated[Path, typer.Argument(metavar="REPO", help="Model repository.")] = Path(
        "model_repo"
    ),
) -> None:
    """Run Triton Server on a model repository until it is stopped.

    Prints a line when every model is ready. The server is started again where it ended by itself,
    and where a model's process died or hangs. Ctrl-C, SIGTERM, SIGHUP and SIGQUIT stop the server
    after it has finished its running requests.
    """
    if settings.log_format == "text":
        _run(repo, settings, say=typer.echo, stopped=lambda: typer.echo("stopped", err=True))
        return
    from pidep.cli.json_log import json_log

    with json_log() as write:
        try:
            _run(repo, settings, say=_log.info, stopped=lambda: _log.info("stopped"), log_to=write)
        except PidepError as error:
            flags = {one.name: one.flag for one in settings_of(ServeSettings)}
            _log.error("%s", with_flags(str(error), flags))
            raise typer.Exit(error.exit_code) from error


def _run(
    repo: Path,
    settings: ServeSettings,
    *,
    say: Callable[[str], None],
    stopped: Callable[[], None],
    log_to: Callable[[str], None] | None = None,
) -> None:
    """Serve until a signal comes, or the server cannot be kept alive."""
    from pidep.serving.admin_key import read_admin_key
    from pidep.serving.server import TritonServer
    from pidep.serving.supervisor import Supervisor

    signals = [signal.Signals[name] for name in _STOPPING]

    def stop(*_: Any) -> None:
        for number in signals:
            # A second signal must not interrupt the clean stop.
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in signals:
        # `nohup` asks to go on after SIGHUP.
        if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    server = TritonServer(
        repo,
        settings.ports,
        limits=settings.limits,
        resident_bytes=settings.resident_bytes,
        admin_key=read_admin_key(settings.admin_key_file),
        log_format=settings.log_format,
        log_to=log_to,
        tracing=settings.tracing,
    )
    try:
        with server:
            say(
                f"ready: {', '.join(server.models)}  gRPC {server.grpc_url}  "
                f"HTTP {server.http_url}  log {server.log_path}"
            )
            Supervisor(server, max_restarts=settings.max_restarts).run()
    except KeyboardInterrupt:
        # After SIGHUP the terminal may be gone.
        with suppress(OSError):
            stopped()
