"""`pidep compare` as a function: every method on every cell of a grid of tasks, shots and seeds.

All methods of a cell get the same rows, seed and steps. A comparison can be resumed cell by cell;
`pidep.lab.cell_files` describes its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pidep.backbones.backbone import Backbone
from pidep.backbones.load import load_backbone
from pidep.errors import UsageError
from pidep.files.atomic_write import write_json
from pidep.lab.cell_files import CellFiles, Record
from pidep.lab.compare_grid import Grid, Part
from pidep.lab.compare_summary import summarise
from pidep.lab.measure import Measurement, OnCell
from pidep.lab.settings import CompareSettings, Method

__all__ = ["CompareResult", "OnCell", "compare"]


@dataclass(frozen=True)
class CompareResult:
    """Every finished cell of the grid."""

    out: Path
    cells: list[Record]
    missing: int
    """Cells that are left to other parts, or to another run."""
    summary: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For `--json`: the summary and every cell."""
        return {
            "out": str(self.out),
            "missing": self.missing,
            "summary": self.summary,
            "cells": self.cells,
        }


def compare(
    config: CompareSettings,
    out: Path,
    *,
    part: Part | None = None,
    prepare: bool = False,
    overwrite: bool = False,
    redo: Sequence[Method] = (),
    backbone: Backbone | None = None,
    on_cell: OnCell | None = None,
) -> CompareResult:
    """Measure the cells that are not measured yet; write the summary once none is missing.

    Args:
        part: measure this share of the cells only; the helpers must be there then.
        prepare: train the helpers (with `part`, this share of them) and stop.
        overwrite: replace cells and helpers of other settings instead of refusing them.
        redo: methods to measure again.
        on_cell: called before every piece of work.

    Raises:
        TaskError, BackboneError, ExpertError, UsageError: the request does not fit together, or
            the folder holds results of other settings; nothing was changed.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"`out` {out}: is a file; give a folder")
    grid = Grid(config, backbone or load_backbone(config.backbone))
    files, share = CellFiles(grid, out), part or Part(0, 1)
    helpers = files.missing_helpers(overwrite=overwrite)
    if helpers and part is not None and not prepare:
        raise UsageError(
            f"{out / 'pool'}: {len(helpers)} helpers are missing or of other settings; run with "
            "`prepare` before `part`"
        )
    left = {} if prepare else files.left_to_measure(share, overwrite=overwrite, redo=redo)
    measurement = Measurement(files, total=len(left), on_cell=on_cell)
    # Kinds that act from the same layer on share one cache of the layers below.
    for kinds in grid.kinds_by_depth():
        sites = [site for kind in kinds for site in grid.sites[kind]]
        with grid.backbone.cached_below(sites):
            for key in share.share(grid.helpers(config.kinds)):
                if key in helpers and key.kind in kinds:
                    measurement.train_helper(key)
            for key, record in left.items():
                if key.kind in kinds:
                    measurement.measure(key, record)
    cells = [cell for key in grid.cells if (cell := files.finished(key)) is not None]
    result = CompareResult(out, cells, len(grid.cells) - len(cells), summarise(cells))
    # A summary of some cells would compare methods on different tasks.
    if not result.missing:
        write_json(out / "summary.json", result.summary)
    return result
