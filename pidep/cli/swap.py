"""`pidep swap`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render

__all__ = ["swap"]


def swap(
    name: Annotated[str, typer.Argument(help="Name the expert is served under.")],
    run: Annotated[Path, typer.Argument(help="Run folder or expert folder.")],
    repo: Annotated[Path, typer.Option(help="Model repository the server serves.")] = Path("model_repo"),
    url: Annotated[str, typer.Option(help="gRPC host:port of the server.")] = "127.0.0.1:8001",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the new digest.")] = 10.0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Publish a new version of an expert; returns when the server answers with its digest."""
    from pidep.experts.folder import read_expert
    from pidep.serving.swap import swap as run_swap

    expert = read_expert(run / "expert" if (run / "expert" / "expert.json").is_file() else run)
    result = run_swap(name, expert, repo, url, timeout_s=timeout)
    if json:
        render.as_json(result.to_json())
        return
    typer.echo(f"{name}: {result.old_digest or 'new'} → {result.new_digest} in {result.seconds:.3f} s")
