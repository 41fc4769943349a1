"""`pidep export` as a function: compile, check parity, publish.

A failure at any step leaves bank, versions and manifest as they were.

The order for a bank:

1. Everything is read and checked: recipe, runs, the experts that the store serves now.
2. The entry is written beside its place and passes the gate.
3. The experts' versions are written into the store. Nothing names them yet.
4. The bank is renamed into place.
5. The manifest names the versions, in one step.

The manifest comes last because a bank always has room for the experts that were served before, but
an old bank may have none for the new ones. So a server that starts between 4 and 5 serves the old
experts from the new bank. In the other order it would refuse the new manifest and serve nobody.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from pidep.artifacts.names import BANK, VERSION
from pidep.deployment.settings import ExportSettings
from pidep.errors import UsageError
from pidep.experts.folder import Expert
from pidep.export.entries import Exported, export_merged, staged_bank
from pidep.export.recipe import Recipe, load_recipe
from pidep.export.source import Source, read_source
from pidep.files.atomic_write import check_place
from pidep.serving.store import ExpertStore
from pidep.tasks.task import Task
from pidep.tuning.run_folder import run_task

__all__ = ["Named", "release_bank", "release_runs"]

_LOG = logging.getLogger(__name__)


Named: TypeAlias = Path | Expert | tuple[str, Path | Expert]
"""A run folder, an expert folder or an expert; with a name, it is published under this name."""


def release_runs(
    runs: Sequence[Named],
    settings: ExportSettings,
    *,
    task: Task | None = None,
) -> Exported:
    """Compile the experts of run folders, hold each to the parity gate, and publish them.

    Args:
        runs: run folders, expert folders or experts, each alone or with the name that it gets;
            one for `merged`.
        settings: how they are compiled and where they are published.
        task: the task of `settings`, where it is in memory.

    Raises:
        UsageError: settings that do not fit together, or a run that is none.
        ExpertError: an expert that this form cannot hold.
        ParityError: an expert is beyond the recipe's tolerance.
        ServingError: the store is damaged, or was changed meanwhile.
    """
    form, given = settings.form, task or settings.task
    if form == "merged" and len(runs) != 1:
        raise UsageError(
            f"`form=merged`: takes one run, found {len(runs)}; use `form=bank` for several"
        )
    chosen = load_recipe(settings.recipe or f"{form}-onnx-fp32")
    if chosen.form != form:
        raise UsageError(f"`recipe` {chosen.name}: is for `form={chosen.form}`, not {form}")
    sources = [
        read_source(run, rows=chosen.parity_rows, task=given or _own_task(run), name=name)
        for name, run in map(_with_name, runs)
    ]
    if form == "merged":
        return export_merged(sources[0], settings.repo, chosen, platform=settings.platform)
    return release_bank(
        sources, settings.repo, chosen, store=settings.store, max_rank=settings.max_rank
    )


def _with_name(run: Named) -> tuple[str | None, Path | Expert]:
    return run if isinstance(run, tuple) else (None, run)


def _own_task(run: Path | Expert) -> Task | None:
    """The task that a run folder has; an expert alone has none."""
    return None if isinstance(run, Expert) else run_task(run)


def release_bank(
    sources: Sequence[Source],
    repo: Path,
    recipe: Recipe,
    *,
    store: Path | None = None,
    max_rank: int | None = None,
) -> Exported:
    """Compile a bank and publish it with its experts; arguments and errors as `release_runs`."""
    folder = store or repo.resolve().parent / "expert_store"
    # Before the compilation, which takes minutes.
    check_place(folder, "`store`")
    held = ExpertStore(folder)
    before = held.manifest()
    # Relative, so that repository and store can be copied or mounted together.
    relative = os.path.relpath(folder.resolve(), repo.resolve() / BANK / VERSION)
    experts = {source.expert.name: source.expert for source in sources}
    with staged_bank(
        sources,
        repo,
        recipe,
        max_rank=max_rank,
        expert_store=relative,
        published=held.published(before),
    ) as entry:
        # `since`: an expert that was published while the graph was compiled may not fit it.
        _LOG.info("export: %d experts passed the parity gate", len(experts))
        with held.staged(experts, since=before) as name_versions, entry.in_place():
            name_versions()
        _LOG.info("export: published %s with %s", repo / BANK, ", ".join(sorted(experts)))
        return entry.exported
