"""Helpers for a target that has no labels, ranked by the target's texts.

A task embedding is the Fisher of the task's own expert, and a target without labels has no such
expert. But the Fisher can be taken at *any* expert, and with labels drawn from the model it needs
no labels. So each helper is asked how much each of its parameters matters to the target's texts.
The answer is compared with the helper's embedding in the pool: how much they matter to the texts
that the helper was trained on.

Both are taken at the same parameters, so they differ by the texts alone, and helpers of any
initialisation can be ranked. The stored embedding may be `empirical`: at a trained expert the
labels of the data and those of the model mostly agree. What remains is mostly a constant factor,
which is why both are made free of scale first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pidep.backbones.backbone import Backbone
from pidep.errors import UsageError
from pidep.inputs.row import Input
from pidep.similarity.fisher import diagonal_fisher
from pidep.similarity.measures import Neighbour, scale_free, similarity
from pidep.similarity.pool import PoolEntry

__all__ = ["rank_without_labels", "similarity_weights"]


def rank_without_labels(
    backbone: Backbone,
    helpers: Mapping[str, PoolEntry],
    rows: Sequence[Input],
    *,
    seed: int = 0,
    batch_size: int = 16,
) -> list[Neighbour]:
    """Every helper with its similarity to the unlabelled rows, best first; ties by name.

    Costs one Fisher a helper. Inside `backbone.cached_below(sites)` the layers below the experts
    run once for all helpers.

    Raises:
        UsageError: no rows.
        ExpertError: a helper does not fit the backbone, or its embedding is of other tensors.
    """
    found = []
    for name, entry in helpers.items():
        # The labels are drawn from the helper itself, so the rows need none.
        here = diagonal_fisher(
            backbone, entry.expert, rows, kind="true", seed=seed, batch_size=batch_size
        )
        found.append(Neighbour(name, similarity(scale_free(here), scale_free(entry.embedding))))
    return sorted(found, key=lambda neighbour: (-neighbour.similarity, neighbour.name))


def similarity_weights(
    similarities: Sequence[float],
    *,
    temperature: float,
) -> npt.NDArray[np.float64]:  # [K], on the simplex
    """α = softmax(similarity / temperature).

    A temperature near 0 leaves the nearest helper alone; a large one weighs all alike.

    Raises:
        UsageError: the temperature is not above 0, or there are no similarities.
    """
    if not temperature > 0 or not similarities:
        raise UsageError(
            f"α from similarities: needs a temperature above 0 and a helper, found {temperature} "
            f"and {len(similarities)}"
        )
    scores = np.asarray(similarities, np.float64)
    # The largest score is subtracted, so that a small temperature does not overflow.
    shares = np.exp((scores - scores.max()) / temperature)
    return np.asarray(shares / shares.sum())
