"""Whether a run may write its folder and its pool: nothing of another run is lost. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pidep.artifacts.names import EXPERT_RECORD
from pidep.errors import ExpertError, UsageError
from pidep.experts.replacing import Meaning, found_expert, refuse_to_replace
from pidep.files.bounded_read import read_json
from pidep.tasks.task import Task, load_task
from pidep.tuning.run_folder import RUN_FILES
from pidep.tuning.settings import TuneSettings

__all__ = ["FINGERPRINT", "check_pool_place", "check_resumed", "check_run_place", "missing_helpers"]

FINGERPRINT = "run"
"""Key of an own expert's provenance: the fingerprint of the run that trained it."""


def check_run_place(
    out: Path, config: TuneSettings, name: str, *, resume: bool, overwrite: bool
) -> None:
    """Refuse to write over another run, the checkpoint of an interrupted one, or foreign files.

    Args:
        name: of the run's expert.
        resume: whether the run goes on; a finished run of the same settings may then, too.

    Raises:
        UsageError: the folder holds a run of other settings, one that would begin again, or files
            of a run's names without a run.
    """
    if overwrite:
        return
    held = found_expert(out / "expert") or found_expert(out / "own")
    if (out / "result.json").is_file() or held:
        changed = _changed(out / "config.yaml", config) if resume else []
        if resume and not changed:
            return
        settings = f" with other settings ({', '.join(changed)})" if changed else ""
        raise UsageError(
            f"{out}: holds {held or 'a finished run'}, and this run of expert {name!r}{settings} "
            "would replace it; choose another `out`, or give `overwrite`"
        )
    if (out / "checkpoint").is_dir():
        if resume:
            return
        raise UsageError(
            f"{out}: holds the checkpoint of an interrupted run, and this run of expert {name!r} "
            "would replace it; give `resume` to continue, `overwrite` to begin again"
        )
    # `--out .` in a project: other programs have a config.yaml or a metrics.json of their own.
    if foreign := [file for file in RUN_FILES if (out / file).exists()]:
        raise UsageError(
            f"{out}: holds {', '.join(foreign)} and no run, and this run of expert {name!r} would "
            "replace that; choose another `out`, or give `overwrite`"
        )


_ELSEWHERE = ("task", "device")
"""Settings that may differ: rows in memory have no file yet, and `check_resumed` compares tasks and
rows; a run may go on on another device.
"""


def _changed(path: Path, config: TuneSettings) -> list[str]:
    """Names of the settings that a finished run had otherwise; a lost record has none."""
    if not path.is_file():
        return []
    old: dict[str, Any] = read_json(path)
    new = json.loads(json.dumps(config.model_dump(mode="json")))
    defaults = {key: field.get_default() for key, field in TuneSettings.model_fields.items()}
    # Settings that an older release did not have were at their defaults.
    return [
        key
        for key, value in new.items()
        if key not in _ELSEWHERE and old.get(key, defaults.get(key)) != value
    ]


def _fingerprint_in(folder: Path) -> str | None:
    """The fingerprint of the run that trained an expert; None where it is not known."""
    from pidep.artifacts.expert_record import ExpertRecord

    try:
        return ExpertRecord.read(folder / EXPERT_RECORD).provenance.get(FINGERPRINT)
    except ExpertError:
        return None


def check_resumed(out: Path, fingerprint: str) -> None:
    """Refuse to continue a finished run with other rows or another task.

    Raises:
        UsageError: the own expert in the run folder was trained by a run of another fingerprint.
    """
    found = _fingerprint_in(out / "own")
    if found not in (None, fingerprint):
        raise UsageError(
            f"{out}: holds {found_expert(out / 'own')}, of another task, data or setting; "
            "choose another `out`, or give `overwrite`"
        )


def check_pool_place(folder: Path, task: Task, name: str, *, fingerprint: str) -> None:
    """Refuse to replace an expert of the pool by one of another task or of other settings.

    Args:
        folder: the place of the run's own expert in the pool.
        fingerprint: of the run; it trains the expert anew that it has trained before.

    Raises:
        UsageError: the pool has another expert of this name; names both.
    """
    if _fingerprint_in(folder) == fingerprint:
        return
    new = Meaning(name, "", tuple(task.labels), task.template)
    refuse_to_replace(folder, f"{new} of task {task.name!r}", do="choose another `name` or `pool`")


def missing_helpers(config: TuneSettings, name: str) -> dict[str, str]:
    """Name to task of each requested helper that the pool lacks.

    Args:
        name: of the run's own expert.

    Raises:
        UsageError: helpers without a pool, two helpers of one name, or one with the target's.
        ExpertError: the pool has an expert of that name, of another task.
    """
    if config.helpers and config.pool is None:
        raise UsageError("helpers: need `pool`, the folder their experts are kept in")
    named: dict[str, str] = {}
    for reference in config.helpers:
        task = load_task(reference)
        other = named.setdefault(task.name, reference)
        if other != reference:
            raise UsageError(
                f"helpers: {other} and {reference} are both called {task.name!r}; rename one"
            )
        if task.name == name:
            raise UsageError(
                f"helpers: {reference} has the name of this run's expert, {name!r}; give `name`"
            )
        _check_helper(config.pool / task.name if config.pool else Path(), task, reference)
    return {
        helper: reference
        for helper, reference in named.items()
        if config.pool and not (config.pool / helper / EXPERT_RECORD).is_file()
    }


def _check_helper(folder: Path, task: Task, reference: str) -> None:
    """Refuse a pool's expert that only has the helper's name."""
    from pidep.artifacts.expert_record import ExpertRecord

    # Labels that come from a hub's class names are not loaded only to be compared.
    if not (folder / EXPERT_RECORD).is_file() or task.label_text is not None:
        return
    record = ExpertRecord.read(folder / EXPERT_RECORD)
    held = Meaning(record.name, record.digest, record.labels, record.template)
    asked = Meaning(task.name, "", tuple(task.labels), task.template)
    if held.labels != asked.labels or held.template not in (None, asked.template):
        raise ExpertError(
            f"{folder}: holds {held}, and helper {reference} is {asked}; rename the task, or use "
            "another `pool`"
        )
