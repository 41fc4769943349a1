"""Estimators of transfer: which expert of a pool would help a target, from the target's few rows.

One file an estimator. Each gives a number a helper and says what it costs in passes; see
`estimator`. `pidep tune` uses `fisher`, `trial` and `h-score` by name. The others are measured in
`benchmarks/bench_prediction.py`, see docs/concepts/prediction.md. May import what
`pidep.similarity` may.
"""

from __future__ import annotations

from pidep.similarity.estimators.base_point import (
    BasePoint,
    PointFacts,
    mean_point,
    point_facts,
    random_point,
)
from pidep.similarity.estimators.estimator import Cost, Estimator, Helper, Target, ranked
from pidep.similarity.estimators.h_score import H_SCORE
from pidep.similarity.estimators.ranker import Ranker, Trialled, fit_ranker
from pidep.similarity.estimators.registry import ESTIMATORS

__all__ = [
    "ESTIMATORS",
    "H_SCORE",
    "BasePoint",
    "Cost",
    "Estimator",
    "Helper",
    "PointFacts",
    "Ranker",
    "Target",
    "Trialled",
    "fit_ranker",
    "mean_point",
    "point_facts",
    "random_point",
    "ranked",
]
