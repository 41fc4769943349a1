"""The `pidep` program."""

from __future__ import annotations

import sys

import typer

from pidep import __version__
from pidep.cli import adopt, export, graph, infer, serve, swap, tune
from pidep.errors import PidepError

__all__ = ["app", "main"]

app = typer.Typer(
    name="pidep",
    help="Serve one frozen model to many tasks: tune, predict and interpolate experts, export them, swap them live (π-Tuning).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"pidep {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version.")) -> None:
    pass


for command in (tune.tune, graph.graph, export.export, serve.serve, infer.infer, swap.swap):
    app.command()(command)
app.command(name="import")(adopt.adopt)


def main() -> None:
    """Run; a `PidepError` is one line on stderr and its exit code, never a traceback."""
    try:
        app()
    except PidepError as error:
        sys.stdout.flush()
        typer.echo(f"pidep: {' '.join(str(error).split())}", err=True)
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
