"""Tables on stdout, and JSON for machines."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import typer

__all__ = ["as_json", "table"]


def as_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. No word is broken, whatever the width of the terminal.

    A cell's text may hold line breaks. Without a terminal, each of its lines stays one line.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    fixed = console.is_terminal or "COLUMNS" in os.environ
    borders = 3 * len(columns) + 1
    cells = list(zip(columns, *rows, strict=True))
    widths = _widths(cells, console.width - borders if fixed else None)
    console.width = max(sum(widths) + borders, console.width if fixed else 0)
    # `Text` everywhere: rich would take brackets in a text for markup, and :star: for a picture.
    drawn = Table()
    for name, width in zip(columns, widths, strict=True):
        drawn.add_column(Text(name), width=width)
    for row in rows:
        drawn.add_row(*map(Text, row))
    # Not the table's own title, which rich folds at the table's width.
    console.print(Text(title, style="italic"), soft_wrap=True)
    console.print(drawn)


def _widths(columns: Sequence[Sequence[str]], total: int | None) -> list[int]:
    """A width for each column: at least its longest word, at most its longest line.

    Args:
        total: what the columns may have together; None for as much as they need.
    """
    from rich.cells import cell_len

    natural = [
        max(cell_len(line) for cell in cells for line in cell.split("\n")) for cells in columns
    ]
    if total is None:
        return natural
    widths = [
        max((cell_len(word) for cell in cells for word in cell.split()), default=0)
        for cells in columns
    ]
    spare = total - sum(widths)
    # The column that lacks least comes first, so that as few columns as possible are wrapped.
    for column in sorted(range(len(widths)), key=lambda at: natural[at] - widths[at]):
        more = max(0, min(spare, natural[column] - widths[column]))
        widths[column] += more
        spare -= more
    return widths
