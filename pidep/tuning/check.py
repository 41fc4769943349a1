"""`pidep check` as a function: every problem of a task's data, before any training."""

from __future__ import annotations

from dataclasses import replace

from pidep.backbones.load import load_any_backbone
from pidep.errors import BackboneError
from pidep.tasks.check import Problem, TaskCheck, check_task
from pidep.tasks.task import load_task
from pidep.tuning.settings import CheckSettings, TuneSettings

__all__ = ["check"]


def check(settings: CheckSettings) -> TaskCheck:
    """Every problem of a task's data.

    Without a backbone in the settings, the default one counts tokens, where it is installed.

    Raises:
        TaskError: the task file itself is wrong.
        BackboneError: the backbone of the settings cannot be loaded.
    """
    task = load_task(settings.task)
    default = str(TuneSettings.model_fields["backbone"].default)
    try:
        backbone = load_any_backbone(settings.backbone or default)
    except BackboneError as error:
        if settings.backbone is not None:
            raise
        found = check_task(task)
        skipped = Problem("warning", "length", f"the texts were not measured: {error}")
        return replace(found, problems=(*found.problems, skipped))
    return check_task(task, backbone, max_length=settings.max_length)
