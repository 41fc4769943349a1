"""The command line reference, made from the program's own definition."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from typing import Any

import typer

from pidep.cli.app import app

__all__ = ["cli_reference", "commands"]

# Options that are made from settings have their default and bounds at the end of their help.
_HELP_DEFAULT = re.compile(r" *\[(?:default: ([^;\]]*))?(?:; )?([^\]]*)\]$")


def commands() -> dict[str, Any]:
    """Command to its click command, in the order of `pidep --help`.

    The commands of a group have two words, such as `experts list`.
    """
    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found.update({f"{name} {one}": inner[one] for one in inner} if inner else {name: command})
    return found


def cli_reference() -> str:
    """One section per command: usage, help, arguments, and options by panel."""
    return "\n\n".join(_section(name, command) for name, command in commands().items())


def _section(name: str, command: Any) -> str:
    arguments = [
        parameter for parameter in command.params if parameter.param_type_name == "argument"
    ]
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    usage = " ".join(["pidep", name, "[OPTIONS]", *(_usage(argument) for argument in arguments)])
    parts = [f"## pidep {name}", inspect.cleandoc(command.help or ""), f"```text\n{usage}\n```"]
    if arguments:
        rows = [
            f"| `{_name(argument)}` | {_text(argument)} | {_default(argument)} |"
            for argument in arguments
        ]
        parts.append("\n".join(["| argument | meaning | default |", "| --- | --- | --- |", *rows]))
    panels: dict[str, list[Any]] = defaultdict(list)
    for option in options:
        panels[getattr(option, "rich_help_panel", None) or ""].append(option)
    for panel, members in panels.items():
        if panel:
            parts.append(f"**{panel}**")
        rows = [
            f"| {_flags(option)} | {_text(option)} | {_default(option)} |" for option in members
        ]
        parts.append("\n".join(["| option | meaning | default |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts)


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name).strip("[]{}").removesuffix("...")


def _usage(argument: Any) -> str:
    name = _name(argument).upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _flags(option: Any) -> str:
    return ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))


def _text(parameter: Any) -> str:
    """The help text without its default; the bounds stay, in brackets."""
    text = _HELP_DEFAULT.sub(lambda match: f" ({match[2]})" if match[2] else "", _help(parameter))
    return text.replace("|", "\\|")


def _help(parameter: Any) -> str:
    return " ".join((getattr(parameter, "help", None) or "").split())


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if match := _HELP_DEFAULT.search(_help(parameter)):
        return f"`{match[1]}`" if match[1] else ""
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return shown
    default = parameter.default() if callable(parameter.default) else parameter.default
    if (
        default is None
        or default is False
        or default == ()
        or default == []
        or repr(default) == "Sentinel.UNSET"
    ):
        return ""
    return f"`{', '.join(map(str, default)) if isinstance(default, (list, tuple)) else default}`"
