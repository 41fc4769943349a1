"""Tasks that come with a package, found by name through `pidep.plugins`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pidep import plugins
from pidep.errors import UsageError

__all__ = ["PackagedTask", "Side", "packaged_task", "packaged_tasks"]

_log = logging.getLogger(__name__)

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


def packaged_task(name: str) -> PackagedTask | None:
    """The packaged task of this name; None where there is none.

    Other packages are imported only for a name that pidep does not have.
    """
    return _own_tasks().get(name) or packaged_tasks().get(name)


@cache
def packaged_tasks() -> Mapping[str, PackagedTask]:
    """Every packaged task by name, pidep's own first.

    A package that does not load is named in a warning and left out.
    """
    found = dict(_own_tasks())
    for source in plugins.names("pidep.tasks"):
        if source in plugins.BUILT_IN["pidep.tasks"]:
            continue
        # One broken package must not take the tasks of all others away.
        try:
            others = dict(plugins.load("pidep.tasks", source))
        except UsageError as error:
            _log.warning("%s", error)
        except (TypeError, ValueError) as error:
            _log.warning(
                "entry point %r of pidep.tasks: expected a mapping of name to PackagedTask (%s); "
                "mend or uninstall that package",
                source,
                error,
            )
        else:
            for name, task in others.items():
                found.setdefault(name, task)
    return found


@cache
def _own_tasks() -> Mapping[str, PackagedTask]:
    return {
        name: task
        for source in plugins.BUILT_IN["pidep.tasks"]
        for name, task in plugins.load("pidep.tasks", source).items()
    }
