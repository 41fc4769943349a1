"""One read and one write of W; ΔW is never stored."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pidep.kernels.launch_table import launch
from pidep.kernels.low_rank import rank_padded

__all__ = ["fold_kernel", "lora_fold"]

_BLOCK = (64, 128)


@triton.jit
def fold_kernel(
    out,  # [OUT, IN] by strides
    w,  # [OUT, IN] by strides
    a,  # [R, IN]
    b,  # [OUT, R]
    weight,  # [R] fp32
    OUT,
    IN,
    RANK,
    w_row,
    w_column,
    out_row,
    out_column,
    R_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of W per program; fp32 inside, rounded once."""
    # int64: offsets in a large W pass 2³¹ elements.
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, RANK, R_BLOCK):
        r = first + tl.arange(0, R_BLOCK)
        scale = tl.load(weight + r, mask=r < RANK, other=0.0)
        left = tl.load(
            b + m[:, None] * RANK + r[None, :],
            mask=(m < OUT)[:, None] & (r < RANK)[None, :],
            other=0.0,
        )
        right = tl.load(
            a + r.to(tl.int64)[:, None] * IN + n[None, :],
            mask=(r < RANK)[:, None] & (n < IN)[None, :],
            other=0.0,
        )
        total = tl.dot(
            left.to(tl.float32) * scale[None, :],
            right.to(tl.float32),
            total,
            input_precision=PRECISION,
        )
    inside = (m < OUT)[:, None] & (n < IN)[None, :]
    # W's tile is read by the program that writes it, and before the write. So `out` may be `w`.
    total += tl.load(w + m[:, None] * w_row + n[None, :] * w_column, mask=inside, other=0.0).to(
        tl.float32
    )
    tl.store(
        out + m[:, None] * out_row + n[None, :] * out_column,
        total.to(out.dtype.element_ty),
        mask=inside,
    )


def lora_fold(w: Tensor, a: Tensor, b: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """out = W + (B ∘ weight) A; `out` may be `w`."""
    rows, columns = w.shape
    grid = (triton.cdiv(rows, _BLOCK[0]), triton.cdiv(columns, _BLOCK[1]))
    sizes = (rows, columns, len(a), *w.stride(), *out.stride())
    constants = {
        "R_BLOCK": min(32, rank_padded(len(a))),
        "BLOCK_M": _BLOCK[0],
        "BLOCK_N": _BLOCK[1],
        # A result that is rounded to 16 bits does not need the last bits of fp32 products.
        "PRECISION": "ieee" if out.element_size() >= 4 else "tf32x3",
    }
    if rows and columns:
        launch("lora_fold", fold_kernel, grid, (out, w, a, b, weight, *sizes), constants, w.dtype)
    return out
