"""`pidep export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.cli.progress import progress
from pidep.deployment.settings import ExportSettings
from pidep.errors import UsageError

__all__ = ["export", "named_run"]


@options(ExportSettings)
def export(
    settings: ExportSettings,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUNS",
            help="Run folders or expert folders, such as POOL/NAME. Several make one bank. "
            "NAME=RUN publishes an expert under another name.",
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
        result = release_runs([named_run(run) for run in runs], settings)
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


def named_run(text: str) -> Path | tuple[str, Path]:
    """A run, or the name and the run of NAME=RUN.

    >>> named_run("film=runs/b")
    ('film', PosixPath('runs/b'))
    """
    name, sign, run = text.partition("=")
    # A folder's name may contain the sign, too.
    if not sign or "/" in name or Path(text).exists():
        return Path(text)
    if not name or not run:
        raise UsageError(f"RUNS {text!r}: expected RUN or NAME=RUN, such as film=runs/movie")
    return name, Path(run)
