"""One self-contained HTML page about a run: `write_report`; `run` reads, `evaluate` recomputes, `figures` draws, `page` writes.

May import what `pidep.tuning` may; only `evaluate` imports torch.
"""

from pidep.lab.report.write import Report, write_report

__all__ = ["Report", "write_report"]
