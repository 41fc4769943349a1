"""`pidep export`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render
from pidep.errors import UsageError

__all__ = ["export"]


def export(
    runs: Annotated[list[Path], typer.Argument(help="Run folders (or expert folders); several make one bank.")],
    repo: Annotated[Path, typer.Option(help="Model repository to publish into.")] = Path("model_repo"),
    form: Annotated[str, typer.Option(help="bank (experts are swappable inputs) or merged (one expert in the weights).")] = "bank",
    recipe: Annotated[str | None, typer.Option(help="Recipe name or YAML; <form>-onnx-fp32 when absent.")] = None,
    store: Annotated[Path | None, typer.Option(help="Expert store of a bank; expert_store beside the repository when absent.")] = None,
    max_rank: Annotated[int | None, typer.Option(help="Rank of the bank's rows; the largest expert's when absent.")] = None,
    platform: Annotated[str, typer.Option(help="For merged: python, or onnxruntime for NVIDIA's container.")] = "python",
    task: Annotated[str | None, typer.Option(help="Task for the parity gate, when the folder has no task.json.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compile to ONNX, hold every expert to the parity gate, publish a complete model repository entry."""
    if form not in ("bank", "merged"):
        raise UsageError(f"--form {form!r}: expected bank or merged")
    if platform not in ("python", "onnxruntime"):
        raise UsageError(f"--platform {platform!r}: expected python or onnxruntime")
    if form == "merged" and len(runs) != 1:
        raise UsageError(f"--form merged: takes one run, found {len(runs)}; use --form bank for several")
    from pidep.export.entries import export_bank, export_merged, read_source
    from pidep.export.recipe import load_recipe

    chosen = load_recipe(recipe or f"{form}-onnx-fp32")
    if chosen.form != form:
        raise UsageError(f"--recipe {chosen.name}: is for --form {chosen.form}, not {form}")
    sources = [read_source(run, rows=chosen.parity_rows, task=task) for run in runs]
    if form == "merged":
        result = export_merged(sources[0], repo, chosen, platform="python" if platform == "python" else "onnxruntime")
    else:
        from pidep.files.atomic_write import check_place
        from pidep.serving.store import ExpertStore
        from pidep.serving.swap import publish

        folder = store or repo.resolve().parent / "expert_store"
        check_place(folder, "--store")
        held = ExpertStore(folder)
        published = {name: held.load(digest) for name, digest in held.manifest().aliases.items()}
        relative = os.path.relpath(folder.resolve(), repo.resolve() / "pidep_bank" / "1")
        result = export_bank(sources, repo, chosen, max_rank=max_rank, expert_store=relative, published=published)
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
    render.table(f"parity with PyTorch: {result.folder}", ["expert", "max abs", "argmax flips", "metric", "rows"], rows)
