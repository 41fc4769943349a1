"""`pidep import`."""

from __future__ import annotations

import typer

from pidep.cli.options import options
from pidep.tuning.settings import ImportSettings

__all__ = ["adopt"]


@options(ImportSettings)
def adopt(settings: ImportSettings) -> None:
    """Turn an adapter of PEFT or Olive into an expert.

    Checks that the adapter fits the backbone, and adds labels and digests.
    """
    from pidep.tuning.import_peft import import_peft

    expert = import_peft(settings)
    typer.echo(f"{settings.out}  {expert.digest}")
