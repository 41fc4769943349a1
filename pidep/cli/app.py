"""The `pidep` program."""

from __future__ import annotations

import sys

import typer
from typer.exceptions import Abort, TyperException

from pidep import __version__
from pidep.cli import adopt, compare, doctor, export, fold, generate, graph, infer, report, serve, sites, swap, tasks, tune
from pidep.errors import PidepError

__all__ = ["app", "main"]

app = typer.Typer(
    name="pidep",
    help="Serve one frozen model to many tasks: tune, predict and interpolate experts, export them, swap them live (π-Tuning).",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"pidep {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context, version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version.")
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (tune.tune, graph.graph, sites.sites, compare.compare, fold.fold, export.export, serve.serve, infer.infer, swap.swap):
    app.command()(command)
app.command()(generate.generate)
app.command()(report.report)
app.command()(tasks.tasks)
app.command()(doctor.doctor)
app.command(name="import")(adopt.adopt)


def main() -> None:
    """Run; a mistake or a failure is one line on stderr and its exit code, never a traceback."""
    try:
        code = app(standalone_mode=False)
    except PidepError as error:
        code = _fail(str(error), error.exit_code)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "pidep"
        code = _fail(f"{error.format_message().rstrip('.')} (see {path} --help)", error.exit_code)
    except (Abort, KeyboardInterrupt):
        code = _fail("stopped", 130)
    except BrokenPipeError:
        code = 1
    except OSError as error:
        code = _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    raise SystemExit(code or 0)


def _fail(message: str, code: int) -> int:
    sys.stdout.flush()
    typer.echo(f"pidep: {' '.join(message.split())}", err=True)
    return code
