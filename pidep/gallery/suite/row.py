"""One row of a packaged task before it is written; pictures by content, not by path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pidep.gallery.suite.pictures import Picture

__all__ = ["Sides", "SuiteRow", "columns"]


@dataclass(frozen=True)
class SuiteRow:
    """A row's picture and text, and its answer.

    The answer is a label's name, or the number of the right candidate.
    """

    label: str | int
    text: str = ""
    image: Picture | None = None
    choices: tuple[str | Picture, ...] = ()


@dataclass(frozen=True)
class Sides:
    """Both sides of a task."""

    train: list[SuiteRow]
    test: list[SuiteRow]


def columns(row: SuiteRow, *, path_of: Callable[[Picture], str]) -> dict[str, Any]:
    """The row as a JSON object with pictures as paths; absent parts are left out."""
    found: dict[str, Any] = {}
    if row.image is not None:
        found["image"] = path_of(row.image)
    if row.text:
        found["text"] = row.text
    if row.choices:
        found["choices"] = [
            choice if isinstance(choice, str) else path_of(choice) for choice in row.choices
        ]
    return {**found, "label": row.label}
