"""A different LoRA for each row of the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from pidep.kernels.lora_bank import reference
from pidep.kernels.paths import fusable

__all__ = ["lora_bank"]


def lora_bank(
    x: Tensor,  # [B, T, in] or [B, in]
    a: Tensor,  # [B, R, in], or [E, R, in] with `expert`
    b: Tensor,  # [B, R, out] or [E, R, out], scaling folded in
    expert: Tensor | None = None,  # [B] int64, 0 <= expert < E
    base: Tensor | None = None,  # [B, T, out] or [B, out]
) -> Tensor:  # [B, T, out] or [B, out]
    """base plus each row's own LoRA: factors a[i] and b[i], or a[expert[i]] and b[expert[i]].

    On a GPU, with `expert` and without gradients, one launch reads each row's factors in place.
    Elsewhere the factors are gathered first.

    Raises:
        ValueError: shapes do not fit together; the message names them.
    """
    paired = a.shape[0] == x.shape[0] if expert is None else expert.shape == x.shape[:1]
    if (
        a.dim() != 3
        or b.dim() != 3
        or a.shape[:2] != b.shape[:2]
        or not paired
        or a.shape[2] != x.shape[-1]
    ):
        raise ValueError(
            f"lora_bank: x {tuple(x.shape)}, a {tuple(a.shape)} and b {tuple(b.shape)}: expected "
            "[B, T, in], [E, R, in] and [E, R, out], "
            "where E = B unless experts, [B] of them, are chosen"
        )
    # The fused path has no backward pass.
    wanted = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (x, a, b, base) if tensor is not None
    )
    if expert is None or wanted or torch.compiler.is_compiling() or not fusable(x, a, b, expert):
        return reference.lora_bank(x, a, b, expert, base)
    from pidep.kernels.low_rank import MAX_RANK, low_rank

    if not 0 < a.shape[1] <= MAX_RANK:
        return reference.lora_bank(x, a, b, expert, base)
    tokens = (x.unsqueeze(1) if x.dim() == 2 else x).contiguous()
    added = (
        None
        if base is None
        else base.reshape(*tokens.shape[:2], b.shape[2]).to(x.dtype).contiguous()
    )
    y, _, _ = low_rank(tokens, a.to(x.dtype), b.to(x.dtype), base=added, expert=expert)
    return y.reshape(*x.shape[:-1], b.shape[2])
