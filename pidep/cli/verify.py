"""`pidep verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.deployment.settings import VerifySettings

__all__ = ["verify"]


@options(VerifySettings)
def verify(
    settings: VerifySettings,
    entry: Annotated[
        Path,
        typer.Argument(metavar="ENTRY", help="A model's folder, such as model_repo/pidep_bank."),
    ],
    json: Json = False,
) -> None:
    """Check that a running server answers as PyTorch did at the export.

    Asks the server the rows of the export's parity gate, and compares scores, labels, metric and
    digests. Needs neither PyTorch nor the task's data.
    """
    from pidep.deployment.verify import require_verified, verify_entry

    found = verify_entry(entry, settings.url, timeout_s=settings.timeout)
    if json:
        render.as_json([one.to_json() for one in found])
    else:
        rows = [
            [
                one.name,
                f"{one.max_abs:.2e}",
                str(one.argmax_flips),
                f"{one.metric_torch:.4f} → {one.metric_served:.4f}",
                str(one.rows),
                one.digest[:19],
            ]
            for one in found
        ]
        columns = ["expert", "max abs", "argmax flips", "metric", "rows", "digest"]
        render.table(f"served by {settings.url}: {entry}", columns, rows)
    require_verified(found)
