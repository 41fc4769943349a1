"""Command line of a benchmark that is a grid of `pidep compare` cells.

Steps: prepare, measure by parts, restore, summarise.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import record
from pidep.errors import PidepError
from pidep.files.atomic_write import write_json
from pidep.lab.settings import CompareSettings, GridSettings
from pidep.settings import checked

__all__ = ["GridCommand", "Say", "cell_path", "column_name", "read_cells"]

Say = Callable[[int, int, str], None]
"""Called with the number done, the total, and the cell that begins."""


@dataclass(frozen=True)
class GridCommand:
    """One benchmark's grids, and the summary of their cells."""

    name: str
    """Name of the result."""
    description: str
    grids: Sequence[CompareSettings]
    out: Path
    summarise: Callable[[Path], int]
    """Reads the folder of cells and writes the result."""
    more: Mapping[str, tuple[str, Callable[[Path, Say], None]]] = field(default_factory=dict)
    """Further steps by their flag, with help."""
    restored: Callable[[Path, Mapping[str, Any]], dict[Path, Any]] = lambda _, __: {}
    """Further files by their path, from the result's raw part."""

    def main(self) -> int:
        """Parse and run."""
        parser = argparse.ArgumentParser(description=self.description)
        parser.add_argument(
            "--out",
            type=Path,
            default=self.out,
            help=f"folder of helpers and cells (default {self.out})",
        )
        parser.add_argument("--prepare", action="store_true", help="train the helpers and stop")
        parser.add_argument(
            "--part", metavar="I/N", help="every N-th cell (with --prepare: helper) from I on"
        )
        parser.add_argument(
            "--redo",
            action="append",
            default=[],
            metavar="METHOD",
            help="measure this method again in every cell",
        )
        parser.add_argument(
            "--overwrite",
            action="store_true",
            help="measure what was made with other settings anew",
        )
        for flag, (explained, _) in self.more.items():
            parser.add_argument(f"--{flag}", action="store_true", help=explained)
        parser.add_argument(
            "--summarise", action="store_true", help=f"write benchmarks/results/{self.name}.json"
        )
        parser.add_argument(
            "--restore",
            action="store_true",
            help=f"write the cells of {self.name}.json into the folder",
        )
        options = parser.parse_args()
        try:
            if options.restore:
                return self.restore(options.out)
            if options.summarise:
                return self.summarise(options.out)
            self._run(options)
        except PidepError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        return 0

    def restore(self, out: Path) -> int:
        """Write the cells that the folder lacks from the committed result, so that they need no
        run.
        """
        raw = json.loads((record.RESULTS / f"{self.name}.json").read_text(encoding="utf-8"))["raw"]
        places = {cell_path(out, cell): cell for cell in raw["cells"]} | self.restored(out, raw)
        left = {path: value for path, value in places.items() if not path.is_file()}
        for path, value in left.items():
            write_json(path, value)
        print(f"{out}: {len(left)} of {len(places)} files restored")
        return 0

    def _run(self, options: argparse.Namespace) -> None:
        import torch

        from pidep.backbones.load import load_backbone
        from pidep.lab.compare import compare
        from pidep.lab.compare_grid import Grid

        torch.set_num_threads(1)
        started = time.monotonic()

        def say(done: int, total: int, what: str) -> None:
            print(
                f"{time.monotonic() - started:7.0f} s  {done}/{total}  {what}",
                file=sys.stderr,
                flush=True,
            )

        asked = [step for flag, (_, step) in self.more.items() if getattr(options, flag)]
        for step in asked:
            step(options.out, say)
        if asked:
            return
        how = checked(
            GridSettings,
            {
                "out": options.out,
                "part": options.part,
                "prepare": options.prepare,
                "redo": tuple(options.redo),
                "overwrite": options.overwrite,
            },
            where=self.name,
        )
        backbones = {name: load_backbone(name) for name in {grid.backbone for grid in self.grids}}
        for grid in self.grids:
            compare(Grid(grid, backbones[grid.backbone]), how, on_cell=say)


def read_cells(
    grids: Sequence[CompareSettings], tasks: Sequence[str], out: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Every finished cell of the grids. Missing cells are listed on standard error."""
    from pidep.lab.compare_grid import cells_of, methods_of

    cells, missing = [], []
    for grid in grids:
        for key in cells_of(grid, tasks):
            path, methods = out / key.path, methods_of(grid, key.kind)
            cell = (
                json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"methods": {}}
            )
            if methods.keys() <= cell["methods"].keys():
                cells.append(
                    {**cell, "methods": {method: cell["methods"][method] for method in methods}}
                )
            else:
                missing.append(str(key))
    for key_name in missing[:1]:
        print(
            f"{out}: {len(missing)} of {len(missing) + len(cells)} cells are missing, the first "
            f"is {key_name}",
            file=sys.stderr,
        )
    return cells, missing


def cell_path(out: Path, cell: Mapping[str, Any]) -> Path:
    """Path of a cell in the folder."""
    from pidep.lab.compare_grid import Key

    return out / Key(cell["kind"], cell["task"], cell["shots"], cell["seed"]).path


def column_name(shots: int | None) -> str:
    """`8 shots`, or `full data`."""
    return f"{shots} shots" if shots else "full data"
