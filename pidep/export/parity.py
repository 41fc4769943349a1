"""The parity gate: an exported graph against PyTorch on real rows of the task."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.errors import ParityError
from pidep.export.recipe import Tolerance
from pidep.tasks.metrics import score

__all__ = ["Parity", "compare", "gate"]


@dataclass(frozen=True)
class Parity:
    """How far a graph is from PyTorch."""

    rows: int
    max_abs: float
    max_relative: float
    argmax_flips: int
    metric: str
    metric_torch: float
    metric_exported: float

    def to_json(self) -> dict[str, Any]:
        """For files and `--json`."""
        return asdict(self)


def compare(reference: npt.NDArray[Any], exported: npt.NDArray[Any], labels: list[int], metric: str) -> Parity:
    """`reference` and `exported` are logits `[N, C]`.

    Raises:
        ParityError: the exported logits are not finite.
    """
    if not np.isfinite(exported).all():
        raise ParityError("parity: the exported graph gives NaN or Inf on real rows; nothing was published")
    difference = np.abs(reference.astype(np.float64) - exported.astype(np.float64))
    return Parity(
        rows=len(labels),
        max_abs=float(difference.max()),
        max_relative=float((difference / np.maximum(np.abs(reference), 1e-3)).max()),
        argmax_flips=int((reference.argmax(1) != exported.argmax(1)).sum()),
        metric=metric,
        metric_torch=score(metric, labels, reference.argmax(1).tolist()),
        metric_exported=score(metric, labels, exported.argmax(1).tolist()),
    )


def gate(name: str, parity: Parity, tolerance: Tolerance) -> None:
    """Pass, or refuse.

    Raises:
        ParityError: the first bound that is broken, with both figures.
    """
    checks = (
        ("max abs error", parity.max_abs, tolerance.max_abs),
        ("argmax flips", parity.argmax_flips, tolerance.argmax_flips),
        (f"loss of {parity.metric}", parity.metric_torch - parity.metric_exported, tolerance.metric_drop),
    )
    for what, found, allowed in checks:
        if found > allowed:
            raise ParityError(f"parity of {name!r}: {what} is {found:.3g}, the recipe allows {allowed:.3g}; nothing was published")
