"""Whether a run's answer is under what needs no expert. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["FLOORS", "under_floors", "under_sentence"]

FLOORS = {"majority": "always the commonest label", "probe": "a logistic probe"}
"""Methods without an expert, in words."""


def under_floors(metrics: Mapping[str, float]) -> list[str]:
    """The floors that are above a run's result, which is the last of its metrics."""
    names = [name for name in metrics if name not in FLOORS]
    if not names:
        return []
    return [name for name in FLOORS if metrics.get(name, -math.inf) > metrics[names[-1]]]


def under_sentence(metric: str, metrics: Mapping[str, float]) -> str:
    """Which floors are above a run's result, in a sentence; empty where none is."""
    above = [f"{FLOORS[name]} ({metrics[name]:.3f})" for name in under_floors(metrics)]
    if not above:
        return ""
    result = list(metrics.values())[-1]
    return (
        f"{metric.replace('_', ' ')} {result:.3f} is under {' and '.join(above)}: give class "
        "priors or more rows, or answer that way instead"
    )
