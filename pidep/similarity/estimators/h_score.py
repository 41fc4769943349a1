"""The H-score: how much of the helper's embeddings the target's labels explain.

tr(cov(f)⁻¹ cov(E[f | y])). With fewer rows than features the covariance has no inverse, so it is
shrunk as Ledoit and Wolf do. Sources: Bao et al., An information-theoretic approach to
transferability, ICIP 2019; Ibrahim et al., Newer is not always better, 2021 (the shrinkage).
"""

from __future__ import annotations

import numpy as np

from pidep.similarity.estimators.estimator import Cost, Estimator, Helper, Target, Vector, each

__all__ = ["H_SCORE", "h_score"]


def h_score(
    features: Vector,  # [N, D]
    labels: Vector,  # [N]
) -> float:
    """The shrunk H-score; 0 where all rows have one label or one embedding."""
    from sklearn.covariance import ledoit_wolf

    centred = features - features.mean(0)
    if not centred.any():
        return 0.0
    covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    means = np.stack([centred[labels == label].mean(0) for label in np.unique(labels)])
    shares = np.array([(labels == label).mean() for label in np.unique(labels)])
    between = np.linalg.solve(covariance, means.T)  # [D, C]
    # Ibrahim et al. shrink both covariances.
    return float((1 - shrinkage) * (shares * (means * between.T).sum(1)).sum())


def _h_score(target: Target, helper: Helper) -> float:
    features = target.embeddings(helper.expert).numpy().astype(np.float64)
    return h_score(features, np.asarray(target.rows.labels))


H_SCORE = Estimator("h-score", Cost(pair_forward=1), each(_h_score))
