"""NCE: minus the entropy of the target's labels given the helper's.

The helper's label of a row is its likeliest. Source: Tran et al., Transferability and hardness of
supervised classification tasks, ICCV 2019.
"""

from __future__ import annotations

import numpy as np

from pidep.similarity.estimators.estimator import Cost, Estimator, Helper, Target, each
from pidep.similarity.estimators.helper_labels import helper_probabilities, joint

__all__ = ["NCE"]


def _nce(target: Target, helper: Helper) -> float:
    soft = helper_probabilities(target, helper)
    hard = np.eye(soft.shape[1])[soft.argmax(1)]
    both = joint(target.rows.labels, hard)  # [C, Z]
    seen = both > 0
    given = both / np.where(both.sum(0) > 0, both.sum(0), 1.0)
    return float((both[seen] * np.log(given[seen])).sum())


NCE = Estimator("nce", Cost(pair_forward=1), each(_nce))
