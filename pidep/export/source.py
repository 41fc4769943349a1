"""The source of an export: an expert, with real rows of its task for the parity gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pidep.errors import ExpertError, UsageError, did_you_mean
from pidep.experts.folder import Expert, check_name
from pidep.experts.mixed import MixedExpert, Served, head_of, parts_of
from pidep.experts.mixture_folder import read_served
from pidep.experts.resolve import resolve_expert_folder, resolve_served_folder
from pidep.inputs.row import Input, as_row
from pidep.tasks.data import Split, limit, load_texts
from pidep.tasks.hub import with_labels
from pidep.tasks.task import Task, load_task

__all__ = ["Source", "choosing", "read_source"]

_CALIBRATION_ROWS = 64


@dataclass(frozen=True)
class Source:
    """An expert or a mixture to export, with real rows of its task."""

    expert: Expert
    """The expert; the head of a mixture, which has no tensors of its own."""
    task: Task
    rows: Split
    recorded: float | None = None
    """The metric that the expert's run measured on these very rows; None where it used others."""
    calibration: Sequence[Input] = ()
    """Training rows, for recipes that measure before they quantise."""
    mixture: MixedExpert | None = None
    """What a bank serves by reference to its parts."""

    @property
    def metric(self) -> str:
        """The metric of the gate: the task's, or how often the right text is the likelier one."""
        return self.task.metric if self.task.target is None else "accuracy"

    @property
    def served(self) -> Served:
        """What the name means once it is published."""
        return self.mixture or self.expert

    @property
    def parts(self) -> tuple[Expert, ...]:
        """The experts whose tensors a bank must hold."""
        return parts_of(self.served)


def read_source(
    run: Path | Served,
    *,
    rows: int,
    task: str | Path | Task | None = None,
    name: str | None = None,
    by_reference: bool = False,
) -> Source:
    """The expert of a run folder or expert folder, and up to `rows` test rows of its task.

    Args:
        run: the folder; or an expert or mixture in memory.
        task: a task, or its file or name; `pidep.tuning.run_folder.run_task` reads a run's own.
        name: the name to publish the expert under; its own when absent.
        by_reference: a run's mixture by reference to its parts, where the run has one. Without it,
            the mixture as one folded expert.

    Raises:
        UsageError: no task is given, or a task with other labels.
        ExpertError: the folder holds no expert.
    """
    if not isinstance(run, Path):
        served, where = run, f"expert {head_of(run).name!r}"
    else:
        if not run.exists() and run.parent.is_dir():
            beside = [path.name for path in run.parent.iterdir() if path.is_dir()]
            raise ExpertError(
                f"{run}: no such expert folder{did_you_mean(run.name, beside)}; "
                "give a run folder, or an expert folder such as POOL/NAME"
            )
        folder = resolve_served_folder(run) if by_reference else resolve_expert_folder(run)
        served, where = read_served(folder), str(run)
    if name is not None:
        served = _renamed(served, check_name(name))
    expert = head_of(served)
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
    data = load_texts(found)
    return Source(
        expert,
        found,
        choosing(limit(data.test, rows, seed=0)),
        calibration=limit(data.train, _CALIBRATION_ROWS, seed=0).rows,
        mixture=served if isinstance(served, MixedExpert) else None,
    )


def choosing(split: Split) -> Split:
    """Rows of free answers as a choice between their own target and another row's."""
    if not split.targets:
        return split
    texts = [targets[0] for targets in split.targets]
    # The next row's of another text: a row's own target twice would be no choice.
    others = [
        next((other for other in [*texts[at + 1 :], *texts] if other != text), f"no {text}")
        for at, text in enumerate(texts)
    ]
    rows: list[Input] = [
        replace(as_row(row), candidates=tuple(both))
        for row, *both in zip(split.rows, texts, others, strict=True)
    ]
    return Split(rows, [0] * len(rows), split.targets)


def _renamed(served: Served, name: str) -> Served:
    if isinstance(served, MixedExpert):
        return replace(served, head=replace(served.head, name=name))
    return replace(served, name=name)
