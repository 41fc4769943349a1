"""W + Σₖ αₖ sₖ BₖAₖ: a mixture of LoRAs folded into a weight, summed in fp32, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from pidep.kernels.lora_fold import reference
from pidep.kernels.paths import fusable

__all__ = ["lora_fold"]


def lora_fold(
    w: Tensor,  # [out, in] fp32/bf16/fp16, any strides
    a: Tensor,  # [R, in], the experts' A stacked, R = Σ rank_k
    b: Tensor,  # [out, R], the experts' B side by side
    weight: Tensor,  # [R], α_k s_k of the expert that owns the rank
    *,
    out: Tensor | None = None,  # [out, in], w's dtype; may be w
) -> Tensor:  # [out, in]
    """The folded weight, without gradients.

    In every dtype it is as near to the exact sum as folding in fp32 and rounding.

    Raises:
        ValueError: shapes or dtypes do not fit together; the message names them.
    """
    if (
        w.dim() != 2
        or a.shape != (len(a), w.shape[1])
        or b.shape != (w.shape[0], len(a))
        or weight.shape != (len(a),)
    ):
        raise ValueError(
            f"lora_fold: w {tuple(w.shape)}, a {tuple(a.shape)}, b {tuple(b.shape)} and weight "
            f"{tuple(weight.shape)}: "
            "expected [out, in], [R, in], [out, R] and [R]"
        )
    if out is not None and (out.shape != w.shape or out.dtype != w.dtype):
        raise ValueError(
            f"lora_fold: out is {out.dtype} {tuple(out.shape)}, expected w's {w.dtype} "
            f"{tuple(w.shape)}"
        )
    with torch.no_grad():
        out = torch.empty_like(w) if out is None else out
        if not fusable(w, a, b, weight, out) or w.dtype == torch.float64:
            return reference.lora_fold(w, a, b, weight, out)
        # Imported where it runs: OpenAI Triton may be absent on a machine without a GPU.
        from pidep.kernels.lora_fold import fused

        return fused.lora_fold(w, a.contiguous(), b.contiguous(), weight.float(), out)
