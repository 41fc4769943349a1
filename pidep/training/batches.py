"""Batches of training rows, reproducible from any step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from pidep.inputs.row import size_key
from pidep.tasks.data import Split

__all__ = ["shuffled_batches"]

_WINDOW = 8
"""Batches whose rows are sorted by length together."""
_EPOCH_STRIDE = 1_000_003
"""Keeps the generators of two seeds apart for a million epochs; a prime."""


def shuffled_batches(
    split: Split, *, batch_size: int, seed: int, start: int = 0
) -> Iterator[list[int]]:
    """Row numbers of endless shuffled batches, from batch `start` on.

    Batch n depends on the seed and n alone, so a resumed run sees the batches of an uninterrupted
    one. Rows of a batch are similar in length, so that little of it is padding.
    """
    per_epoch = max(1, math.ceil(len(split.rows) / batch_size))
    step = start
    while True:
        epoch, within = divmod(step, per_epoch)
        # A generator per epoch: batch n is found without drawing the batches before it.
        generator = torch.Generator().manual_seed(seed * _EPOCH_STRIDE + epoch)
        order = torch.randperm(len(split.rows), generator=generator).tolist()
        window = batch_size * _WINDOW
        # Sorting within windows only keeps the batches of two epochs different.
        grouped = [
            sorted(order[at : at + window], key=lambda row: size_key(split.rows[row]))
            for at in range(0, len(order), window)
        ]
        flat = [row for group in grouped for row in group]
        batches = [flat[at : at + batch_size] for at in range(0, len(flat), batch_size)]
        # Otherwise every window would begin with its short texts.
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        yield batches[shuffled[within]]
        step += 1
