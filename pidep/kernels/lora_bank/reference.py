"""Plain torch; per-sample gradients run through it."""

from __future__ import annotations

from torch import Tensor

__all__ = ["lora_bank"]


def lora_bank(
    x: Tensor, a: Tensor, b: Tensor, expert: Tensor | None = None, base: Tensor | None = None
) -> Tensor:
    """Gather, then two batched products."""
    if expert is not None:
        a, b = a[expert], b[expert]
    y = (
        ((x.unsqueeze(1) @ a.transpose(1, 2)) @ b).squeeze(1)
        if x.dim() == 2
        else (x @ a.transpose(1, 2)) @ b
    )
    return y if base is None else base + y
