"""One self-contained HTML page about a run.

`write` is the entry. `evaluate` recomputes figures, and alone imports torch; `neighbourhood`
compares the run with its pool; `figures` draws, `page` writes.
"""

from pidep.lab.report.write import Report, write_report

__all__ = ["Report", "write_report"]
