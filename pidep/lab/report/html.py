"""Pieces of HTML. All text from data passes through `escape`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from pidep.tasks.metrics.intervals import Interval

__all__ = [
    "definitions",
    "figure",
    "interval_text",
    "number_text",
    "paragraph",
    "signed",
    "table",
]


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


def figure(svg: str, caption: str) -> str:
    """A drawing with its caption."""
    return (
        f'<figure><div class="scroll">{svg}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def signed(value: float) -> str:
    """A number with four digits and its sign."""
    return f"{'−' if value < 0 else '+'}{abs(value):.4f}"


def number_text(value: Any, digits: int) -> str:
    """A number with so many digits, or a dash."""
    return "–" if value is None else f"{float(value):.{digits}f}"


def interval_text(found: Interval | None) -> str:
    """The ends of an interval, or a dash."""
    return "–" if found is None else f"{found.low:.3f} to {found.high:.3f}"
