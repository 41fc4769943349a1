"""The place of a row in its data, and the error of a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pidep.errors import TaskError

__all__ = ["KINDS", "Kind", "Place", "Placed", "RowError"]

Kind = Literal[
    "file", "row", "column", "type", "empty", "label", "duplicate", "shared", "classes", "length"
]
"""What is wrong: a file, a row's form, a column that is missing or empty, a value's type, a text
without characters, an unknown label, equal rows, rows on both sides, rare or missing labels, texts
that are cut."""
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a row in its data: `reviews.csv, row 3 (line 4)`."""

    source: str
    """A file, a split of a dataset, or `training rows`."""
    row: int
    """From 1; a header does not count."""
    line: int | None = None
    """Line of the file where the row starts; None where files have no lines."""

    def __str__(self) -> str:
        line = "" if self.line in (None, self.row) else f" (line {self.line})"
        return f"{self.source}, row {self.row}{line}"


class RowError(TaskError):
    """A row is wrong; the message begins with its place."""

    def __init__(self, place: Place | str, what: str, kind: Kind = "row") -> None:
        super().__init__(f"{place}: {what}")
        self.kind: Kind = kind


Placed = Iterator[tuple[Place, Any]]
"""Rows with their places. A row that cannot be read is its `RowError`: the caller raises the first
one, or collects all of them."""
