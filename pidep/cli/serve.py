"""`pidep serve`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from pidep.errors import ServingError

__all__ = ["serve"]


def serve(
    repo: Annotated[Path, typer.Argument(help="Model repository.")] = Path("model_repo"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="HTTP port.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="gRPC port.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535, help="Metrics port.")] = 8002,
) -> None:
    """Start Triton Server on a model repository, wait until it is ready, stop it cleanly on Ctrl-C or SIGTERM."""
    from pidep.serving.server import Ports, TritonServer

    def stop(*_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second one must not cut the clean stop short
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server = TritonServer(repo, Ports(http_port, grpc_port, metrics_port, host))
    try:
        with server:
            typer.echo(f"ready: {', '.join(server.models)}  gRPC {server.grpc_url}  HTTP {server.http_url}  log {server.log_path}")
            code = server.wait()
            raise ServingError(f"Triton Server ended by itself with code {code}: {server.last_error()}")
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
