"""LogME: the evidence of the target's labels under a linear model on the helper's embeddings.

Mean over the labels of log p(y | F) / N, one label against the rest, at the α (precision of the
weights) and β (precision of the noise) that maximise it. Source: You et al., LogME, ICML 2021,
algorithm 1.
"""

from __future__ import annotations

import math

import numpy as np

from pidep.similarity.estimators.estimator import Cost, Estimator, Helper, Target, Vector, each

__all__ = ["LOGME", "log_evidence"]

_ROUNDS = 100
_CLOSE = 1e-6
_TINY = 1e-12


def log_evidence(
    features: Vector,  # [N, D]
    outcome: Vector,  # [N]
) -> float:
    """max over α and β of log p(outcome | features) / N.

    Found by MacKay's fixed point. The noise is kept above 1e-12, because few rows of many features
    are fitted exactly.
    """
    count, width = features.shape
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    power = singular**2  # [min(N, D)]
    projected = (left.T @ outcome) ** 2
    beyond = max(0.0, float(outcome @ outcome - projected.sum()))  # what no weights can explain
    alpha = beta = 1.0
    for _ in range(_ROUNDS):
        shrunk = alpha + beta * power
        effective = float((beta * power / shrunk).sum())
        weights = float((power * projected * (beta / shrunk) ** 2).sum())
        residual = beyond + float((projected * (alpha / shrunk) ** 2).sum())
        found = (
            effective / max(weights, _TINY),
            max(count - effective, _TINY) / max(residual, _TINY),
        )
        moved = abs(math.log(found[0] / alpha)) + abs(math.log(found[1] / beta))
        alpha, beta = (min(max(value, _TINY), 1 / _TINY) for value in found)
        if moved < _CLOSE:
            break
    shrunk = alpha + beta * power
    weights = float((power * projected * (beta / shrunk) ** 2).sum())
    residual = beyond + float((projected * (alpha / shrunk) ** 2).sum())
    evidence = (
        width * math.log(alpha)
        + count * math.log(beta / (2 * math.pi))
        - beta * residual
        - alpha * weights
        - float(np.log(shrunk).sum())
        - (width - len(power)) * math.log(alpha)
    )
    return evidence / (2 * count)


def _logme(target: Target, helper: Helper) -> float:
    features = target.embeddings(helper.expert).numpy().astype(np.float64)
    labels = np.asarray(target.rows.labels)
    return float(
        np.mean([log_evidence(features, (labels == one).astype(float)) for one in set(labels)])
    )


LOGME = Estimator("logme", Cost(pair_forward=1), each(_logme))
