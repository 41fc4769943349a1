"""`history/<name>.json` of the store: the last changes of one served name.

{"schema": 1, "name": "movie", "entries": [{"revision": 8, "at": "2026-01-31T12:00:00Z",
 "by": "ann@build-1", "action": "promote", "before": {"stable": "sha256:…"}, "after": {…}}]}

One file for each name: a change costs the same, however many names a store has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pidep.artifacts.manifest import Alias, Route
from pidep.artifacts.names import HISTORY
from pidep.artifacts.record import Record, read_record, write_record

__all__ = ["Action", "Change", "RouteHistory"]

Action = Literal[
    "publish", "add", "swap", "promote", "canary", "shadow", "rollback", "remove", "undo"
]


class Change(Record):
    """One change of a name's route."""

    revision: int = Field(ge=1)
    """Of the manifest that has the route `after`."""
    at: str
    """UTC, ISO 8601."""
    by: str
    """User and machine."""
    action: Action
    before: Route | None = None
    """None where the name was not served."""
    after: Route | None = None
    """None where the name was taken out."""

    @property
    def is_of_stable(self) -> bool:
        """Whether the stable version changed."""
        old, new = self.before, self.after
        return (old and old.stable) != (new and new.stable)


class RouteHistory(Record):
    """The last changes of a name, oldest first."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: Alias
    entries: tuple[Change, ...] = ()

    @classmethod
    def path(cls, store: Path, name: str) -> Path:
        """Where a store keeps the history of a name."""
        return store / HISTORY / f"{name}.json"

    @classmethod
    def read(cls, store: Path, name: str) -> RouteHistory:
        """The history of a name; an absent one is empty.

        Raises:
            ServingError: it is damaged.
        """
        path = cls.path(store, name)
        try:
            return read_record(path, cls, fault="damaged history", remedy="restore or remove it")
        except FileNotFoundError:
            return cls(name=name)

    def write(self, store: Path) -> None:
        """Replace the history of the name in one step."""
        write_record(self.path(store, self.name), self)
