"""The `pidep` program. A command is imported when it runs, so that help is fast."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException

from pidep import __version__
from pidep.cli.command import HELP, PanelCommand, write_sections
from pidep.errors import PidepError, UsageError, fault_of_text

__all__ = ["COMMANDS", "Entry", "app", "main", "stopped"]


class Entry(NamedTuple):
    """A command as `pidep --help` lists it."""

    stage: str
    summary: str
    """First line of the command's own help."""
    module: str = ""
    """Module and function in `pidep.cli`, where they are not called as the command."""
    stopped: str = ""
    """What to do after Ctrl-C. `{command}` is the same command again, `{resume}` with --resume."""


COMMANDS = {
    "check": Entry("Learn", "List every problem of a task's data before any training."),
    "tune": Entry(
        "Learn",
        "Train an expert for a task and interpolate it with its neighbours.",
        stopped="continue from the last checkpoint with: {resume}",
    ),
    "compare": Entry(
        "Learn",
        "Measure π-Tuning against its baselines on the same rows and seeds.",
        stopped="finished cells are kept; continue with: {command}",
    ),
    "generate": Entry("Learn", "Answer texts and images offline with an encoder-decoder."),
    "predict": Entry("Learn", "Answer the rows of a file offline."),
    "graph": Entry("Understand", "Show which tasks of a pool are similar, and why."),
    "report": Entry("Understand", "Write a self-contained HTML page about a run."),
    "sites": Entry("Understand", "List where experts can act on a backbone, and their size."),
    "tasks": Entry(
        "Understand", "List the packaged tasks, show rows of one, or write one as files."
    ),
    "import": Entry("Ship", "Turn an adapter of PEFT or Olive into an expert.", "adopt"),
    "fold": Entry("Ship", "Compress a mixture into one LoRA of a small rank."),
    "export": Entry(
        "Ship",
        "Compile experts to ONNX, check them against PyTorch, publish them.",
        stopped="nothing is half published; start again with: {command}",
    ),
    "convert": Entry(
        "Ship", "Write experts for other programs: PEFT, or ONNX Runtime's own adapters."
    ),
    "bundle": Entry(
        "Ship", "Write the files that run an entry in NVIDIA's container and on a cluster."
    ),
    "recipes": Entry("Ship", "List the ways in which `pidep export` compiles."),
    "serve": Entry("Ship", "Run Triton Server on a model repository until it is stopped."),
    "infer": Entry("Ship", "Ask a running server."),
    "swap": Entry("Ship", "Replace an expert on a running server."),
    "roll": Entry(
        "Ship",
        "Roll a merged model to a new version on running servers.",
        stopped="the servers have the old entry or the new one; go on with: {command}",
    ),
    "experts": Entry(
        "Ship",
        "Roll versions of an expert out and back.",
        stopped="the store has the old route or the new one; go on with: {command}",
    ),
    "verify": Entry("Ship", "Check that a running server answers as PyTorch did at the export."),
    "doctor": Entry(
        "Machine", "Report what this machine can run, or what is wrong with a running server."
    ),
}
"""Every command, in the order of `pidep --help`. A test compares the summaries with the
commands.
"""


_INTERRUPTED = 128 + 2
"""The exit code that shells expect after SIGINT."""


class _Commands(MutableMapping[str, Any]):
    """The commands by name; a command is built when it is first asked for."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = _build(name, COMMANDS[name])
        return self._built[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        del self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _build(name: str, entry: Entry) -> Any:
    function = getattr(import_module(f"pidep.cli.{entry.module or name}"), entry.module or name)
    if isinstance(function, typer.Typer):  # a group of commands
        return typer.main.get_command(function)
    # rich_markup_mode=None: typer would import rich for the help of every command.
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, cls=PanelCommand, context_settings=HELP)(function)
    return typer.main.get_command(alone)


class _Program(TyperGroup):
    """`pidep`: lists its commands by stage without importing them."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = _Commands()

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Commands by stage, then the program's own options."""
        stages: dict[str, list[tuple[str, str]]] = {}
        for name, entry in COMMANDS.items():
            stages.setdefault(entry.stage, []).append((name, entry.summary))
        records = [record for one in self.get_params(ctx) if (record := one.get_help_record(ctx))]
        write_sections(formatter, {**stages, "Options": records})

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Names of commands with their summaries; imports no command."""
        built, self.commands = (
            self.commands,
            {name: PanelCommand(name, help=entry.summary) for name, entry in COMMANDS.items()},
        )
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self.commands = built


app = typer.Typer(
    name="pidep",
    cls=_Program,
    help=(
        "Serve many tasks with one frozen model: train small experts, interpolate them (π-Tuning), "
        "compile them, and swap them on a running server."
    ),
    invoke_without_command=True,
    # A traceback is for developers: `main` turns each error into a line.
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"pidep {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the program.

    A mistake or a failure is one line on stderr and an exit code, never a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal that has no such character, and half of an emoji, must not end a command.
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_arguments()
        # standalone_mode=False: typer would print its errors in its own form and exit by itself.
        with _warnings_shown():
            code = app(standalone_mode=False, prog_name="pidep")
        if code == _INTERRUPTED:
            raise KeyboardInterrupt  # typer has made an exit code of it
    except PidepError as error:
        code = _fail(str(error), error.exit_code)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "pidep"
        code = _fail(f"{error.format_message().rstrip('.')} (see {path} --help)", error.exit_code)
    except (Abort, KeyboardInterrupt):
        typer.echo(f"pidep: {stopped(sys.argv[1:])}", err=True)
        code = _INTERRUPTED
    # The reader, such as `head`, has gone. There is nobody to tell.
    except BrokenPipeError:
        code = 1
    except OSError as error:
        code = _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    raise SystemExit(code or 0)


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """A warning of the library as a line on stderr."""
        typer.echo(f"warning: {record.getMessage()}", err=True)


@contextmanager
def _warnings_shown() -> Iterator[None]:
    logger, handler = logging.getLogger("pidep"), _Warnings(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _check_arguments() -> None:
    """Refuse an argument that is not UTF-8; Python makes lone surrogates of its bytes.

    Neither files, JSON nor the server can carry such a text.
    """
    for argument in sys.argv[1:]:
        if fault := fault_of_text(argument):
            raise UsageError(f"argument: {fault}")


def stopped(arguments: Sequence[str]) -> str:
    """What Ctrl-C stopped, and the exact command that goes on."""
    if not arguments or not (entry := COMMANDS.get(arguments[0])) or not entry.stopped:
        return "stopped"
    name, *rest = arguments
    # First: behind `--` it would be a text, and not an option.
    resume = [name, "--resume", *(one for one in rest if one != "--resume")]
    return "stopped; " + entry.stopped.format(
        command=shlex.join(["pidep", name, *rest]), resume=shlex.join(["pidep", *resume])
    )


def _fail(message: str, code: int) -> int:
    # Results that were printed before the error must stand above it.
    sys.stdout.flush()
    typer.echo(f"pidep: {' '.join(message.split())}", err=True)
    return code
