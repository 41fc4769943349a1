"""y (+)= ((x D) ∘ w) U in one pass, with D and U of a small rank R.

x is read once, y is written once, and nothing of size [M, R] makes a round trip. The same kernel is
`lora_mixture` forward (D = Aᵀ, U = Bᵀ), its backward (D = B, U = A), and `lora_bank` (factors
chosen by row of the batch).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pidep.kernels.launch_table import launch

__all__ = [
    "MAX_RANK",
    "low_rank",
    "low_rank_kernel",
    "outer",
    "outer_kernel",
    "precision",
    "rank_padded",
    "upcast",
]

MAX_RANK = 128
"""Largest rank. Above it the ranks do not fit a program's registers, and two cuBLAS products are as
fast.
"""
_SPLITS = 16
"""Number of parts of a sum over tokens. It is fixed, so that the sum is the same every time."""


def precision(dtype: torch.dtype) -> str:
    """How tensor cores multiply: fp32 in three TF32 products, which is as precise as fp32."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def rank_padded(rank: int) -> int:
    """The next power of two, at least 16, which tensor cores need."""
    return max(16, int(triton.next_power_of_2(rank)))


def upcast() -> bool:
    """Whether to multiply in fp32.

    Triton's interpreter multiplies bf16 bits as if they were integers.
    """
    return bool(triton.knobs.runtime.interpret)


@triton.jit
def _product(left, right, total, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """total + left · right, with fp32 sums."""
    if UPCAST:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision=PRECISION)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def low_rank_kernel(
    y,  # [B, T, OUT]
    hidden_out,  # [B, T, R]: x D forward, (x D) ∘ w backward
    shares,  # [programs, R] fp32, backward: Σ_m (x D) ∘ hidden
    x,  # [B, T, IN]
    base,  # [B, T, OUT]
    down,  # [E, R, IN] by strides
    up,  # [E, R, OUT] by strides
    weight,  # [R] fp32
    hidden,  # [B, T, R] fp32
    expert,  # [B] int64
    TOKENS,
    IN,
    OUT,
    RANK,
    down_e,
    down_r,
    down_c,
    up_e,
    up_r,
    up_c,
    R_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_BASE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_EXPERT: tl.constexpr,
    KEEP: tl.constexpr,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """A block of tokens of one row per program: down to the ranks, scaled, up again."""
    program = tl.program_id(0).to(tl.int64)  # One grid axis only: a second one ends at 65535 rows.
    blocks = tl.cdiv(TOKENS, BLOCK_M)
    row = program // blocks
    m = (program % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    r, c = tl.arange(0, R_PADDED), tl.arange(0, BLOCK_C)
    token = row * TOKENS + m
    if HAS_EXPERT:
        chosen = tl.load(expert + row).to(tl.int64)
        down += chosen * down_e
        up += chosen * up_e
    # The sum over IN is in fp32. A bf16 sum keeps 8 bits and drifts with many columns.
    inner = tl.zeros([BLOCK_M, R_PADDED], tl.float32)
    for first in range(0, IN, BLOCK_C):
        column = first + c
        left = tl.load(
            x + token[:, None] * IN + column[None, :],
            mask=(m < TOKENS)[:, None] & (column < IN)[None, :],
            other=0.0,
        )
        right = tl.load(
            down + r[None, :] * down_r + column[:, None] * down_c,
            mask=(r < RANK)[None, :] & (column < IN)[:, None],
            other=0.0,
        )
        inner = _product(left, right, inner, PRECISION, UPCAST)
    known = (m < TOKENS)[:, None] & (r < RANK)[None, :]
    at = token[:, None] * RANK + r[None, :]
    scaled = inner
    if HAS_WEIGHT:
        scaled = inner * tl.load(weight + r, mask=r < RANK, other=0.0)[None, :]
    if BACKWARD:
        # dw is the sum over tokens of (g B) ∘ hidden, both without the weight. So `inner` is right
        # here, and `scaled` is not.
        share = tl.sum(inner * tl.load(hidden + at, mask=known, other=0.0), 0)
        # Each program stores a share of its own. An atomic sum would add in another order each
        # time.
        tl.store(shares + program * RANK + r, share, mask=r < RANK)
        tl.store(hidden_out + at, scaled.to(hidden_out.dtype.element_ty), mask=known)
    elif KEEP:
        # Without the weight: backward needs it so for dw, and `outer` applies the weight for dB.
        tl.store(hidden_out + at, inner.to(hidden_out.dtype.element_ty), mask=known)
    # `tl.dot` takes two operands of one dtype.
    scaled = scaled.to(x.dtype.element_ty)
    for first in range(0, OUT, BLOCK_C):
        column = first + c
        right = tl.load(
            up + r[:, None] * up_r + column[None, :] * up_c,
            mask=(r < RANK)[:, None] & (column < OUT)[None, :],
            other=0.0,
        )
        inside = (m < TOKENS)[:, None] & (column < OUT)[None, :]
        where = token[:, None] * OUT + column[None, :]
        tile = _product(scaled, right, tl.zeros([BLOCK_M, BLOCK_C], tl.float32), PRECISION, UPCAST)
        if HAS_BASE:
            tile += tl.load(base + where, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + where, tile.to(y.dtype.element_ty), mask=inside)


@triton.jit
def outer_kernel(
    parts,  # [SPLITS, R, N] fp32
    left,  # [M, R]
    right,  # [M, N]
    scale,  # [R] fp32
    TOKENS,
    COLUMNS,
    RANK,
    tokens_per_split,
    R_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """leftᵀ right over one part of the tokens."""
    split = tl.program_id(1)
    r = tl.arange(0, R_PADDED)
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([R_PADDED, BLOCK_C], tl.float32)
    stop = tl.minimum((split + 1) * tokens_per_split, TOKENS)
    for first in range(split * tokens_per_split, stop, BLOCK_M):
        # int64: the offset of a token may pass 2³¹ elements.
        m = (first + tl.arange(0, BLOCK_M)).to(tl.int64)
        # Masked by the end of the part, not of the tokens: the next tokens belong to another
        # program.
        a = tl.load(
            left + m[None, :] * RANK + r[:, None],
            mask=(r < RANK)[:, None] & (m < stop)[None, :],
            other=0.0,
        )
        b = tl.load(
            right + m[:, None] * COLUMNS + column[None, :],
            mask=(m < stop)[:, None] & (column < COLUMNS)[None, :],
            other=0.0,
        )
        total = _product(a.to(b.dtype), b, total, PRECISION, UPCAST)
    if HAS_SCALE:
        total *= tl.load(scale + r, mask=r < RANK, other=0.0)[:, None]
    where = (split.to(tl.int64) * RANK + r[:, None]) * COLUMNS + column[None, :]
    tl.store(parts + where, total, mask=(r < RANK)[:, None] & (column < COLUMNS)[None, :])


def _block_m(tokens: int, rows: int) -> int:
    """The most tokens per program that still leave a program for every multiprocessor."""
    for size in (64, 32):
        if rows * triton.cdiv(tokens, size) >= 128:
            return size
    return 16


def low_rank(
    x: Tensor,  # [B, T, IN], contiguous
    down: Tensor,  # [E, R, IN], any strides
    up: Tensor,  # [E, R, OUT], any strides
    *,
    base: Tensor | None = None,  # [B, T, OUT], contiguous
    weight: Tensor | None = None,  # [R] fp32
    expert: Tensor | None = None,  # [B] int64; expert 0 for all when absent
    hidden: Tensor | None = None,  # [B, T, R] fp32, backward only
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """y `[B, T, OUT]`, kept `[B, T, R]`, and shares `[R]`.

    `kept` is fp32 forward and of x's dtype backward. Shares are computed backward only.
    """
    rows, tokens, inputs = x.shape
    rank, outputs = down.shape[1], up.shape[2]
    y = torch.empty(rows, tokens, outputs, dtype=x.dtype, device=x.device)
    backward = hidden is not None
    # Backward's result goes into `outer`, which multiplies in x's dtype. Forward's goes into a sum
    # for dw.
    kept_dtype = x.dtype if backward else torch.float32
    kept = torch.empty(
        (rows, tokens, rank) if keep or backward else (0,), dtype=kept_dtype, device=x.device
    )
    block = _block_m(tokens, rows)
    blocks = triton.cdiv(tokens, block)
    shares = torch.empty(
        (rows * blocks, rank) if backward else (0,), dtype=torch.float32, device=x.device
    )
    if rows and tokens:
        nothing = x  # a pointer that is never read
        tensors: tuple[Tensor, ...] = (
            y,
            kept,
            shares,
            x,
            nothing if base is None else base,
            down,
            up,
        )
        tensors += tuple(nothing if one is None else one for one in (weight, hidden, expert))
        sizes = (tokens, inputs, outputs, rank, *down.stride(), *up.stride())
        constants = {
            "R_PADDED": rank_padded(rank),
            "BLOCK_M": block,
            "HAS_BASE": base is not None,
            "HAS_WEIGHT": weight is not None,
            "HAS_EXPERT": expert is not None,
            "KEEP": keep,
            "BACKWARD": backward,
            "PRECISION": precision(x.dtype),
            "UPCAST": upcast(),
        }
        launch(
            "low_rank", low_rank_kernel, (blocks * rows,), (*tensors, *sizes), constants, x.dtype
        )
    return y, kept, shares.sum(0) if backward else shares


def outer(left: Tensor, right: Tensor, scale: Tensor | None = None) -> Tensor:
    """diag(scale) leftᵀ right, `[R, N]` fp32, from `[M, R]` and `[M, N]`.

    The order of the sum is fixed.
    """
    tokens, rank = left.shape
    columns = right.shape[1]
    # A multiple of the largest BLOCK_M, so that the end of a part never cuts a block.
    per_split = max(64, triton.cdiv(triton.cdiv(tokens, _SPLITS), 64) * 64)
    splits = max(1, triton.cdiv(tokens, per_split))
    parts = torch.empty(splits, rank, columns, dtype=torch.float32, device=left.device)
    if rank and columns:
        constants = {
            "R_PADDED": rank_padded(rank),
            "HAS_SCALE": scale is not None,
            "PRECISION": precision(right.dtype),
            "UPCAST": upcast(),
        }
        block = 64  # Columns per program. The grid must be known before the settings are.
        arguments = (
            parts,
            left,
            right,
            left if scale is None else scale,
            tokens,
            columns,
            rank,
            per_split,
        )
        launch(
            "low_rank_outer",
            outer_kernel,
            (triton.cdiv(columns, block), splits),
            arguments,
            {**constants, "BLOCK_C": block},
            right.dtype,
        )
    return parts.sum(0)
