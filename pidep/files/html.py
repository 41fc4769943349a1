"""Pieces of HTML that pages share. All text from data passes through `escape`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["definitions", "paragraph", "table"]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, mark: int | None = None) -> str:
    """A table; columns of numbers are set right, and row `mark` stands out."""
    rows = list(rows)
    looks = [
        "figure" if at and all(_is_number(row[at]) for row in rows) else "words"
        for at in range(len(columns))
    ]
    head = "".join(
        f'<th scope="col" class="{look}">{escape(column)}</th>'
        for column, look in zip(columns, looks, strict=True)
    )
    lines = []
    for number, row in enumerate(rows):
        first, *rest = (escape(cell) for cell in row)
        cells = "".join(
            f'<td class="{look}">{cell}</td>' for cell, look in zip(rest, looks[1:], strict=True)
        )
        marked = " class=mark" if number == mark else ""
        lines.append(f'<tr{marked}><th scope="row">{first}</th>{cells}</tr>')
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def _is_number(cell: str) -> bool:
    return cell[:1] in "+−" or cell[:1].isdigit() or cell == "–"


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """A list of terms and values."""
    pairs = (f"<dt>{escape(term)}</dt><dd>{escape(value)}</dd>" for term, value in rows)
    return "<dl>" + "".join(pairs) + "</dl>"


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"
