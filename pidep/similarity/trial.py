"""Neighbours by trial: each helper is tried on the target's own training rows, which it never saw.

The Fisher embedding asks whether two tasks move the same parameters, and needs an expert of the target, which few shots make poorly. A
helper's loss on the shots asks the question itself, without bias and for one forward pass a helper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.nn.functional import cross_entropy

from pidep.adapters.mixture import Mixture
from pidep.experts.folder import Expert
from pidep.similarity.measures import Neighbour
from pidep.tasks.data import Split
from pidep.training.loop import Scorer, predict_logits

__all__ = ["SHORT_LIST", "by_trial", "tried"]

SHORT_LIST = 64
"""Of a larger pool this many are tried, those whose task embeddings are nearest."""
_TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def by_trial(scorer: Scorer, rows: Split, helpers: Mapping[str, Expert], *, top_k: int) -> list[Neighbour]:
    """The helpers that answer the rows best, best first, and none that does worse than the bare backbone; `similarity` as in `tried`."""
    bare = _probability(scorer, rows, None)
    return [one for one in tried(scorer, rows, helpers) if one.similarity > bare][:top_k]


def tried(scorer: Scorer, rows: Split, helpers: Mapping[str, Expert]) -> list[Neighbour]:
    """Every helper alone on the rows, best first.

    `similarity` is the geometric mean of the probability of the right answers, in (0, 1], at the temperature that suits the helper best:
    experts of other tasks are as sure of themselves as on their own.
    """
    found = [Neighbour(name, _probability(scorer, rows, Mixture.of([helper]))) for name, helper in helpers.items()]
    return sorted(found, key=lambda one: (-one.similarity, one.name))


def _probability(scorer: Scorer, rows: Split, mixture: Mixture | None) -> float:
    logits, labels = predict_logits(scorer, rows.rows, mixture), torch.tensor(rows.labels)
    return math.exp(-min(float(cross_entropy(logits / temperature, labels)) for temperature in _TEMPERATURES))
