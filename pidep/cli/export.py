"""`pidep export`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.deployment.settings import ExportSettings
from pidep.errors import UsageError

__all__ = ["export"]


@options(ExportSettings)
def export(
    settings: ExportSettings,
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS", help="Run folders or expert folders. Several make one bank."
        ),
    ],
    json: Json = False,
) -> None:
    """Compile experts to ONNX, check them against PyTorch, publish them.

    Each expert must pass the recipe's parity gate on real rows of its task. Then a complete entry
    is published into the model repository, and the experts into the bank's store.
    """
    form, repo = settings.form, settings.repo
    if form == "merged" and len(runs) != 1:
        raise UsageError(
            f"`form=merged`: takes one run, found {len(runs)}; use `form=bank` for several"
        )
    from pidep.export.entries import export_bank, export_merged, read_source
    from pidep.export.recipe import load_recipe

    chosen = load_recipe(settings.recipe or f"{form}-onnx-fp32")
    if chosen.form != form:
        raise UsageError(f"`recipe` {chosen.name}: is for `form={chosen.form}`, not {form}")
    sources = [read_source(run, rows=chosen.parity_rows, task=settings.task) for run in runs]
    if form == "merged":
        result = export_merged(sources[0], repo, chosen, platform=settings.platform)
    else:
        from pidep.files.atomic_write import check_place
        from pidep.serving.store import ExpertStore
        from pidep.serving.swap import publish

        folder = settings.store or repo.resolve().parent / "expert_store"
        check_place(folder, "--store")
        held = ExpertStore(folder)
        published = {name: held.load(digest) for name, digest in held.manifest().aliases.items()}
        relative = os.path.relpath(folder.resolve(), repo.resolve() / "pidep_bank" / "1")
        result = export_bank(
            sources,
            repo,
            chosen,
            max_rank=settings.max_rank,
            expert_store=relative,
            published=published,
        )
        for source in sources:
            publish(source.expert.name, source.expert, repo)
    if json:
        render.as_json(result.to_json())
        return
    rows = [
        [
            name,
            f"{parity.max_abs:.2e}",
            str(parity.argmax_flips),
            f"{parity.metric_torch:.4f} → {parity.metric_exported:.4f}",
            str(parity.rows),
        ]
        for name, parity in result.parity.items()
    ]
    columns = ["expert", "max abs", "argmax flips", "metric", "rows"]
    render.table(f"parity with PyTorch: {result.folder}", columns, rows)
