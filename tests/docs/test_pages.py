"""Every command, flag, link, key and message on the pages exists, and the navigation is
complete.
"""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import pidep
from pidep import errors
from pidep.artifacts import BankRecord, Manifest, MergedRecord, TowersRecord, VisionRecord
from pidep.artifacts.record import Record
from pidep.cli.command import with_flags
from pidep.tasks.data_source import Data
from pidep.tasks.metrics import METRICS
from pidep.tasks.task import Task
from tools.docs.cli_reference import commands
from tools.docs.hooks import GENERATED, generated
from tools.docs.navigation import DOCS, ROOT, all_pages, configuration, executed_pages
from tools.docs.run_pages import extract
from tools.docs.settings_tables import RECORDS, SETTINGS

PAGES = sorted(DOCS.rglob("*.md"))
READ = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
COMMANDS: dict[str, Any] = commands()
# Flags of other programs that the pages mention.
FOREIGN = {
    "--packaged",  # of a benchmark
    *("--build-arg", "--rm", "--shm-size", "--no-cache-dir", "--no-deps"),
    *("--retry", "--retry-delay", "--retry-all-errors", "--write"),
    *(
        "--model-repository",
        "--model-control-mode",
        "--load-model",
        "--disable-auto-complete-config",
    ),
    *("--http-restricted-api", "--grpc-restricted-protocol", "--exit-timeout-secs"),
    *("--allow-http", "--http-max-input-size"),
    *("--wheel-dir", "--project-directory", "--build", "--detach", "--from-literal"),
    "--alive",  # of the probe's command, which is no command of pidep
}


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _options(command: Any) -> set[str]:
    return {
        "--help",
        *(
            name
            for parameter in command.params
            for name in (*parameter.opts, *parameter.secondary_opts)
        ),
    }


def _visible(command: Any) -> set[str]:
    """Options that `--help` shows."""
    shown = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    return {flag for one in shown for flag in (*one.opts, *one.secondary_opts)}


def _code(page: Path) -> str:
    """Fenced blocks and inline code, with continued lines joined."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return re.sub(r"\\\n\s*", " ", "\n".join([*fenced, *inline]))


def _invocations(page: Path) -> list[tuple[str, str]]:
    """(command, rest of the line) of each `pidep …` at the start of a line or after a pipe."""
    return re.findall(r"^(?:\$ )?(?:.*\| )?pidep ([a-z]+)\b(.*)$", _code(page), re.M)


def _named(name: str, rest: str) -> str:
    """The command of an invocation; a command of a group has two words."""
    second = rest.split()[0] if rest.split() else ""
    return f"{name} {second}" if name not in COMMANDS and second else name


GROUPS = {name.split()[0] for name in COMMANDS if " " in name}


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", READ, ids=_name)
def test_every_command_and_its_flags_exist(page: Path) -> None:
    for first, rest in _invocations(page):
        name = _named(first, rest)
        if name in GROUPS:
            continue  # the group as a whole
        assert name in COMMANDS, f"pidep {name}"
        for flag in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest.split(" | ")[0]):
            assert flag in _options(COMMANDS[name]), f"pidep {name} {flag}"


@pytest.mark.parametrize("page", READ, ids=_name)
def test_every_flag_mentioned_belongs_to_some_command(page: Path) -> None:
    known = FOREIGN.union({"--version"}, *map(_options, COMMANDS.values()))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.read_text(encoding="utf-8"))) <= known


@pytest.mark.parametrize("page", READ, ids=_name)
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


@pytest.mark.parametrize("page", READ, ids=_name)
def test_prose_has_at_most_100_columns(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    # Markdown cannot break table rows, or a message that is a term.
    long = [
        line
        for line in text.splitlines()
        if len(line) > 100 and not line.startswith(("|", "#", "`"))
    ]
    assert long == []


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(all_pages()) == PAGES


def test_the_index_links_every_page() -> None:
    linked = set()
    for index in (DOCS / "index.md", DOCS / "decisions" / "index.md"):
        for link in re.findall(r"\]\(([^)\s#]+)", index.read_text(encoding="utf-8")):
            linked.add((index.parent / link).resolve())
    assert [_name(page) for page in PAGES if page not in linked and page.name != "index.md"] == []


def test_the_site_is_built_strictly_and_offline() -> None:
    settings = configuration()
    assert settings["strict"] is True
    assert settings["theme"]["font"] is False
    assert not any(
        "http" in str(settings.get(key, "")) for key in ("extra_javascript", "extra_css")
    )


@pytest.mark.parametrize("page", executed_pages(), ids=_name)
def test_commands_of_start_and_guides_run_or_say_why_not(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    extract(text)  # every block is closed
    for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.M | re.S):
        marked = re.search(r"<!-- not run: .+ -->\n$", text[: match.start()])
        runs = match[1] in ("console", "python", "output", "text") or 'title="' in match[0]
        assert runs or marked, (
            f"{page.name}: a block of {match[1] or 'no language'} stands without a reason"
        )
        assert match[1] != "console" or "$ " in match[2]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_what_is_generated_can_be_generated(page: Path) -> None:
    for name in GENERATED.findall(page.read_text(encoding="utf-8")):
        assert generated(name).strip()


def test_the_reference_of_commands_has_every_option() -> None:
    text = generated("cli")
    for name, command in COMMANDS.items():
        section = text.split(f"## pidep {name}\n")[1].split("\n## ")[0]
        assert _visible(command) - {"--help", "-h"} == set(re.findall(r"`(-[a-z-]+)`", section)), (
            name
        )


@pytest.mark.parametrize(("name", "model"), {**SETTINGS, **RECORDS}.items())
def test_the_tables_of_settings_have_every_key_with_its_meaning(name: str, model: Any) -> None:
    lines = [line for line in generated(name).splitlines() if line.startswith("| `")]
    rows = [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines]
    assert [row[0] for row in rows] == list(model.model_fields)
    assert [row[0] for row in rows if not row[-1]] == (
        ["name", "tolerance"] if name == "recipe" else []
    )


OWN_OPTIONS = {
    "check": {"--show"},
    "tune": {"--config"},
    "compare": {"--config"},
    "generate": {"--text", "--image", "--backbone"},
    "infer": {"--image"},
}
"""Options of a command that are no settings."""


BESIDE = {"compare": "grid", "tune": "run"}
"""Commands with two models of settings, and the table of the second."""


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - BESIDE.values()))
def test_the_table_of_a_command_has_every_option(name: str) -> None:
    text = generated(name) + (generated(BESIDE[name]) if name in BESIDE else "")
    flags = set(re.findall(r"^\| `\w+` \| `(--[a-z-]+)`", text, re.M))
    visible = {flag for flag in _visible(COMMANDS[name]) if not flag.startswith("--no-")}
    assert flags == visible - OWN_OPTIONS.get(name, set()) - {"--json", "--help"}


def test_the_page_of_settings_has_every_table() -> None:
    text = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    assert sorted(GENERATED.findall(text)) == sorted([*SETTINGS, *RECORDS])


def test_the_page_of_task_files_has_every_key_and_metric() -> None:
    text = (DOCS / "reference" / "task-files.md").read_text(encoding="utf-8")
    keys = {
        key
        for row in re.findall(r"^\| (`[^|]+) \|", text, re.M)
        for key in re.findall(r"`([\w@.]+)`", row)
    }
    assert {*Task.model_fields, *Data.model_fields} <= keys
    metrics = {metric for metrics in METRICS.values() for metric in metrics}
    assert metrics <= keys
    assert keys <= {*Task.model_fields, *Data.model_fields} | metrics


def test_the_error_page_names_every_error_with_its_exit_code() -> None:
    page = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    for name in errors.__all__:
        found = getattr(errors, name)
        if isinstance(found, type):
            assert re.search(rf"\b{name} +{found.exit_code}\b", page), name


@cache
def _templates() -> list[str]:
    """Every message in pidep's code as the command line shows it, with `…` for the
    variable parts.
    """
    found = []
    # The code writes settings in backticks; the command line shows them as options.
    parameters = [one for command in COMMANDS.values() for one in command.params]
    flags = {one.name: one.opts[0] for one in parameters if one.opts[0].startswith("--")}
    for path in (ROOT / "pidep").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(
                        part.value if isinstance(part, ast.Constant) else "…"
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [with_flags(text, flags) for text in found]


def test_messages_on_the_error_page_are_in_the_code() -> None:
    text = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(`.+`)\n:   ", text, re.M)
    assert len(terms) > 20
    foreign = "unable to find backend library"  # a Triton Server message
    for message in (
        part for term in terms for part in re.findall(r"`([^`]+)`", term) if foreign not in part
    ):
        # A message may be composed of several texts. Its longest piece is in one of them.
        piece = max(re.split(r"…|'…'", message), key=len).strip(" ;:(),'")
        assert any(piece in template for template in _templates()), message


@pytest.mark.parametrize(
    ("heading", "record"),
    [
        ("`bank.json`", BankRecord),
        ("`merged.json`", MergedRecord),
        ("`towers`", TowersRecord),
        ("`vision`", VisionRecord),
        ("`manifest.json`", Manifest),
    ],
)
def test_the_page_of_files_has_every_key_of_a_record(heading: str, record: type[Record]) -> None:
    text = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    section = re.split(r"\n###? ", text.split(f"\n### {heading}\n")[1])[0]
    rows = re.findall(r"^\| (`[^|]+) \|", section, re.M)
    listed = [key for row in rows for key in re.findall(r"`(\w+)`", row)]
    fields = record.model_fields.items()
    assert sorted(listed) == sorted(field.serialization_alias or name for name, field in fields)


def test_the_page_of_the_api_has_every_public_name() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    shown = {name.removeprefix("pidep.") for name in re.findall(r"heading: (pidep\.\w+)", text)}
    assert shown == {*pidep.__all__, "errors"} - {"__version__"}
    for path, heading in re.findall(r"^::: ([\w.]+)\n +options:\n +heading: (\S+)", text, re.M):
        module, _, name = path.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        public = heading.removeprefix("pidep.")
        if heading.startswith("pidep.") and name not in ("errors", "export"):
            assert getattr(pidep, public) is found, path
