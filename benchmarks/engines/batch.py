"""The batches that every engine answers. Imports numpy only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

__all__ = [
    "DIM",
    "EXPERTS",
    "LAYERS",
    "RANK",
    "SIZES",
    "WIDE",
    "Batch",
    "Engine",
    "flops_of",
    "name_of",
]

SIZES = ((1, 16), (1, 128), (8, 32), (32, 64))
"""Rows and tokens of a batch."""
EXPERTS, RANK = 8, 8
DIM, WIDE, LAYERS = 384, 1536, 6
"""MiniLM-L6: width of a layer, of its feed-forward part, and number of layers."""


class Batch(NamedTuple):
    """Tokens of a batch without padding."""

    input_ids: Any  # [B, T] int64
    attention_mask: Any  # [B, T] int64, ones

    @classmethod
    def of(cls, rows: int, tokens: int) -> Batch:
        """The same tokens in every process."""
        ids = np.random.default_rng(rows * tokens).integers(1000, 20000, (rows, tokens))
        return cls(ids, np.ones((rows, tokens), np.int64))


Engine: TypeAlias = Callable[[Batch], Callable[[], Any]]
"""Takes a batch; gives the call that answers it, `[B, 2]` logits."""


def name_of(rows: int, tokens: int) -> str:
    """What a size is called in the results."""
    return f"{rows}x{tokens}"


def flops_of(rows: int, tokens: int) -> int:
    """Operations of the products of MiniLM for a batch; a multiply-add is two."""
    linear = 2 * LAYERS * (4 * DIM * DIM + 2 * DIM * WIDE)
    attention = 2 * LAYERS * 2 * tokens * DIM
    return rows * tokens * (linear + attention)


def labels(folder: Path) -> Any:
    """The label embeddings `[2, D]` times the logit scale, as `bench_export` writes them."""
    return np.load(folder / "labels.npy")
