"""mkdocs calls these functions while it builds the site."""

from __future__ import annotations

import re
from typing import Any

from tools.docs.cli_reference import cli_reference
from tools.docs.settings_tables import RECORDS, SETTINGS, table

GENERATED = re.compile(r"<!-- generated: ([a-z]+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put generated text in the place of its mark."""
    return GENERATED.sub(lambda match: generated(match[1]), markdown)


def generated(name: str) -> str:
    """The text for a mark: `cli`, or the name of a table of settings."""
    if name == "cli":
        return cli_reference()
    if name in {*SETTINGS, *RECORDS}:
        return table(name)
    raise ValueError(
        f"generated: {name!r}: expected cli or one of {', '.join([*SETTINGS, *RECORDS])}"
    )
