"""Fisher embeddings at one base point for all tasks (Task2Vec's way)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pidep.errors import ExpertError
from pidep.similarity.estimators.base_point import PointFacts
from pidep.similarity.estimators.estimator import Cost, Estimator, Helper, Target, Vector
from pidep.similarity.estimators.texts import cosine
from pidep.similarity.measures import TensorLayout, scale_free

__all__ = ["PRIOR_ROWS", "helper_facts", "point_fisher"]

PRIOR_ROWS = 64
"""The pool's mean counts as this many rows, where an embedding is shrunk."""
_FLOOR = 1e-6
"""A zero counts as this share of its tensor's mean."""


def helper_facts(helper: Helper, point: str) -> PointFacts:
    """What a helper's rows say at a base point.

    Raises:
        ExpertError: the pool does not keep it.
    """
    if point not in helper.at:
        raise ExpertError(
            f"expert {helper.expert.name!r}: the pool keeps nothing of its task at the base point "
            f"{point!r}; give `point_facts` of its rows"
        )
    return helper.at[point]


def point_fisher(
    point: str, *, prior_rows: float | None = None, centred: bool = False
) -> Estimator:
    """The similarity of Fisher embeddings at a base point.

    Args:
        prior_rows: shrink every embedding towards the pool's mean, which counts as this many rows.
        centred: compare what sets tasks apart: the cosine of log embeddings minus their mean over
            the pool, in place of the normalised cosine.
    """

    def estimate(target: Target, helpers: Mapping[str, Helper]) -> dict[str, float]:
        if not helpers:
            return {}
        facts = {name: helper_facts(helper, point) for name, helper in helpers.items()}
        layout = TensorLayout.of(target.facts(point).fisher)
        vectors = {name: _vector(layout, one) for name, one in facts.items()}
        mean = np.mean(list(vectors.values()), axis=0, dtype=np.float64)

        def shrunk(vector: Vector, rows: int) -> Vector:
            share = 0.0 if prior_rows is None else prior_rows / (rows + prior_rows)
            return np.asarray((1 - share) * vector + share * mean)

        own = shrunk(_vector(layout, target.facts(point)), target.facts(point).num_rows)
        others = {name: shrunk(vectors[name], facts[name].num_rows) for name in facts}
        if not centred:
            return {
                name: layout.similarity(own.astype(np.float32), other.astype(np.float32))
                for name, other in others.items()
            }
        logs = {name: _logs(layout, other) for name, other in others.items()}
        middle = np.mean(list(logs.values()), axis=0)
        mine = _logs(layout, own) - middle
        return {name: cosine(mine, log - middle) for name, log in logs.items()}

    words = ["centred"] * centred + ["shrunk"] * (prior_rows is not None)
    name = ", ".join([f"fisher at the {point} point", *words])
    return Estimator(name, Cost(task_forward=1, task_backward=1), estimate)


def _vector(layout: TensorLayout, facts: PointFacts) -> Vector:
    # Free of scale: what matters is which parameters matter more than others.
    return layout.vector(scale_free(facts.fisher)).astype(np.float64)


def _logs(layout: TensorLayout, vector: Vector) -> Vector:
    """Centred logarithms, every tensor weighed alike, as in `pidep.similarity.sketch`."""
    found = np.empty(len(vector))
    for span in layout.spans:
        own = np.log(vector[span] + _FLOOR)
        found[span] = (own - own.mean()) / np.sqrt(len(own))
    return found
