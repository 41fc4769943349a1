"""Metrics by name."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["score"]


def score(metric: str, labels: Sequence[int], predictions: Sequence[int]) -> float:
    """`accuracy` or `macro_f1`, in [0, 1]."""
    from sklearn.metrics import accuracy_score, f1_score

    if metric == "macro_f1":
        return float(f1_score(labels, predictions, average="macro", zero_division=0.0))
    return float(accuracy_score(labels, predictions))
