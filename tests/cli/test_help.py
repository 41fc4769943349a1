"""`--help` names every command and every option, and says what each is for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import pidep.cli
from pidep.cli.app import app
from tests.cli.run import Done
from tests.cli.run import pidep as run

COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
GOLDEN = {"tune", "graph", "export", "serve", "infer", "swap", "import"}


def words(text: str) -> list[str]:
    """Without the box and the line breaks drawn around them."""
    return re.sub(r"[│╭╮╰╯─]", " ", text).split()


def test_every_command_is_listed(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    listed = set(re.findall(r"^│ ([a-z-]+) {2,}\S", done.out.split("Commands")[1], re.MULTILINE))
    assert listed == set(COMMANDS)
    assert listed >= GOLDEN


def test_one_file_per_command() -> None:
    files = {path.stem for path in Path(pidep.cli.__file__).parent.glob("*.py")} - {"__init__", "app", "render"}
    assert {"import" if name == "adopt" else name for name in files} == set(COMMANDS)  # `import` cannot be a module's name


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_documented(name: str, inside: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = inside(name, "--help")
    assert (done.code, done.err) == (0, "")
    shown = " ".join(words(done.out))
    assert " ".join(COMMANDS[name].help.split()) in shown
    for parameter in COMMANDS[name].params:
        assert parameter.help, f"pidep {name}: {parameter.name} has no help"
        assert " ".join(parameter.help.split()) in shown
        for option in (*parameter.opts, *parameter.secondary_opts):
            assert option in shown.split() or f"{option}..." in shown.split()


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    assert (done.code, done.out, done.err) == (0, f"pidep {pidep.__version__}\n", "")


def test_without_arguments_it_explains_itself(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert "Usage:" in done.out
    assert "Traceback" not in done.err
