"""The documentation: commands, flags, settings and links exist; the runner runs what it should and stops where it should."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from pidep import errors
from pidep.cli.app import app
from pidep.tasks.task import Data, Task
from pidep.tuning.settings import TuneConfig

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# Flags of other programs that the pages name.
FOREIGN = {
    *("--build-arg", "--rm", "--shm-size", "--no-cache-dir"),
    *("--retry", "--retry-delay", "--retry-all-errors"),
    *("--model-repository", "--model-control-mode", "--load-model", "--disable-auto-complete-config"),
}


def _options(command: Any) -> set[str]:
    return {"--help", *(name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))}


def _runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_quickstart", DOCS / "run_quickstart.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


runner = _runner()


def _code(page: Path) -> str:
    """Fenced blocks and inline code, continuations joined."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return re.sub(r"\\\n\s*", " ", "\n".join([*fenced, *inline]))


def _invocations(page: Path) -> list[tuple[str, str]]:
    """(command, rest of the line) of every `pidep …` in code that starts a line or follows a pipe."""
    return re.findall(r"^(?:\$ )?(?:.*\| )?pidep ([a-z]+)\b(.*)$", _code(page), re.M)


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_its_flags_exist(page: Path) -> None:
    for name, rest in _invocations(page):
        assert name in COMMANDS, f"pidep {name}"
        for flag in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest.split(" | ")[0]):
            assert flag in _options(COMMANDS[name]), f"pidep {name} {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_mentioned_belongs_to_some_command(page: Path) -> None:
    known = FOREIGN.union(*map(_options, COMMANDS.values()))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.read_text(encoding="utf-8"))) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in map(_slug, headings), link


def test_the_index_links_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.name != "index.md" and f"{page.relative_to(DOCS)})" not in index] == []


def test_the_tables_of_settings_and_task_fields_are_real() -> None:
    text = (DOCS / "tuning.md").read_text(encoding="utf-8")
    settings = text.split("## Settings")[1].split("\n## ")[0]
    for key, flags in re.findall(r"^\| `(\w+)` \| ([^|]*)\|", settings, re.M):
        assert key in TuneConfig.model_fields
        assert set(re.findall(r"`(--[a-z-]+)`", flags)) <= _options(COMMANDS["tune"])
    fields = text.split("## Task files")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", fields, re.M)) <= {*Task.model_fields, *Data.model_fields}


def test_the_error_page_names_every_error_with_its_exit_code() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    for name in errors.__all__:
        found = getattr(errors, name)
        if isinstance(found, type):
            assert re.search(rf"\b{name} +{found.exit_code}\b", page), name


SAMPLE = """\
Some words.

```console
$ export WORD=hello
$ printf '%s %s\\n' "$WORD" \\
    there > out.txt
shown output, not run
```

```sh
exit 9   # other languages are left alone
```

```python
import pathlib

print(pathlib.Path("out.txt").read_text())
```
"""


def test_blocks_become_steps_in_order() -> None:
    steps = runner.extract(SAMPLE)
    assert [(step.line, step.kind) for step in steps] == [(4, "console"), (5, "console"), (14, "python")]
    assert steps[1].text == "printf '%s %s\\n' \"$WORD\" \\\n    there > out.txt"
    assert steps[2].text.startswith("import pathlib\n\nprint")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```console\n$ true\n", "line 1: the block has no closing"),
        ("```console\n$ true \\\n```\n", "line 2: the command ends in a backsl"),
    ],
)
def test_an_unfinished_block_is_named(text: str, message: str) -> None:
    with pytest.raises(runner.RunError, match=message):
        runner.extract(text)


def test_steps_share_a_session_and_a_fresh_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "sample.md"
    page.write_text(SAMPLE)
    runner.run(page, timeout_s=60)
    out = capfd.readouterr().out
    assert "hello there" in out
    assert "sample.md: 3 steps in" in out
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("false | cat", r"line 3: \$ false \| cat: ended with exit code 1"),
        ("exit 0", r"line 3: \$ exit 0: ended the session"),
        ('echo "', r"line 3: .*ended with exit code 2"),
    ],
)
def test_the_first_failing_command_stops_the_run(tmp_path: Path, command: str, message: str) -> None:
    page, witness = tmp_path / "sample.md", tmp_path / "witness"
    page.write_text(f"```console\n$ true\n$ {command}\n$ touch {shlex.quote(str(witness))}\n```\n")
    with pytest.raises(runner.RunError, match=message):
        runner.run(page, timeout_s=60)
    assert not witness.exists()


def test_a_hanging_command_is_stopped_with_the_jobs_it_left(tmp_path: Path) -> None:
    page, pids = tmp_path / "sample.md", tmp_path / "pids"
    page.write_text(f"```console\n$ sleep 600 &\n$ echo $! > {shlex.quote(str(pids))}\n$ sleep 601\n```\n")
    with pytest.raises(runner.RunError, match=r"line 4: \$ sleep 601: still running when the 1 s"):
        runner.run(page, timeout_s=1)
    assert not Path(f"/proc/{pids.read_text().strip()}").exists()


def test_a_failing_document_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "sample.md"
    page.write_text("```console\n$ exit 4\n```\n")
    monkeypatch.setattr(sys, "argv", ["run_quickstart.py", str(page)])
    with pytest.raises(SystemExit, match="1"):
        runner.main()
    assert capsys.readouterr().err == "sample.md: line 2: $ exit 4: ended the session\n"


def test_other_ports_replace_the_default_ones() -> None:
    ports = runner.Ports(http=18000, grpc=18001, metrics=18002)
    for text, expected in (
        ("pidep serve &", "pidep serve --http-port 18000 --grpc-port 18001 --metrics-port 18002 &"),
        ("cat rows | pidep infer", "cat rows | pidep infer --url 127.0.0.1:18001"),
        ("pidep infer x --protocol http", "pidep infer --url 127.0.0.1:18000 x --protocol http"),
        ("pidep swap a b", "pidep swap --url 127.0.0.1:18001 a b"),
        ("curl 127.0.0.1:8000/v2", "curl 127.0.0.1:18000/v2"),
        ('Client("127.0.0.1:8001")', 'Client("127.0.0.1:18001")'),
        ("pidep tune task", "pidep tune task"),
    ):
        assert runner.with_ports(text, ports) == expected
