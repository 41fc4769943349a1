"""Experts of tiny encoder-decoders, and rows for their gate."""

from __future__ import annotations

from typing import Any

import numpy as np

from pidep.experts.folder import Expert
from pidep.export import Source
from pidep.tasks.data import Split
from pidep.tasks.task import Task

__all__ = ["TEXTS", "free_source", "labelled_source", "noisy_expert"]

TEXTS = ["the big red cat", "a dog", "what colour is the small blue dog not", "no", "yes two"]
_LABELS = {"warm": "red", "cold": "the blue one", "none": "not green"}


def noisy_expert(
    backbone: Any, kind: str, *, name: str, seed: int = 7, free: bool = False
) -> Expert:
    """An expert that clearly changes the answers, with labels or answering freely."""
    from pidep.adapters.mixture import find_sites, fresh

    rng = np.random.default_rng(seed)
    start = fresh(backbone.model, find_sites(backbone.model, kind=kind), kind=kind, rank=2)
    sites = {
        site: {
            key: (array + rng.normal(0, 0.3, array.shape)).astype(np.float32)
            for key, array in tensors.items()
        }
        for site, tensors in start.items()
    }
    labels = {} if free else _LABELS
    return Expert(
        name=name,
        backbone=backbone.name,
        backbone_digest=backbone.digest,
        sites=sites,
        scaling=1.0,
        labels=tuple(labels),
        label_texts=tuple(labels.values()),
        label_embeddings=np.zeros((len(labels), 0), np.float32),
        logit_scale=1.0,
        max_length=16,
        max_answer_length=6 if free else None,
        kind=kind,
    )


def labelled_source(expert: Expert, rows: list[Any] | None = None) -> Source:
    """An expert with labels and rows of its task."""
    task = Task.model_validate(
        {"name": expert.name, "labels": _LABELS, "data": {"path": "unused.jsonl"}}
    )
    chosen = rows or TEXTS
    return Source(expert, task, Split(list(chosen), [at % 3 for at in range(len(chosen))]))


def free_source(expert: Expert) -> Source:
    """An expert that answers freely, with rows as `read_source` makes them."""
    from pidep.export.source import choosing

    task = Task.model_validate(
        {
            "name": expert.name,
            "input": "{text}",
            "target": "{answer}",
            "metric": "accuracy",
            "data": {"path": "unused.jsonl"},
        }
    )
    targets = [("red",), ("blue cat",), ("red",), ("two dog",), ("no",)]
    return Source(expert, task, choosing(Split(list(TEXTS), [-1] * len(TEXTS), targets)))
