"""Plain torch: fp32 sums for every dtype, one block of rows at a time.

No fp32 copy of the whole W exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BLOCK", "lora_fold"]

BLOCK = 1 << 19
"""Elements of W that are in fp32 at a time."""


def lora_fold(w: Tensor, a: Tensor, b: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """out = W + (B ∘ weight) A."""
    precise = torch.promote_types(w.dtype, torch.float32)
    up, down = b.to(precise) * weight.to(precise), a.to(precise)
    if out.dtype == precise:
        return torch.addmm(w, up, down, out=out)
    # The block is cast, added to and rounded. A cast of the whole W would need twice its memory.
    rows = max(1, BLOCK // max(1, w.shape[1]))
    for first in range(0, len(w), rows):
        block = slice(first, first + rows)
        out[block] = torch.addmm(w[block].to(precise), up[block], down)
    return out
