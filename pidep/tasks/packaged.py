"""Tasks that come with a package, found by name through `pidep.plugins`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pidep import plugins

__all__ = ["PackagedTask", "Side", "packaged_tasks"]

Side = Literal["train", "test"]


@dataclass(frozen=True)
class PackagedTask:
    """A task that needs no file of the user's."""

    fields: Mapping[str, Any]
    """The fields of a task file, without `data`."""
    files: Callable[[], Mapping[Side, Path] | Path]
    """Writes the rows where they are missing. Gives `{"train": path, "test": path}`, or one path
    whose rows pidep splits.
    """


@cache
def packaged_tasks() -> Mapping[str, PackagedTask]:
    """Every packaged task by name, pidep's own first."""
    found: dict[str, PackagedTask] = {}
    for source in plugins.names("pidep.tasks"):
        for name, task in plugins.load("pidep.tasks", source).items():
            found.setdefault(name, task)
    return found
