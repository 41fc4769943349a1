"""What needs no labels of the target, see `pidep.similarity.zero_shot`."""

from __future__ import annotations

from collections.abc import Mapping

from pidep.errors import ExpertError
from pidep.similarity.estimators.estimator import Cost, Estimator, Helper, Target
from pidep.similarity.pool import PoolEntry
from pidep.similarity.zero_shot import rank_without_labels

__all__ = ["NO_LABELS"]


def _ranked(target: Target, helpers: Mapping[str, Helper]) -> dict[str, float]:
    entries = {}
    for name, helper in helpers.items():
        if helper.fisher is None:
            raise ExpertError(
                f"expert {name!r}: has no task embedding; train it with pidep tune --pool"
            )
        entries[name] = PoolEntry(helper.expert, dict(helper.fisher))
    found = rank_without_labels(target.scorer.backbone, entries, target.rows.rows)
    return {near.name: near.similarity for near in found}


NO_LABELS = Estimator("no labels", Cost(pair_forward=1, pair_backward=1), _ranked)
