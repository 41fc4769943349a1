"""The paper's estimate: Fisher embeddings at each task's own expert (π-Tuning, section 3.2)."""

from __future__ import annotations

from pidep.errors import ExpertError, UsageError
from pidep.similarity.estimators.estimator import Cost, Estimator, Helper, Target, each
from pidep.similarity.measures import similarity

__all__ = ["OWN_FISHER"]


def _similarity(target: Target, helper: Helper) -> float:
    if target.own_fisher is None:
        raise UsageError("target: has no task embedding; train its own expert first")
    if helper.fisher is None:
        raise ExpertError(
            f"expert {helper.expert.name!r}: has no task embedding; train it with pidep tune --pool"
        )
    return similarity(helper.fisher, target.own_fisher)


# The embedding needs one pass; the own expert, which comes first, needs hundreds of steps.
OWN_FISHER = Estimator("fisher", Cost(task_forward=1, task_backward=1), each(_similarity))
