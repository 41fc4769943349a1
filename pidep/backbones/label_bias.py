"""The bias of an expert's labels, in PyTorch: training's evaluation, `predict` and the gate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pidep.inputs.row import Input, Row

__all__ = ["with_label_bias"]


def with_label_bias(logits: Tensor, rows: Sequence[Input], bias: Sequence[float]) -> Tensor:
    """Logits `[B, C]` with the labels' bias; rows with candidates of their own have none.

    Args:
        bias: one number a label, in nats; empty for none.
    """
    if not bias:
        return logits
    # Batches are as wide as the row with the most candidates.
    padded = torch.zeros(logits.shape[1])
    padded[: len(bias)] = torch.tensor(bias)
    labelled = [not (isinstance(row, Row) and row.candidates) for row in rows]
    return logits + (torch.tensor(labelled).unsqueeze(1) * padded).to(logits)
