"""What is exported: an expert, with real rows of its task for the parity gate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pidep.errors import UsageError
from pidep.experts.folder import Expert, read_expert, require_embeddings
from pidep.experts.resolve import resolve_expert_folder
from pidep.tasks.data import Split, limit, load_texts
from pidep.tasks.hub import with_labels
from pidep.tasks.task import Task, load_task

__all__ = ["Source", "read_source"]


@dataclass(frozen=True)
class Source:
    """An expert to export, with real rows of its task."""

    expert: Expert
    task: Task
    rows: Split


def read_source(run: Path, *, rows: int, task: str | None = None) -> Source:
    """A run folder's (or expert folder's) expert, and up to `rows` test rows of its task.

    Args:
        task: a task file or name; the run folder's own when absent.

    Raises:
        UsageError: an expert folder without a task, and none given; or a task with other labels.
        ExpertError: the folder holds no expert, or one of an encoder-decoder.
    """
    expert = read_expert(resolve_expert_folder(run))
    require_embeddings(expert)
    if task is not None:
        found = with_labels(load_task(task))
    elif (run / "task.json").is_file():
        found = _task_of(run / "task.json")
    else:
        raise UsageError(
            f"{run}: no task.json, so there are no real rows for the parity gate; give `task`"
        )
    if tuple(found.labels) != expert.labels:
        raise UsageError(
            f"{run}: expert has the labels {', '.join(expert.labels)}, "
            f"task {found.name!r} has {', '.join(found.labels)}"
        )
    return Source(expert, found, limit(load_texts(found).test, rows, seed=0))


def _task_of(path: Path) -> Task:
    try:
        return Task.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UsageError(
            f"{path}: damaged ({reason}); give `task`, or run pidep tune again"
        ) from error
