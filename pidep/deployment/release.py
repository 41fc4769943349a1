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
from typing import Literal

from pidep.artifacts.names import BANK, VERSION
from pidep.errors import UsageError
from pidep.experts.folder import Expert
from pidep.export.entries import Exported, Platform, export_merged, staged_bank
from pidep.export.recipe import Recipe, load_recipe
from pidep.export.source import Source, read_source
from pidep.files.atomic_write import check_place
from pidep.serving.store import ExpertStore
from pidep.tasks.task import Task
from pidep.tuning.run_folder import run_task

__all__ = ["Form", "release_bank", "release_runs"]

_LOG = logging.getLogger(__name__)

Form = Literal["bank", "merged"]
"""`bank`: experts are inputs that can be swapped. `merged`: one expert in the weights."""


def release_runs(
    runs: Sequence[Path | Expert],
    repo: Path,
    *,
    form: Form = "bank",
    recipe: str | None = None,
    store: Path | None = None,
    max_rank: int | None = None,
    platform: Platform = "python",
    task: str | Path | Task | None = None,
) -> Exported:
    """Compile the experts of run folders, hold each to the parity gate, and publish them.

    Args:
        runs: run folders, expert folders or experts; one for `merged`.
        repo: the model repository.
        recipe: name or YAML file; `<form>-onnx-fp32` when absent.
        store: expert store of a bank; `expert_store` beside the repository when absent.
        max_rank: rank of the bank's rows; the largest expert's when absent.
        platform: backend of a merged model.
        task: task of the gate's rows, for experts and for folders without one.

    Raises:
        UsageError: settings that do not fit together, or a run that is none.
        ExpertError: an expert that this form cannot hold.
        ParityError: an expert is beyond the recipe's tolerance.
        ServingError: the store is damaged, or was changed meanwhile.
    """
    if form == "merged" and len(runs) != 1:
        raise UsageError(
            f"`form=merged`: takes one run, found {len(runs)}; use `form=bank` for several"
        )
    chosen = load_recipe(recipe or f"{form}-onnx-fp32")
    if chosen.form != form:
        raise UsageError(f"`recipe` {chosen.name}: is for `form={chosen.form}`, not {form}")
    sources = [
        read_source(run, rows=chosen.parity_rows, task=_own_task(run) if task is None else task)
        for run in runs
    ]
    if form == "merged":
        return export_merged(sources[0], repo, chosen, platform=platform)
    return release_bank(sources, repo, chosen, store=store, max_rank=max_rank)


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
