"""`pidep compare` as a function: every method on every cell of a grid of tasks, shots and seeds.

All methods of a cell get the same rows, seed and steps. A comparison can be resumed cell by cell;
`pidep.lab.cell_files` describes its files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pidep.errors import UsageError
from pidep.files.atomic_write import write_json
from pidep.lab.cell_files import CellFiles
from pidep.lab.cell_result import CellResult
from pidep.lab.compare_grid import Grid, Part
from pidep.lab.compare_summary import Summary, summarise
from pidep.lab.measure import Measurement, OnCell
from pidep.lab.settings import GridSettings

__all__ = ["CompareResult", "OnCell", "compare"]


@dataclass(frozen=True)
class CompareResult:
    """Every finished cell of the grid."""

    out: Path
    cells: tuple[CellResult, ...]
    missing: int
    """Cells that are left to other parts, or to another run."""
    summary: Summary

    def to_json(self) -> dict[str, Any]:
        """For `--json`: the summary and every cell."""
        return {
            "out": str(self.out),
            "missing": self.missing,
            "summary": self.summary.to_json(),
            "cells": [dict(cell.record) for cell in self.cells],
        }


def compare(grid: Grid, how: GridSettings, *, on_cell: OnCell | None = None) -> CompareResult:
    """Measure the cells that are not measured yet; write the summary once none is missing.

    Args:
        how: which cells are measured, and where they are kept.
        on_cell: called before every piece of work.

    Raises:
        TaskError, BackboneError, ExpertError, UsageError: the request does not fit together, or
            the folder holds results of other settings; nothing was changed.
    """
    out, part = how.out, None if how.part is None else Part.of_text(how.part)
    if out.exists() and not out.is_dir():
        raise UsageError(f"`out` {out}: is a file; give a folder")
    # Another program's summary; the cells of a comparison lie beside its own.
    if (out / "summary.json").exists() and not ((out / "cells").is_dir() or how.overwrite):
        raise UsageError(
            f"{out}: holds a summary.json and no cells; choose another `out`, or give `overwrite`"
        )
    files, share = CellFiles(grid, out), part or Part(0, 1)
    helpers = files.missing_helpers(overwrite=how.overwrite)
    if helpers and part is not None and not how.prepare:
        raise UsageError(
            f"{out / 'pool'}: {len(helpers)} helpers are missing or of other settings; run with "
            "`prepare` before `part`"
        )
    left = (
        {} if how.prepare else files.left_to_measure(share, overwrite=how.overwrite, redo=how.redo)
    )
    measurement = Measurement(files, total=len(left), on_cell=on_cell)
    # Kinds that act from the same layer on share one cache of the layers below.
    for kinds in grid.kinds_by_depth():
        sites = [site for kind in kinds for site in grid.sites[kind]]
        with grid.backbone.cached_below(sites):
            for key in share.share(grid.helpers(grid.config.kinds)):
                if key in helpers and key.kind in kinds:
                    measurement.train_helper(key)
            for key, record in left.items():
                if key.kind in kinds:
                    measurement.measure(key, record)
    cells = tuple(cell for key in grid.cells if (cell := files.finished(key)) is not None)
    summary = summarise([cell.record for cell in cells])
    result = CompareResult(out, cells, len(grid.cells) - len(cells), summary)
    # A summary of some cells would compare methods on different tasks.
    if not result.missing:
        write_json(out / "summary.json", summary.to_json())
    return result
