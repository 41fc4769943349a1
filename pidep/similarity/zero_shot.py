"""Which helpers suit a target that has no labels.

A task embedding is the Fisher of the task's own expert, and a target without labels has none to train. But the Fisher can be
taken at *any* expert, and with labels drawn from the model it needs no labels: so each helper is asked how its own parameters
matter to the target's texts, and the answer is compared with how they matter to the texts it was trained on (its embedding in
the pool). Both are taken at the same parameters, so they differ by the texts alone, and helpers of any initialisation can be
ranked. The stored embedding may be `empirical`: at a trained expert the labels of the data and those of the model mostly
agree, and what is left is mostly a factor, which is why both are made free of scale first.
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

__all__ = ["weights", "without_labels"]


def without_labels(
    backbone: Backbone, helpers: Mapping[str, PoolEntry], rows: Sequence[Input], *, seed: int = 0, batch_size: int = 16
) -> list[Neighbour]:
    """Every helper with its similarity to the target's unlabelled rows, best first; ties by name.

    Costs one Fisher a helper; inside `backbone.cached_below(sites)` the layers below are run once for all of them.

    Raises:
        UsageError: no rows.
        ExpertError: a helper does not fit the backbone, or its embedding is not of its own tensors.
    """
    found = []
    for name, entry in helpers.items():
        here = diagonal_fisher(backbone, entry.expert, rows, kind="true", seed=seed, batch_size=batch_size)
        found.append(Neighbour(name, similarity(scale_free(here), scale_free(entry.embedding))))
    return sorted(found, key=lambda neighbour: (-neighbour.similarity, neighbour.name))


def weights(
    similarities: Sequence[float],
    *,
    temperature: float,
) -> npt.NDArray[np.float64]:  # [K], on the simplex
    """α = softmax(similarity / temperature): the nearest helper alone as it nears 0, all alike as it grows.

    Raises:
        UsageError: the temperature is not above 0, or there is nothing to weigh.
    """
    if not temperature > 0 or not similarities:
        raise UsageError(f"α from similarities: needs a temperature above 0 and a helper, found {temperature} and {len(similarities)}")
    scores = np.asarray(similarities, np.float64)
    shares = np.exp((scores - scores.max()) / temperature)
    return np.asarray(shares / shares.sum())
