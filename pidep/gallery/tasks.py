"""The sixteen packaged tasks for `pidep.plugins`. Rows are fetched or drawn only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pidep.gallery.suite.facts import DRAWN, FACTS
from pidep.tasks.packaged import PackagedTask, Side

__all__ = ["TASKS"]


def _files(name: str) -> Mapping[Side, Path] | Path:
    if name in DRAWN:
        # Imported when rows are asked for: listing the tasks needs no icon and no drawing.
        from pidep.gallery.suite.files import packaged_files

        return packaged_files(name)
    from pidep.gallery.sentiment import packaged_rows

    return packaged_rows(name)


TASKS: Mapping[str, PackagedTask] = {
    name: PackagedTask(dict(facts.fields), partial(_files, name)) for name, facts in FACTS.items()
}
"""Name to task."""
