"""What the functions of `pidep` accept as tasks, backbones and rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pidep.errors import UsageError

if TYPE_CHECKING:
    from pidep.backbones.backbone import Backbone
    from pidep.experts.folder import Expert
    from pidep.inputs.row import Input
    from pidep.tasks.task import Task

__all__ = [
    "as_list",
    "backbone_name",
    "check_task",
    "loaded_backbone",
    "row_of",
    "task_in_memory",
    "task_name",
]


def check_task(task: Any, where: str) -> None:
    """Refuse what is no task.

    Raises:
        UsageError: begins with `where`.
    """
    from pidep.tasks.task import Task

    if not isinstance(task, str | Path | Task):
        raise UsageError(
            f"{where}: expected a task file, the name of a task or a Task, found "
            f"{type(task).__name__}"
        )


def task_name(task: str | Path | Task) -> str:
    """What settings call a task by."""
    return str(task) if isinstance(task, str | Path) else task.name


def task_in_memory(task: str | Path | Task) -> Task | None:
    """The task where it is no file and no name."""
    return None if isinstance(task, str | Path) else task


def backbone_name(backbone: str | Backbone) -> str:
    """What settings call a backbone by."""
    return backbone if isinstance(backbone, str) else backbone.name


def loaded_backbone(backbone: str | Backbone) -> Backbone | None:
    """The backbone where it is no name."""
    return None if isinstance(backbone, str) else backbone


def as_list(values: Any) -> list[Any]:
    """The values of a list; one value alone becomes a list of it."""
    from pidep.tasks.task import Task

    # A task is a pydantic model, and those iterate over their fields.
    if isinstance(values, str | Mapping | Task) or not isinstance(values, Iterable):
        return [values]
    return list(values)


def row_of(row: Input | Mapping[str, Any], expert: Expert, where: str) -> Input:
    """A row as the expert reads it.

    Raises:
        UsageError: it is no text and no mapping of columns, or has a column that is not read.
    """
    from pidep.inputs.row import Row
    from pidep.tasks.row_inputs import input_of

    if isinstance(row, str | Row):
        return row
    if not isinstance(row, Mapping):
        raise UsageError(f"predict: expected texts or dicts as rows, found {type(row).__name__}")
    if expert.template is not None:
        read = {*expert.template.columns, expert.template.image, expert.template.candidates}
        for name in {"image", "candidates"} & row.keys() - read:
            raise UsageError(f"{where}: has {name!r}, which the expert's template does not read")
        return input_of(expert.template, dict(row), where)
    unknown = row.keys() - {"text", "image", "candidates"}
    if unknown:
        raise UsageError(
            f"predict: expected rows of text, image and candidates, found {min(unknown)!r}"
        )
    candidates = tuple(row_of(one, expert, where) for one in row.get("candidates") or ())
    return Row(row.get("text") or "", row.get("image"), candidates)
