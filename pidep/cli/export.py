"""`pidep export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.cli.progress import progress
from pidep.deployment.settings import ExportSettings

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
    from pidep.deployment.release import release_runs

    with progress(logs=True):
        result = release_runs(runs, settings)
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
