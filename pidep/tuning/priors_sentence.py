"""What a run's answers are decided for, in words. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["priors_sentence"]


def priors_sentence(found: Mapping[str, Any]) -> str:
    """The shares that a run's answers are decided for, and where they come from."""
    shares = ", ".join(f"{label} {share:.3f}" for label, share in found["shares"].items())
    source = {
        "training": "those of the training rows",
        "given": "as given",
        "unlabelled": f"estimated from {found['rows']} rows without labels",
    }[found["source"]]
    if found["source"] == "training":
        return f"{shares} ({source})"
    held = found["held_out_rows"]
    how = f"temperature {found['temperature']:.2f} from {held} held-out rows" if held else ""
    return f"{shares} ({source}; {how or 'nothing was held out to calibrate on'})"
