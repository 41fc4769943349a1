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
    from pidep.lab.cell_result import CellResult, MethodResult
    from pidep.lab.compare import CompareResult
    from pidep.lab.compare_summary import Summary, summarise
    from pidep.lab.report import Report, write_report
    from pidep.lab.settings import CompareSettings

__all__ = [
    "BASELINES",
    "Cell",
    "CellResult",
    "CompareResult",
    "CompareSettings",
    "MethodResult",
    "Predictor",
    "Report",
    "Summary",
    "summarise",
    "write_report",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BASELINES": "pidep.lab.baselines",
        "Cell": "pidep.lab.cell",
        "CellResult": "pidep.lab.cell_result",
        "CompareResult": "pidep.lab.compare",
        "CompareSettings": "pidep.lab.settings",
        "MethodResult": "pidep.lab.cell_result",
        "Predictor": "pidep.lab.cell",
        "Report": "pidep.lab.report",
        "Summary": "pidep.lab.compare_summary",
        "summarise": "pidep.lab.compare_summary",
        "write_report": "pidep.lab.report",
    },
)
