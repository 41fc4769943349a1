"""`pidep serve`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from pidep.cli.options import options
from pidep.deployment.settings import ServeSettings
from pidep.errors import ServingError

__all__ = ["serve"]


@options(ServeSettings)
def serve(
    settings: ServeSettings,
    repo: Annotated[Path, typer.Argument(metavar="REPO", help="Model repository.")] = Path(
        "model_repo"
    ),
) -> None:
    """Run Triton Server on a model repository until it is stopped.

    Prints a line when every model is ready. Ctrl-C and SIGTERM stop the server after it has
    finished its running requests.
    """
    from pidep.serving.server import Ports, TritonServer

    def stop(*_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            # A second signal must not interrupt the clean stop.
            signal.signal(number, signal.SIG_IGN)
        # An exception, so that the `with` block below stops the server on its way out.
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    ports = Ports(settings.http_port, settings.grpc_port, settings.metrics_port, settings.host)
    server = TritonServer(repo, ports)
    try:
        with server:
            typer.echo(
                f"ready: {', '.join(server.models)}  gRPC {server.grpc_url}  "
                f"HTTP {server.http_url}  log {server.log_path}"
            )
            code = server.wait()
            raise ServingError(
                f"Triton Server ended by itself with code {code}: {server.last_error()}"
            )
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
