"""What the answers are called: how close the target's label texts are to a helper's.

Each label of the target is compared with the helper's closest label, by the bare backbone's
embeddings. Tasks with the same label texts get 1, so the estimate ranks only pools of several label
sets.
"""

from __future__ import annotations

import torch

from pidep.errors import UsageError
from pidep.similarity.estimators.estimator import Cost, Estimator, Helper, Target, each

__all__ = ["LABEL_TEXTS"]


def _closest(target: Target, helper: Helper) -> float:
    own, other = target.scorer.label_embeddings, torch.from_numpy(helper.expert.label_embeddings)
    if not own.numel():
        raise UsageError(
            "target: has no label embeddings (an encoder-decoder, or candidates of each row); use "
            "another estimator"
        )
    if not other.numel():
        return 0.0  # a helper that chooses among candidates has no label of its own
    return float((own @ other.T).max(1).values.mean())


LABEL_TEXTS = Estimator("labels", Cost(), each(_closest))
