"""One row's answer, and the softmax from logits to scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pidep.errors import AnswerError

if TYPE_CHECKING:  # clients read answers, and need no experts
    from pidep.experts.folder import Expert

__all__ = ["Answer", "Array", "finite", "label_logits", "softmax"]

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
    text: str = ""
    """What an encoder-decoder generated."""

    @property
    def label(self) -> str:
        """The best label, or the generated text; empty where there is neither."""
        return self.labels[int(self.scores.argmax())] if self.labels else self.text


def finite(answer: Answer) -> Answer | AnswerError:
    """The answer, or an error where it holds NaN or infinity: no client could use it.

    >>> finite(Answer(("a",), np.array([np.nan]), np.array([np.nan]), "sha256:0"))
    AnswerError('the answer of sha256:0 is not finite; its numbers overflow, train it again')
    """
    numbers = (answer.logits, answer.scores, answer.embedding)
    if all(array is None or np.isfinite(array).all() for array in numbers):
        return answer
    return AnswerError(
        f"the answer of {answer.digest[:19]} is not finite; its numbers overflow, train it again"
    )


def label_logits(expert: Expert, embedding: Array) -> Array:
    """`[C]` logits of an expert's labels for one row's embedding `[D]`: scaled cosines and bias.

    `Scorer` does the same in PyTorch, and a merged graph has both inside.
    """
    logits: Array = expert.logit_scale * (expert.label_embeddings @ embedding)
    # No bias at all, instead of zeros: experts without one answer bit for bit as they always did.
    return logits + np.array(expert.label_bias, np.float32) if expert.label_bias else logits


def softmax(logits: Array) -> Array:
    """Scores that sum to 1 over the last axis.

    >>> softmax(np.array([0.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    # The largest logit is subtracted: exp overflows fp32 from 89 on.
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    scores: Array = exponent / exponent.sum(-1, keepdims=True)
    return scores
