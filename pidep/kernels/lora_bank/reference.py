"""Plain torch: what the bank graph is exported from, and how per-sample gradients are had."""

from __future__ import annotations

from torch import Tensor

__all__ = ["lora_bank"]


def lora_bank(
    x: Tensor,  # [B, T, in] or [B, in]
    a: Tensor,  # [B, R, in]
    b: Tensor,  # [B, R, out], scaling folded in
) -> Tensor:  # [B, T, out] or [B, out]
    """Row i of the batch goes through its own factors a[i], b[i]."""
    if x.dim() == 2:
        return ((x.unsqueeze(1) @ a.transpose(1, 2)) @ b).squeeze(1)
    return (x @ a.transpose(1, 2)) @ b
