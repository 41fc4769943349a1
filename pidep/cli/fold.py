"""`pidep fold`."""

from __future__ import annotations

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.tuning.settings import FoldSettings

__all__ = ["fold"]


@options(FoldSettings)
def fold(settings: FoldSettings, json: Json = False) -> None:
    """Compress a mixture into one LoRA of a small rank.

    A mixture of LoRAs is a LoRA whose rank is the sum of theirs. This one is truncated by SVD, and
    the error of each site is reported.
    """
    from pidep.tuning.fold import fold_expert

    result = fold_expert(settings)
    if json:
        render.as_json(result.to_json())
        return
    rows = [[site, f"{error:.2e}"] for site, error in result.errors.items()]
    render.table(f"{result.out}  {result.digest}", ["site", "relative error"], rows)
