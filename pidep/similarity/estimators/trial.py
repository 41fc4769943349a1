"""The success of each helper on the target's rows, see `pidep.similarity.trial`."""

from __future__ import annotations

from pidep.similarity.estimators.estimator import Cost, Estimator, Helper, Target, each
from pidep.similarity.trial import success

__all__ = ["TRIAL"]


def _success(target: Target, helper: Helper) -> float:
    return success(target.logits(helper.expert), target.rows.labels)


TRIAL = Estimator("trial", Cost(pair_forward=1), each(_success))
