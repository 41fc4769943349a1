"""Names of what chooses neighbours, and of the figures that it finds. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ESTIMATES", "NO_LABELS", "how_text", "recorded_by"]

NO_LABELS = "no labels"
"""What chooses the neighbours of `policy=zero-shot`."""

ESTIMATES = {
    "fisher": "similarity",
    "trial": "success",
    "h-score": "H-score",
    "ranker": "predicted gain",
    NO_LABELS: "similarity",
}
"""What can choose neighbours, and the name for people of its figure."""


def how_text(by: str) -> str:
    """How neighbours were chosen, such as `by h-score`."""
    return "without labels" if by == NO_LABELS else f"by {by}"


def recorded_by(result: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What chose the neighbours of a run, from its `result.json` and its settings."""
    if config.get("policy") == "zero-shot":
        return NO_LABELS
    # Runs of early versions recorded the setting alone, which had no `auto`.
    return str(result.get("neighbours_by") or config.get("neighbours_by", "fisher"))
