"""One row's answer, and the softmax from logits to scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Answer", "Array", "softmax"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Answer:
    """One row's answer."""

    labels: tuple[str, ...]
    """C labels; none where the rows of the expert's task bring their own candidates."""
    logits: Array  # [C] fp32
    scores: Array  # [C] fp32, softmax of the logits
    digest: str
    """The version that answered."""
    embedding: Array | None = None  # [D] fp32, unit length; a merged graph gives none

    @property
    def label(self) -> str:
        """The best label; empty where there are none."""
        return self.labels[int(self.scores.argmax())] if self.labels else ""


def softmax(logits: Array) -> Array:
    """Scores that sum to 1 over the last axis.

    >>> softmax(np.array([0.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    # The largest logit is subtracted: exp overflows fp32 from 89 on.
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    scores: Array = exponent / exponent.sum(-1, keepdims=True)
    return scores
