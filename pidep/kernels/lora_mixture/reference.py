"""Plain torch, and the CPU path."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["lora_mixture"]


def lora_mixture(
    x: Tensor, a: Tensor, b: Tensor, weight: Tensor, base: Tensor | None = None
) -> Tensor:
    """Two products; the second one adds `base` as it multiplies."""
    # In the weight's precision, rounded once: 16-bit products would round dw at every token.
    inner = (linear(x, a.to(x.dtype)) * weight).to(x.dtype)
    up = b.to(x.dtype)
    if base is None:
        return linear(inner, up)
    # One pass over y instead of two. `addmm` takes matrices of one dtype only.
    if base.dim() == 2 and base.dtype == x.dtype:
        return torch.addmm(base, inner, up.t())
    return base + linear(inner, up)
