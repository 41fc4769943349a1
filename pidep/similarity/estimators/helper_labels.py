"""The helper's own labels on the target's rows, from the forward pass of the trial."""

from __future__ import annotations

import numpy as np
import torch

from pidep.errors import UsageError
from pidep.similarity.estimators.estimator import Helper, Target, Vector

__all__ = ["helper_probabilities", "joint"]


def helper_probabilities(target: Target, helper: Helper) -> Vector:  # [N, Z]
    """p(helper's label | row) of the target's rows under the helper.

    Raises:
        UsageError: the helper chooses among candidates, so it has no labels.
    """
    expert = helper.expert
    if not expert.label_embeddings.size:
        raise UsageError(
            f"expert {expert.name!r}: has no label embeddings, so no labels for the target's rows; "
            "use another estimator"
        )
    labels = torch.from_numpy(expert.label_embeddings)
    logits = expert.logit_scale * target.embeddings(expert) @ labels.T
    return np.asarray(logits.double().softmax(1).numpy(), np.float64)


def joint(labels: list[int], weights: Vector) -> Vector:  # [C, Z]
    """The joint distribution of the target's labels and the helper's, over the rows.

    Args:
        weights: `[N, Z]`, each row sums to 1.
    """
    found = np.zeros((max(labels) + 1, weights.shape[1]))
    np.add.at(found, labels, weights)
    return found / len(labels)
