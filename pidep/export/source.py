"""The source of an export: an expert, with real rows of its task for the parity gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pidep.errors import ExpertError, UsageError, did_you_mean
from pidep.experts.folder import Expert, check_name, read_expert, require_embeddings
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
    recorded: float | None = None
    """The metric that the expert's run measured on these very rows; None where it used others."""


def read_source(
    run: Path | Expert,
    *,
    rows: int,
    task: str | Path | Task | None = None,
    name: str | None = None,
) -> Source:
    """The expert of a run folder or expert folder, and up to `rows` test rows of its task.

    Args:
        run: the folder; or an expert in memory.
        task: a task, or its file or name; `pidep.tuning.run_folder.run_task` reads a run's own.
        name: the name to publish the expert under; its own when absent.

    Raises:
        UsageError: no task is given, or a task with other labels.
        ExpertError: the folder holds no expert, or one of an encoder-decoder.
    """
    if isinstance(run, Expert):
        expert, where = run, f"expert {run.name!r}"
    else:
        if not run.exists() and run.parent.is_dir():
            beside = [path.name for path in run.parent.iterdir() if path.is_dir()]
            raise ExpertError(
                f"{run}: no such expert folder{did_you_mean(run.name, beside)}; "
                "give a run folder, or an expert folder such as POOL/NAME"
            )
        expert, where = read_expert(resolve_expert_folder(run)), str(run)
    if name is not None:
        expert = replace(expert, name=check_name(name))
    require_embeddings(expert)
    if task is None:
        raise UsageError(
            f"{where}: has no task, so there are no real rows for the parity gate; give `task`"
        )
    found = with_labels(task if isinstance(task, Task) else load_task(task))
    # In the same order too: the gate compares label numbers.
    if tuple(found.labels) != expert.labels:
        raise UsageError(
            f"{where}: expert has the labels {', '.join(expert.labels)}, "
            f"task {found.name!r} has {', '.join(found.labels)}"
        )
    return Source(expert, found, limit(load_texts(found).test, rows, seed=0))
