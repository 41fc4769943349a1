"""Plain torch, and the CPU path."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

__all__ = ["lora_mixture"]


def lora_mixture(
    x: Tensor,  # [..., in]
    a: Tensor,  # [R, in]   the experts' A stacked, R = Σ rank_k
    b: Tensor,  # [out, R]  the experts' B side by side
    weight: Tensor,  # [R]  α_k s_k of the expert that owns the rank
) -> Tensor:  # [..., out]
    """The mixture of the *products* (π-Tuning eq. 5 on ΔW = BA), exact because stacking is concatenation."""
    return linear(linear(x, a) * weight, b)
