"""`--help` of every command: golden files, one source for each setting, and a fast start.

After an intended change, write the golden files again:

    PIDEP_UPDATE_GOLDEN=1 python -m pytest tests/cli/test_help.py
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import pidep.cli
from pidep.cli.app import COMMANDS, app
from tests.cli.run import Done, environment
from tests.cli.run import pidep as run

PROGRAM: Any = typer.main.get_command(app)
GOLDEN = Path(__file__).parent / "golden"
ALL = {
    full: command
    for name, entry in PROGRAM.commands.items()
    for full, command in (
        [(name, entry)]
        + [(f"{name} {one}", inner) for one, inner in getattr(entry, "commands", {}).items()]
    )
}
"""Commands, groups of commands, and the commands of groups as `experts list`."""
HEAVY = {"numpy", "onnxruntime", "pydantic", "rich", "torch", "transformers", "yaml"}


def shown(inside: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The help text at 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    done = inside(*arguments, "--help")
    assert (done.code, done.err) == (0, "")
    return done.out


@pytest.mark.parametrize("name", ["", *ALL])
def test_help_is_as_in_its_golden_file(
    name: str, inside: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shown(inside, monkeypatch, *name.split())
    path = GOLDEN / f"{f'pidep {name}'.strip().replace(' ', '-')}.txt"
    if os.environ.get("PIDEP_UPDATE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8"), "PIDEP_UPDATE_GOLDEN=1 writes it again"


def test_there_is_a_golden_file_for_each_command() -> None:
    names = {"pidep", *(f"pidep-{name}".replace(" ", "-") for name in ALL)}
    assert {path.stem for path in GOLDEN.iterdir()} == names


def test_one_file_per_command() -> None:
    files = {path.stem for path in Path(pidep.cli.__file__).parent.glob("*.py")}
    shared = {"__init__", "app", "command", "json_log", "options", "progress", "render"}
    commands = {entry.module or name for name, entry in COMMANDS.items()}
    assert files - shared == commands


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_has_the_first_line_of_a_commands_own_help(name: str) -> None:
    assert PROGRAM.commands[name].help.splitlines()[0] == COMMANDS[name].summary


@pytest.mark.parametrize("name", ALL)
def test_every_option_says_what_it_is_for(name: str) -> None:
    for parameter in ALL[name].params:
        assert parameter.hidden or parameter.help, f"pidep {name}: {parameter.name} has no help"


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_in_a_group(name: str) -> None:
    for parameter in ALL[name].params:
        alone = parameter.param_type_name == "argument" or parameter.name == "help"
        assert alone or parameter.hidden or parameter.rich_help_panel, f"{name}: {parameter.name}"


@pytest.mark.parametrize("name", ALL)
def test_help_keeps_to_100_columns(
    name: str, inside: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(map(len, shown(inside, monkeypatch, *name.split()).splitlines())) <= 100


def test_panels_of_tune_and_stages_of_the_program(
    inside: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def headings(*arguments: str) -> list[str]:
        return re.findall(r"^(\w+):$", shown(inside, monkeypatch, *arguments), re.M)

    panels = ["Data", "Expert", "Training", "Neighbours", "Interpolation", "Output"]
    assert headings("tune") == ["Arguments", *panels, "Options"]
    assert headings() == ["Learn", "Understand", "Ship", "Machine", "Options"]


def test_help_starts_fast_and_imports_nothing_heavy() -> None:
    code = "import sys; from pidep.cli import main\n"
    code += "try: main()\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Usage: pidep" in done.stdout
    assert not {name.partition(".")[0] for name in done.stderr.split()} & HEAVY
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    assert (done.code, done.out, done.err) == (0, f"pidep {pidep.__version__}\n", "")


def test_without_arguments_it_explains_itself(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.out.startswith("Usage:")
    assert done.err == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pidep tu", ["tune"]),
        ("pidep tune --ran", ["--rank", "--rank-stabilized"]),
        ("pidep tune --policy anch", ["anchored"]),
        ("pidep compare --methods pi", ["pi", "pi_trial"]),
    ],
)
def test_completion_of_the_shell(line: str, expected: list[str]) -> None:
    variables = {"_PIDEP_COMPLETE": "complete_bash", "COMP_WORDS": line}
    variables["COMP_CWORD"] = str(len(line.split()) - 1)
    code = "from pidep.cli.app import app; app(prog_name='pidep')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == expected
