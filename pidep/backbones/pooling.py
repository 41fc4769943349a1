"""How the token states of a text become one unit vector."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

__all__ = ["POOLINGS", "Pooling", "pool"]

Pooling = Literal["mean", "cls", "max", "lasttoken", "weightedmean"]
"""`weightedmean` weighs the tokens by their places 1, 2, 3, …; the names are those of
sentence-transformers.
"""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def pool(
    hidden: Tensor,  # [B, T, D]
    attention_mask: Tensor,  # [B, T]; attended tokens first, then padding
    pooling: Pooling,
    beside: Tensor | None = None,  # [B, D]
) -> Tensor:  # [B, D] fp32, unit rows
    """Hidden states to unit rows.

    `beside` is added to the sum over tokens; it bypassed the model.
    """
    # fp16 adds hundreds of tokens with three digits, and its squares overflow in the norm.
    hidden = hidden.float()
    if pooling == "cls":
        return nn.functional.normalize(hidden[:, 0], dim=-1)
    if pooling == "max":
        # Padding must lose against every attended token, whatever the sign of its states.
        states = hidden.masked_fill(attention_mask.unsqueeze(-1) == 0, float("-inf"))
        return nn.functional.normalize(states.amax(1), dim=-1)
    if pooling == "lasttoken":
        last = (attention_mask.sum(1, keepdim=True) - 1).unsqueeze(-1)  # [B, 1, 1]
        states = hidden.gather(1, last.expand(-1, -1, hidden.shape[-1]))
        return nn.functional.normalize(states.squeeze(1), dim=-1)
    weight = attention_mask.to(hidden.dtype)
    if pooling == "weightedmean":
        weight = weight * torch.arange(1, weight.shape[1] + 1, device=weight.device)
    total = weight.sum(1, keepdim=True).clamp(min=1.0)
    pooled = (hidden * weight.unsqueeze(-1)).sum(1) / total
    return nn.functional.normalize(pooled if beside is None else pooled + beside / total, dim=-1)
