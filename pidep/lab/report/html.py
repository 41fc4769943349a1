"""Pieces of the HTML of reports. All text from data passes through `escape`."""

from __future__ import annotations

from html import escape
from typing import Any

from pidep.tasks.metrics.intervals import Interval

__all__ = [
    "figure",
    "interval_text",
    "number_text",
    "signed",
]


def figure(svg: str, caption: str) -> str:
    """A drawing with its caption."""
    return (
        f'<figure><div class="scroll">{svg}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def signed(value: float) -> str:
    """A number with four digits and its sign."""
    return f"{'−' if value < 0 else '+'}{abs(value):.4f}"


def number_text(value: Any, digits: int) -> str:
    """A number with so many digits, or a dash."""
    return "–" if value is None else f"{float(value):.{digits}f}"


def interval_text(found: Interval | None) -> str:
    """The ends of an interval, or a dash."""
    return "–" if found is None else f"{found.low:.3f} to {found.high:.3f}"
