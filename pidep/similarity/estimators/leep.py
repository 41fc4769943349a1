"""LEEP: the log-likelihood of the target's labels given the helper's labels.

The helper's labels are soft. P(y | z) is estimated on the target's rows, then the rows are scored
by Σ_z P(y | z) p(z | row). Source: Nguyen et al., LEEP, ICML 2020, equations 1 and 2.
"""

from __future__ import annotations

import numpy as np

from pidep.similarity.estimators.estimator import Cost, Estimator, Helper, Target, each
from pidep.similarity.estimators.helper_labels import helper_probabilities, joint

__all__ = ["LEEP"]


def _leep(target: Target, helper: Helper) -> float:
    soft, labels = helper_probabilities(target, helper), target.rows.labels
    both = joint(labels, soft)  # [C, Z]
    # Every p(z | row) is above 0, but may be rounded to it.
    given = both / np.maximum(both.sum(0, keepdims=True), 1e-300)
    likelihood = (soft * given[labels]).sum(1)
    return float(np.log(np.maximum(likelihood, 1e-300)).mean())


LEEP = Estimator("leep", Cost(pair_forward=1), each(_leep))
