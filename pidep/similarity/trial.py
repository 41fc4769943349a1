"""Neighbours by trial: each helper answers the target's training rows, which are new to it.

The Fisher embedding asks whether two tasks move the same parameters. It needs an expert of the
target, and few shots make a poor one. A helper's loss on the shots asks the question directly:
without bias, and for one forward pass a helper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pidep.adapters.mixture import Mixture
from pidep.experts.folder import Expert
from pidep.similarity.measures import Neighbour
from pidep.tasks.data import Split
from pidep.training.scorer import Scorer, predict_logits

__all__ = ["SHORT_LIST", "neighbours_by_trial", "rank_by_trial", "success"]

SHORT_LIST = 64
"""Helpers tried at most; of a larger pool those whose task embeddings are nearest."""
_TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def neighbours_by_trial(
    scorer: Scorer, rows: Split, helpers: Mapping[str, Expert], *, top_k: int
) -> list[Neighbour]:
    """The helpers that answer the rows best, best first.

    Helpers that do worse than the bare backbone are left out. `similarity` is that of
    `rank_by_trial`.
    """
    # A helper that the bare backbone beats would only pull the mixture away from it.
    bare = _probability(scorer, rows, None)
    return [one for one in rank_by_trial(scorer, rows, helpers) if one.similarity > bare][:top_k]


def rank_by_trial(scorer: Scorer, rows: Split, helpers: Mapping[str, Expert]) -> list[Neighbour]:
    """Every helper with its success on the rows, best first; ties by name.

    `similarity` is the geometric mean of the probability of the right answers, in (0, 1]. It is
    taken at the temperature that suits the helper best, because an expert is as confident on
    rows of another task as on its own.
    """
    found = [
        Neighbour(name, _probability(scorer, rows, Mixture.of([helper])))
        for name, helper in helpers.items()
    ]
    return sorted(found, key=lambda one: (-one.similarity, one.name))


def success(
    logits: Tensor,  # [N, C]
    labels: Sequence[int],
) -> float:
    """The geometric mean of the right labels' probabilities, at the temperature that suits best."""
    right = torch.tensor(labels)
    return math.exp(
        -min(float(cross_entropy(logits / temperature, right)) for temperature in _TEMPERATURES)
    )


def _probability(scorer: Scorer, rows: Split, mixture: Mixture | None) -> float:
    return success(predict_logits(scorer, rows.rows, mixture), rows.labels)
