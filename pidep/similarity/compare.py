"""Similarity of two task embeddings; numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError

__all__ = ["Neighbour", "most_similar", "similarity", "similarity_by_tensor"]

Embedding = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Neighbour:
    """A task near the target."""

    name: str
    similarity: float


def similarity_by_tensor(left: Embedding, right: Embedding) -> dict[str, float]:
    """Per expert tensor the cosine of l/(l+r) with r/(l+r) (the normalised cosine of Task2Vec, as in π-Tuning), in [0, 1]."""
    if left.keys() != right.keys():
        raise ExpertError("task embeddings come from experts on different sites; train them with the same sites and rank")
    scores = {}
    for name in left:
        first, second = left[name].astype(np.float64).ravel(), right[name].astype(np.float64).ravel()
        if first.shape != second.shape:
            raise ExpertError(f"task embeddings differ in shape at {name!r}: {left[name].shape} and {right[name].shape}; use one rank")
        total = first + second
        share = np.divide(first, total, out=np.full_like(first, 0.5), where=total > 0)
        rest = 1.0 - share
        scores[name] = float(share @ rest / (np.linalg.norm(share) * np.linalg.norm(rest) + 1e-300))
    return scores


def similarity(left: Embedding, right: Embedding) -> float:
    """Mean of `similarity_by_tensor`: 1 for equal embeddings, symmetric."""
    return float(np.mean(list(similarity_by_tensor(left, right).values())))


def most_similar(target: Embedding, others: Mapping[str, Embedding], *, top_k: int) -> list[Neighbour]:
    """The `top_k` most similar tasks, best first; ties by name."""
    ranked = [Neighbour(name, similarity(target, other)) for name, other in others.items()]
    return sorted(ranked, key=lambda neighbour: (-neighbour.similarity, neighbour.name))[:top_k]
