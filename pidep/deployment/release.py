"""`pidep export` as a function: compile, check parity, publish.

A failure at any step leaves bank, versions and manifest as they were.

The order for a bank:

1. Everything is read and checked: recipe, runs, the experts that the store serves now.
2. The entry is written beside its place and passes the gate.
3. The experts' versions are written into the store. Nothing names them yet.
4. The bank is renamed into place.
5. The manifest names the versions, in one step.

With `fallback`, the experts that the gate refuses for the recipe's precision become merged models.
These pass a gate in step 2, too, and are renamed into place before the bank: whoever is sent from
the bank to such a model finds it there.

The manifest comes last because a bank always has room for the experts that were served before, but
an old bank may have none for the new ones. So a server that starts between 4 and 5 serves the old
experts from the new bank. In the other order it would refuse the new manifest and serve nobody.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from pidep.artifacts.bank import BankRecord
from pidep.artifacts.manifest import Manifest
from pidep.artifacts.merged import MergedRecord
from pidep.artifacts.names import BANK, BANK_RECORD, MERGED_RECORD, SHIM, VERSION
from pidep.backbones.load import recorded_name
from pidep.deployment.left_out import (
    carried_over,
    left_out_before,
    staged_alone,
    warn_of_models,
)
from pidep.deployment.settings import ExportSettings
from pidep.errors import ServingError, TaskError, UsageError
from pidep.experts.folder import Expert
from pidep.experts.mixed import Served
from pidep.experts.replacing import Meaning, check_same_meaning
from pidep.export.entries import Exported, export_merged, staged_bank
from pidep.export.front import export_front
from pidep.export.recipe import Recipe, load_recipe, shipped
from pidep.export.source import Source, read_source
from pidep.files.atomic_write import check_place
from pidep.serving.store import ExpertStore
from pidep.tasks.task import Task
from pidep.tuning.run_folder import recorded_metric, run_task

__all__ = ["Named", "release_bank", "release_runs"]

_LOG = logging.getLogger(__name__)


Named: TypeAlias = Path | Served | tuple[str, Path | Served]
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
        UsageError: settings that do not fit together, or a folder that is not a run.
        ExpertError: an expert that this form cannot hold, or that would change what a served name
            means.
        ParityError: an expert is beyond the recipe's tolerance.
        ServingError: the store is damaged, or was changed meanwhile.
    """
    form, given = settings.form, task or settings.task
    if form == "merged" and len(runs) != 1:
        raise UsageError(
            f"`form=merged`: takes one run, found {len(runs)}; use `form=bank` for several"
        )
    if settings.front and (form != "merged" or settings.platform == "python"):
        raise UsageError(
            "`front`: stands before a merged graph in another backend; give `form=merged` and "
            "`platform=onnxruntime` or `tensorrt`"
        )
    chosen = load_recipe(settings.recipe)
    fallback = _fallback(settings, chosen)
    sources = [
        _with_record(
            _source(run, name, given, rows=chosen.parity_rows, by_reference=form == "bank"), run
        )
        for name, run in map(_with_name, runs)
    ]
    if settings.backbone is not None:
        sources = [_with_backbone(source, settings.backbone) for source in sources]
    if form == "merged":
        _check_merged_place(sources[0].expert, settings)
        publish = export_front if settings.front else export_merged
        return publish(
            sources[0],
            settings.repo,
            chosen,
            platform=settings.platform,
            keep_rows=settings.keep_rows,
        )
    if not settings.overwrite:
        _require_own_model(settings.repo / BANK, BANK_RECORD, "this bank", do="another `repo`")
        _require_same_store(settings.repo, settings.store or _store_beside(settings.repo))
    if fallback is not None:
        for source in sources:  # any of them may become a merged model
            _check_merged_place(source.expert, settings)
    return release_bank(
        sources,
        settings.repo,
        chosen,
        fallback=fallback,
        store=settings.store,
        max_rank=settings.max_rank,
        allow_new_labels=settings.allow_new_labels,
        keep_rows=settings.keep_rows,
    )


def _fallback(settings: ExportSettings, recipe: Recipe) -> Recipe | None:
    """The recipe of experts that another recipe is too imprecise for, where it was asked for.

    Raises:
        UsageError: there is no bank, or nothing more precise.
    """
    if settings.fallback is None:
        return None
    if settings.form == "merged":
        raise UsageError(
            "`fallback`: is for experts of a bank; export a merged model that the gate refuses "
            "again, with `recipe=onnx-cpu`"
        )
    if recipe.precision == "fp32":
        raise UsageError(
            f"`fallback=fp32`: recipe {recipe.name!r} is in fp32 already; leave it out, or use "
            "`recipe=onnx-cpu-int8`"
        )
    return load_recipe("onnx-cpu")


def _check_merged_place(expert: Expert, settings: ExportSettings) -> None:
    """Refuse to replace a model that pidep did not write, or one of another meaning."""
    folder = settings.repo / expert.name
    if not settings.overwrite:
        _require_own_model(folder, MERGED_RECORD, f"{Meaning.of(expert)}", do="another name")
    try:
        old = MergedRecord.read(folder / VERSION)
    except ServingError:
        return  # absent, or damaged and to be replaced
    if not settings.allow_new_labels:
        before = Meaning(old.expert, old.digest, old.labels, old.template)
        check_same_meaning(expert.name, before, Meaning.of(expert))


def _require_own_model(folder: Path, record: str, new: str, *, do: str) -> None:
    """Refuse to replace a model that pidep did not write."""
    # A checkout of pidep has the shim alone in the place of the bank.
    shim = shipped(SHIM).read_bytes()
    held = any(
        path.is_file() and (path.name != SHIM or path.read_bytes() != shim)
        for path in folder.rglob("*")
    )
    if held and not (folder / VERSION / record).is_file():
        raise UsageError(
            f"{folder}: holds a model that pidep did not write, and {new} would replace it; "
            f"export under {do}, or give `overwrite`"
        )


def _require_same_store(repo: Path, store: Path) -> None:
    """Refuse a bank of another store: all names that the old bank serves would be gone."""
    version = repo / BANK / VERSION
    try:
        held = BankRecord.read(version).store(version)
        served = sorted(ExpertStore(held).manifest().aliases)
    except ServingError:
        return  # no bank, or a damaged one
    if served and held != store.resolve():
        raise UsageError(
            f"{repo / BANK}: serves {', '.join(served)} of the store {held}, and this export would "
            f"serve the store {store.resolve()}; give `store={held}`, or `overwrite`"
        )


def _store_beside(repo: Path) -> Path:
    return repo.resolve().parent / "expert_store"


def _with_name(run: Named) -> tuple[str | None, Path | Served]:
    return run if isinstance(run, tuple) else (None, run)


def _source(
    run: Path | Served,
    name: str | None,
    given: Task | str | None,
    *,
    rows: int,
    by_reference: bool,
) -> Source:
    """The source of a run. A run's own task may name data that have moved since."""
    read = partial(read_source, run, rows=rows, name=name, by_reference=by_reference)
    if given is not None:
        return read(task=given)
    try:
        return read(task=_own_task(run))
    except TaskError as error:
        raise TaskError(
            f"{error}; if the data have moved, give `task`, a task file that says where they lie"
        ) from error


def _with_backbone(source: Source, backbone: str) -> Source:
    """The source with another place of its backbone; the digests stay the same."""
    name = recorded_name(backbone)

    def moved(expert: Expert) -> Expert:
        return replace(expert, backbone=name)

    mixture = source.mixture
    if mixture is not None:
        parts = tuple(map(moved, mixture.parts))
        mixture = replace(mixture, head=moved(mixture.head), parts=parts)
    return replace(source, expert=moved(source.expert), mixture=mixture)


def _with_record(source: Source, run: Path | Served) -> Source:
    """The source with the metric that its run measured on the same rows."""
    if not isinstance(run, Path):
        return source
    return replace(source, recorded=recorded_metric(run, source.rows))


def _own_task(run: Path | Served) -> Task | None:
    """The task that a run folder has; an expert alone has none."""
    return run_task(run) if isinstance(run, Path) else None


def release_bank(
    sources: Sequence[Source],
    repo: Path,
    recipe: Recipe,
    *,
    fallback: Recipe | None = None,
    store: Path | None = None,
    max_rank: int | None = None,
    allow_new_labels: bool = False,
    keep_rows: bool = False,
) -> Exported:
    """Compile a bank and publish it with its experts; arguments and errors as `release_runs`.

    Args:
        fallback: the recipe of the merged models that serve experts beyond the tolerance of
            `recipe`. Without it, such an expert is an error.
    """
    folder = store or _store_beside(repo)
    # Before the compilation, which takes minutes.
    check_place(folder, "`store`")
    held = ExpertStore(folder)
    before = held.manifest()
    experts = {source.expert.name: source.served for source in sources}
    published = held.published(before)
    if not allow_new_labels:
        _check_meanings(experts, published)
    earlier = left_out_before(repo)
    with ExitStack() as stack:
        entry = stack.enter_context(
            staged_bank(
                sources,
                repo,
                recipe,
                max_rank=max_rank,
                # Relative, so that repository and store can be copied or mounted together.
                expert_store=os.path.relpath(folder.resolve(), repo.resolve() / BANK / VERSION),
                published=published,
                keep_rows=keep_rows,
                leave_out=fallback is not None,
                left_out=carried_over(earlier, given=experts, recipe=recipe),
            )
        )
        exported = entry.exported
        _LOG.info("export: %d experts passed the parity gate", len(exported.experts))
        beside = [
            stack.enter_context(staged_alone(source, repo, fallback, keep_rows=keep_rows))
            for source in sources
            if fallback is not None and source.expert.name in exported.left_out
        ]
        naming = _staged_versions(
            held, before, exported, experts, allow_new_labels=allow_new_labels
        )
        name_versions = stack.enter_context(naming)
        with ExitStack() as places:
            for one in (*beside, entry):
                places.enter_context(one.in_place())
            name_versions()
    _LOG.info("export: published %s with %s", repo / BANK, ", ".join(sorted(exported.experts)))
    warn_of_models(repo, earlier, passed=exported.experts)
    _warn_of_kept(published.keys() - experts.keys(), recipe)
    return replace(exported, beside=tuple(one.exported for one in beside))


def _check_meanings(experts: Mapping[str, Served], published: Mapping[str, Served]) -> None:
    """Refuse experts that would change what a served name means.

    The store asks again when it publishes. Here no minutes of compiling have passed yet.
    """
    for name in experts.keys() & published.keys():
        check_same_meaning(name, Meaning.of(published[name]), Meaning.of(experts[name]))


def _warn_of_kept(names: Collection[str], recipe: Recipe) -> None:
    """Say which experts the gate has not seen: they keep their names, and have no rows here."""
    if names and recipe.precision != "fp32":
        _LOG.warning(
            "export: keeps %s, which this export did not compare in %s; give their runs, too",
            ", ".join(sorted(names)),
            recipe.precision,
        )


def _staged_versions(
    store: ExpertStore,
    before: Manifest,
    exported: Exported,
    experts: Mapping[str, Served],
    *,
    allow_new_labels: bool,
) -> AbstractContextManager[Callable[[], object]]:
    """The versions of a bank's experts, as `ExpertStore.staged`.

    Args:
        before: an expert that was published since, while the graph was compiled, may not fit it.
        exported: which experts passed, and which are left out.
        experts: all that the export was given, by name.
    """
    passed, refused = exported.experts, exported.left_out
    return store.staged(
        {name: experts[name] for name in passed},
        since=before,
        allow_new_labels=allow_new_labels,
        # An older version would answer in a precision that no gate has seen it in.
        edit=lambda manifest: manifest.naming({**passed, **dict.fromkeys(refused)}),
    )
