"""Comparisons with baselines, and reports about runs.

`compare` measures every method of `baselines` on a grid of cells; `report` writes a page about a
run folder. Only `pidep.cli` and the public API import this room. It may import everything below
`pidep.gallery`. The function `compare` is in the module of its name.

Names are imported on first use: settings and summaries need no torch.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.lab.baselines import BASELINES
    from pidep.lab.cell import Cell, Predictor
    from pidep.lab.compare import CompareResult
    from pidep.lab.compare_summary import summarise
    from pidep.lab.report import Report, write_report
    from pidep.lab.settings import CompareSettings

__all__ = [
    "BASELINES",
    "Cell",
    "CompareResult",
    "CompareSettings",
    "Predictor",
    "Report",
    "summarise",
    "write_report",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BASELINES": "pidep.lab.baselines",
        "Cell": "pidep.lab.cell",
        "CompareResult": "pidep.lab.compare",
        "CompareSettings": "pidep.lab.settings",
        "Predictor": "pidep.lab.cell",
        "Report": "pidep.lab.report",
        "summarise": "pidep.lab.compare_summary",
        "write_report": "pidep.lab.report",
    },
)
