"""Numeric kernels on plain tensors: `reference` in torch, `fused` in OpenAI Triton.

Each package checks its arguments and dispatches. May import torch, OpenAI Triton where it is
installed, and `pidep.files`.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.kernels.interpolate.index import ArenaIndex
    from pidep.kernels.paths import PathReport, report

__all__ = [
    "ArenaIndex",
    "PathReport",
    "report",
]

__getattr__ = lazy_names(
    __name__,
    {
        "ArenaIndex": "pidep.kernels.interpolate.index",
        "PathReport": "pidep.kernels.paths",
        "report": "pidep.kernels.paths",
    },
)
