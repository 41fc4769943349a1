"""What every command has in common: `--help` in panels, and messages that name flags.

Help is plain text. Importing rich takes longer than all the rest of `pidep --help`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from pidep.errors import PidepError

__all__ = ["HELP", "PanelCommand", "with_flags", "write_sections"]

HELP = {"max_content_width": 100, "help_option_names": ["--help", "-h"]}
"""Context settings of the program and of each command."""
Records = Sequence[tuple[str, str]]
"""Options or commands, each with its help."""
_WIDEST = 24
"""Columns for the names; the help of a longer name begins on the next line."""


class PanelCommand(TyperCommand):
    """A command whose `--help` groups the options by panel."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then the panels in the order of their first option."""
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                name, text = record
                if parameter.param_type_name == "argument":
                    panels["Arguments"].append((name.partition(" ")[0], text))  # without its type
                    continue
                panel = getattr(parameter, "rich_help_panel", None) or "Options"
                panels.setdefault(panel, []).append((name, text))
        write_sections(formatter, panels)

    def invoke(self, ctx: Any) -> Any:
        """Run; an error's message names this command's flags."""
        try:
            return super().invoke(ctx)
        except PidepError as error:
            # In place: the error keeps its type, its exit code and its traceback.
            error.args = (with_flags(str(error), {one.name: _shown(one) for one in self.params}),)
            raise


def _shown(parameter: Any) -> str:
    """An option's flag, or an argument as the usage line has it."""
    if parameter.param_type_name == "option":
        return str(parameter.opts[0])
    return str(parameter.metavar or parameter.name.upper())


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """A library's message with flags in the place of settings.

    The library writes settings in backticks: "give `pool`" becomes "give --pool", and
    "use `shots=8`" becomes "use --shots 8". A name that is no option of the command stays as it is.
    """

    def replace(found: re.Match[str]) -> str:
        name, _, value = found[1].partition("=")
        return f"{flags[name]} {value}".rstrip() if name in flags else found[0]

    return re.sub(r"`([a-z_]+(?:=[^`]+)?)`", replace, message)


def write_sections(formatter: Any, sections: Mapping[str, Records]) -> None:
    """Write the sections that are not empty, their columns aligned."""
    names = [name for records in sections.values() for name, _ in records]
    width = max((len(name) for name in names if len(name) <= _WIDEST), default=_WIDEST)
    for heading, records in sections.items():
        if records:
            with formatter.section(_heading(heading)):
                formatter.write_dl([(name.ljust(width), text) for name, text in records], width)


def _heading(text: str) -> str:
    """Bold on a terminal that may have colours."""
    plain = os.environ.get("NO_COLOR") or not sys.stdout.isatty()
    return text if plain else typer.style(text, bold=True)
