"""How far an exported graph is from PyTorch: the figures that every record keeps."""

from __future__ import annotations

from typing import Any

from pidep.artifacts.record import Record

__all__ = ["Parity"]


class Parity(Record):
    """Figures of the parity gate for one expert."""

    rows: int
    """Real rows of the task that were compared."""
    max_abs: float
    """Largest absolute difference of a logit."""
    max_relative: float
    """Largest difference relative to PyTorch's logit; logits below 1e-3 count as 1e-3."""
    argmax_flips: int
    """Rows whose best label differs."""
    metric: str
    """The task's metric, such as `accuracy`."""
    metric_torch: float
    metric_exported: float
    effect: float | None = None
    """How far the expert moves a logit of the bare backbone, at most; None in older files."""
    engine_ran: bool | None = None
    """Whether a TensorRT engine gave the figures, or the graph it was compiled from because the
    machine could not run it; None without an engine."""

    def to_json(self) -> dict[str, Any]:
        """For files and `--json`."""
        return self.model_dump()
