"""What the tasks are about: the cosine of the mean embeddings of their rows."""

from __future__ import annotations

import numpy as np

from pidep.errors import ExpertError
from pidep.similarity.estimators.estimator import Cost, Estimator, Helper, Target, Vector, each

__all__ = ["TEXTS", "cosine"]


def cosine(left: Vector, right: Vector) -> float:
    """The cosine of two vectors; 0 where one has no length."""
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / lengths if lengths > 0 else 0.0


def _cosine(target: Target, helper: Helper) -> float:
    if helper.mean_text is None:
        raise ExpertError(
            f"expert {helper.expert.name!r}: the pool keeps no mean embedding of its rows"
        )
    # fp64: cosines of means of one language lie close together.
    return cosine(target.embeddings(None).numpy().astype(np.float64).mean(0), helper.mean_text)


TEXTS = Estimator("text", Cost(task_forward=1), each(_cosine))
