"""Whose experts help: task embeddings, their similarity, pools and the task graph.

`fisher` computes a task embedding and `measures` compares two. `pool` is a folder of experts;
`index` and `sketch` search a large one. `trial` and `zero_shot` rank helpers without a task
embedding of the target. `estimators` has all ways to rank them behind one interface. May
import `pidep.training`, `pidep.tasks`, `pidep.backbones`, `pidep.adapters`, `pidep.experts` and the
rooms below them.

Names are imported on first use: `measures` and `pool` need no torch, `fisher` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.similarity.embedding_cache import cached_fisher
    from pidep.similarity.fisher import FisherKind, diagonal_fisher
    from pidep.similarity.measures import Embedding, Neighbour, most_similar, similarity
    from pidep.similarity.pool import Pool, PoolEntry, explain_task, task_graph
    from pidep.similarity.trial import neighbours_by_trial
    from pidep.similarity.zero_shot import rank_without_labels

__all__ = [
    "Embedding",
    "FisherKind",
    "Neighbour",
    "Pool",
    "PoolEntry",
    "cached_fisher",
    "diagonal_fisher",
    "explain_task",
    "most_similar",
    "neighbours_by_trial",
    "rank_without_labels",
    "similarity",
    "task_graph",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Embedding": "pidep.similarity.measures",
        "FisherKind": "pidep.similarity.fisher",
        "Neighbour": "pidep.similarity.measures",
        "Pool": "pidep.similarity.pool",
        "PoolEntry": "pidep.similarity.pool",
        "cached_fisher": "pidep.similarity.embedding_cache",
        "diagonal_fisher": "pidep.similarity.fisher",
        "explain_task": "pidep.similarity.pool",
        "most_similar": "pidep.similarity.measures",
        "neighbours_by_trial": "pidep.similarity.trial",
        "rank_without_labels": "pidep.similarity.zero_shot",
        "similarity": "pidep.similarity.measures",
        "task_graph": "pidep.similarity.pool",
    },
)
