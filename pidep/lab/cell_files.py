"""The files of a comparison: which cells and helpers are there, and made with these settings.

<out>/pool/<kind>/<task>/                           the helpers: experts trained on full data
<out>/cells/<kind>/<task>/<shots|full>/<seed>.json  a cell: the score of each method
<out>/summary.json                                  means, deviations, differences, losing cases
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pidep.errors import UsageError
from pidep.files.atomic_write import write_json
from pidep.files.bounded_read import parse_json
from pidep.lab.cell_result import CellResult
from pidep.lab.compare_grid import Grid, Key, Part, methods_of
from pidep.lab.settings import Method
from pidep.similarity.pool import read_pool

__all__ = ["CellFiles", "Record"]

Record = dict[str, Any]
"""The content of a cell's file."""


@dataclass(frozen=True)
class CellFiles:
    """The folder that a grid is measured into."""

    grid: Grid
    out: Path

    def helper_folder(self, key: Key) -> Path:
        """The expert folder of a helper."""
        return self.out / "pool" / key.kind / key.task

    def missing_helpers(self, *, overwrite: bool) -> list[Key]:
        """The helpers that must be trained.

        Raises:
            UsageError: a helper was trained with other settings, and `overwrite` is not set.
        """
        missing = []
        for kind in self.grid.sites:
            have = read_pool(self.out / "pool" / kind)
            for key in self.grid.helpers([kind]):
                there = have.get(key.task)
                wanted = self.grid.expert_settings(key)
                same = there is not None and there.expert.provenance.get("settings") == wanted
                if there is not None and not same and not overwrite:
                    raise UsageError(
                        f"{self.helper_folder(key)}: this helper was trained with other settings; "
                        "choose another "
                        "`out`, or run with `overwrite`"
                    )
                if not same:
                    missing.append(key)
        return missing

    def left_to_measure(
        self, part: Part, *, overwrite: bool, redo: Sequence[Method]
    ) -> dict[Key, Record]:
        """The part's cells that lack a method, with what they have so far.

        Scores that must be measured again are removed from the files at once, after all checks.

        Raises:
            UsageError: a cell was measured with other settings, and neither `overwrite` nor
                `redo` covers it.
        """
        left: dict[Key, Record] = {}
        changed: dict[Key, Record] = {}
        for key in part.share(self.grid.cells):
            settings, methods = self.grid.cell_settings(key), methods_of(self.grid.config, key.kind)
            record = self.read(key) or {"settings": settings, "methods": {}}
            kept = {name: found for name, found in record["methods"].items() if name not in redo}
            other = {
                name
                for name in methods.keys() & kept.keys()
                if kept[name]["settings"] != methods[name]
            }
            if record["settings"] != settings:
                self._refuse(
                    key,
                    "it was measured with other settings, rows or helpers",
                    "choose another `out`",
                    overwrite=overwrite,
                )
                record, kept = {"methods": record["methods"]}, {}
            elif other:
                self._refuse(
                    key,
                    f"{min(other)!r} was measured with other settings",
                    f"run with `redo={min(other)}`",
                    overwrite=overwrite,
                )
                kept = {name: found for name, found in kept.items() if name not in other}
            new = {**record, "settings": settings, "methods": kept}
            if kept.keys() != record["methods"].keys():
                changed[key] = new
            if not methods.keys() <= kept.keys():
                left[key] = new
        # Only after every cell passed its check: a refusal changes nothing.
        for key, new in changed.items():
            write_json(self.out / key.path, new)
        return left

    def _refuse(self, key: Key, why: str, instead: str, *, overwrite: bool) -> None:
        if not overwrite:
            raise UsageError(f"{self.out / key.path}: {why}; {instead}, or run with `overwrite`")

    def read(self, key: Key) -> Record | None:
        """A cell's file, finished or not; None where there is none.

        Raises:
            UsageError: the file is damaged.
        """
        path = self.out / key.path
        try:
            record: Record = parse_json(path.read_bytes())
            return {
                **record,
                "settings": record["settings"],
                "methods": {name: {**found} for name, found in record["methods"].items()},
            }
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, error) from error

    def finished(self, key: Key) -> CellResult | None:
        """A cell with every requested method, measured with these settings; None otherwise.

        Methods that were not requested are left out.

        Raises:
            UsageError: the file is damaged.
        """
        record, methods = self.read(key), methods_of(self.grid.config, key.kind)
        if record is None or record["settings"] != self.grid.cell_settings(key):
            return None
        if any(
            record["methods"].get(method, {}).get("settings") != settings
            for method, settings in methods.items()
        ):
            return None
        wanted = {method: record["methods"][method] for method in methods}
        try:
            return CellResult.of({**record, "methods": wanted})
        except (KeyError, TypeError) as error:
            raise _damaged(self.out / key.path, error) from error


def _damaged(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"{path}: damaged cell ({type(error).__name__}: {error}); delete it and run again"
    )
