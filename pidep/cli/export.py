"""`pidep export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.cli.progress import progress
from pidep.deployment.settings import ExportSettings
from pidep.errors import UsageError

if TYPE_CHECKING:  # the command line starts without torch
    from pidep.artifacts.parity import GeneratedParity, Parity
    from pidep.export.entries import Exported

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
    _parity(result)
    if not result.left_out:
        return
    columns = ["expert", "refused because", "served by", "max abs", "metric"]
    rows = []
    for (name, one), entry in zip(result.left_out.items(), result.beside, strict=True):
        parity = entry.parity[name]
        why, figures = f"{one.precision}: {one.reason}", _metric(parity)
        rows.append([name, why, str(entry.folder), f"{parity.max_abs:.2e}", figures])
    render.table("left out of the bank, in fp32", columns, rows)


def _parity(result: Exported) -> None:
    rows = [
        [
            name,
            f"{parity.max_abs:.2e}",
            str(parity.argmax_flips),
            _metric(parity),
            str(parity.rows),
        ]
        for name, parity in result.parity.items()
    ]
    columns = ["expert", "max abs", "argmax flips", "metric", "rows"]
    texts = [parity.generated for parity in result.parity.values()]
    if any(texts):
        # Of a task of free answers, the metric above is of a choice between two texts.
        columns += ["same texts", "their metric"]
        for row, made in zip(rows, texts, strict=True):
            row += ["–", "–"] if made is None else [f"{made.same} of {made.rows}", _metric(made)]
    render.table(f"parity with PyTorch: {result.folder}", columns, rows)


def _metric(parity: Parity | GeneratedParity) -> str:
    return f"{parity.metric_torch:.4f} → {parity.metric_exported:.4f}"


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
