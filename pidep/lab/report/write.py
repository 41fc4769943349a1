"""`pidep report` as a function: one self-contained HTML file about a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pidep.errors import UsageError
from pidep.files.atomic_write import write_text
from pidep.lab.report.neighbourhood import neighbourhood
from pidep.lab.report.page import page
from pidep.lab.settings import ReportSettings
from pidep.tuning.run_folder import read_run

if TYPE_CHECKING:
    from pidep.lab.report.evaluate import Evaluation, OnStep

__all__ = ["Report", "write_report"]


@dataclass(frozen=True)
class Report:
    """The written page, and the figures that were recomputed for it."""

    out: Path
    num_bytes: int
    evaluation: Evaluation | None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        found: dict[str, Any] = {"out": str(self.out), "bytes": self.num_bytes}
        if self.evaluation is not None:
            found["confusion"] = {
                one.model: one.counts.tolist() for one in self.evaluation.predictions
            }
            if (paths := self.evaluation.paths) is not None:
                found["paths"] = {
                    "rows": paths.rows,
                    "num_rows": paths.num_rows,
                    "missing": list(paths.missing),
                    "found": [path.to_json() for path in paths.found],
                }
        return found


def write_report(settings: ReportSettings, *, on_step: OnStep | None = None) -> Report:
    """Write the page about a run folder.

    Args:
        on_step: called after each measured point of a path.

    Raises:
        UsageError, ExpertError, TaskError, BackboneError: the folder is no run, or does not fit
            its pool, data or backbone; nothing was written.
    """
    run = read_run(settings.run)
    out, pool = settings.out or settings.run / "report.html", settings.pool
    if out.is_dir():
        raise UsageError(f"`out` {out}: is a folder; give a file")
    if pool is not None and not pool.is_dir():
        raise UsageError(f"`pool` {pool}: no such folder; give the pool the run was tuned with")
    pool = pool or run.pool
    near = neighbourhood(run, pool)
    evaluation = None
    if settings.evaluate:
        from pidep.lab.report.evaluate import evaluate_run

        evaluation = evaluate_run(run, pool=pool, paths=settings.paths, on_step=on_step)
    html = page(run, near, evaluation)
    write_text(out, html)
    return Report(out, len(html.encode()), evaluation)
