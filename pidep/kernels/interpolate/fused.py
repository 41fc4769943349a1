"""One launch over the arena forward and one backward.

A second, small backward launch sums the tiles' shares of dα in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pidep.kernels.interpolate.index import GRAIN
from pidep.kernels.launch_table import launch

__all__ = ["backward", "backward_kernel", "forward", "forward_kernel", "logits_kernel"]

_SHARES = 4096
"""One program sums a whole site, so it does few and wide reads."""


@triton.constexpr_function
def _chunk(count, chunk):
    """Rows to load at a time, at most `chunk`; more registers than rows would be idle."""
    return min(chunk, triton.next_power_of_2(max(1, count)))


@triton.jit
def _softmax_scale(logits, NUM_EXPERTS: tl.constexpr, K_PADDED: tl.constexpr):
    """Maximum and 1 / Σ exp of one row of logits."""
    k = tl.arange(0, K_PADDED)
    row = tl.load(logits + k, mask=k < NUM_EXPERTS, other=float("-inf")).to(tl.float32)
    # The largest logit is subtracted, so that exp never overflows. Padding is -inf, whose exp is 0.
    top = tl.max(row, 0)
    return top, 1.0 / tl.sum(tl.exp(row - top), 0)


@triton.jit
def _add_rows(
    total, rows, logits, top, at, num_elements, FIRST, COUNT: tl.constexpr, CHUNK: tl.constexpr
):
    """total + Σ_k exp(logit_k - top) φ_k over `COUNT` rows, `CHUNK` rows at a time."""
    SIZE: tl.constexpr = _chunk(COUNT, CHUNK)
    for first in tl.static_range(0, COUNT, SIZE):
        k = first + tl.arange(0, SIZE)
        inside = k < COUNT
        weight = tl.exp(
            tl.load(logits + FIRST + k, mask=inside, other=float("-inf")).to(tl.float32) - top
        )
        tile = tl.load(
            rows + k.to(tl.int64)[:, None] * num_elements + at[None, :],
            mask=inside[:, None],
            other=0.0,
        )
        total += tl.sum(weight[:, None] * tile.to(tl.float32), 0)
    return total


@triton.jit
def forward_kernel(
    out,  # [P]
    learned,  # [T, P]
    frozen,  # [F, P]
    logits,  # [S, K] fp32
    tile_start,
    tile_site,
    num_elements,
    NUM_LEARNED: tl.constexpr,
    NUM_FROZEN: tl.constexpr,
    K_PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    GRAIN: tl.constexpr,
):
    """out = Σ_k softmax(logits)_k φ_k, one tile per program, fp32 inside."""
    tile = tl.program_id(0)
    # K rows of P elements may pass 2³¹, the end of int32.
    num_elements = num_elements.to(tl.int64)
    logits += tl.load(tile_site + tile) * (NUM_LEARNED + NUM_FROZEN)
    top, scale = _softmax_scale(logits, NUM_LEARNED + NUM_FROZEN, K_PADDED)
    for grain in range(
        tl.load(tile_start + tile).to(tl.int64), tl.load(tile_start + tile + 1).to(tl.int64)
    ):
        at = grain * GRAIN + tl.arange(0, GRAIN)
        total = tl.zeros([GRAIN], tl.float32)
        total = _add_rows(total, learned, logits, top, at, num_elements, 0, NUM_LEARNED, CHUNK)
        total = _add_rows(
            total, frozen, logits, top, at, num_elements, NUM_LEARNED, NUM_FROZEN, CHUNK
        )
        # The sum is normalised once per element, not once per expert. No mask is needed: a grain
        # belongs to one site, with its padding.
        tl.store(out + at, (total * scale).to(out.dtype.element_ty))


@triton.jit
def _share(
    shares,
    gradient,
    rows,
    logits,
    top,
    scale,
    first_grain,
    last_grain,
    num_elements,
    d_rows,
    FIRST,
    COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
    GRAIN: tl.constexpr,
    WRITE: tl.constexpr,
):
    """Shares Σ_p g_p φ_kp of one tile for `COUNT` rows, and dφ_k = α_k g for learned rows."""
    SIZE: tl.constexpr = _chunk(COUNT, CHUNK)
    for first in tl.static_range(0, COUNT, SIZE):
        k = first + tl.arange(0, SIZE)
        inside = k < COUNT
        alpha = (
            tl.exp(
                tl.load(logits + FIRST + k, mask=inside, other=float("-inf")).to(tl.float32) - top
            )
            * scale
        )
        share = tl.zeros([SIZE], tl.float32)
        for grain in range(first_grain, last_grain):
            at = grain * GRAIN + tl.arange(0, GRAIN)
            g = tl.load(gradient + at).to(tl.float32)
            where = k.to(tl.int64)[:, None] * num_elements + at[None, :]
            tile = tl.load(rows + where, mask=inside[:, None], other=0.0).to(tl.float32)
            share += tl.sum(tile * g[None, :], 1)
            if WRITE:
                tl.store(
                    d_rows + where,
                    (alpha[:, None] * g[None, :]).to(d_rows.dtype.element_ty),
                    mask=inside[:, None],
                )
        # One share per tile; `logits_kernel` adds them in a fixed order. Atomic sums would not
        # repeat.
        tl.store(shares + FIRST + k, share, mask=inside)


@triton.jit
def backward_kernel(
    d_learned,  # [T, P]
    shares,  # [N, K] fp32
    gradient,  # [P]
    learned,
    frozen,
    logits,
    tile_start,
    tile_site,
    num_elements,
    NUM_LEARNED: tl.constexpr,
    NUM_FROZEN: tl.constexpr,
    K_PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    GRAIN: tl.constexpr,
    WRITE: tl.constexpr,
):
    """Read the arena and the gradient; write the learned rows' gradients and each tile's dα share.

    Frozen rows are only read.
    """
    tile = tl.program_id(0)
    num_elements = num_elements.to(tl.int64)
    logits += tl.load(tile_site + tile) * (NUM_LEARNED + NUM_FROZEN)
    shares += tile.to(tl.int64) * (NUM_LEARNED + NUM_FROZEN)
    top, scale = _softmax_scale(logits, NUM_LEARNED + NUM_FROZEN, K_PADDED)
    first, last = (
        tl.load(tile_start + tile).to(tl.int64),
        tl.load(tile_start + tile + 1).to(tl.int64),
    )
    _share(
        shares,
        gradient,
        learned,
        logits,
        top,
        scale,
        first,
        last,
        num_elements,
        d_learned,
        0,
        NUM_LEARNED,
        CHUNK,
        GRAIN,
        WRITE,
    )
    _share(
        shares,
        gradient,
        frozen,
        logits,
        top,
        scale,
        first,
        last,
        num_elements,
        d_learned,
        NUM_LEARNED,
        NUM_FROZEN,
        CHUNK,
        GRAIN,
        False,
    )


@triton.jit
def logits_kernel(
    d_logits,  # [S, K] fp32
    shares,  # [N, K] fp32
    logits,  # [S, K]
    site_tile,
    NUM_EXPERTS: tl.constexpr,
    K_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dlogit = α (dα - Σ α dα), with dα the sum of a site's shares.

    The order of the sum is fixed, so that equal inputs give equal bits.
    """
    site = tl.program_id(0)
    k = tl.arange(0, K_PADDED)
    total = tl.zeros([K_PADDED], tl.float32)
    last = tl.load(site_tile + site + 1)
    for first in range(tl.load(site_tile + site), last, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        inside = (tile < last)[:, None] & (k < NUM_EXPERTS)[None, :]
        total += tl.sum(
            tl.load(
                shares + tile.to(tl.int64)[:, None] * NUM_EXPERTS + k[None, :],
                mask=inside,
                other=0.0,
            ),
            0,
        )
    row = tl.load(logits + site * NUM_EXPERTS + k, mask=k < NUM_EXPERTS, other=float("-inf")).to(
        tl.float32
    )
    alpha = tl.exp(row - tl.max(row, 0))
    alpha /= tl.sum(alpha, 0)
    tl.store(
        d_logits + site * NUM_EXPERTS + k,
        alpha * (total - tl.sum(alpha * total, 0)),
        mask=k < NUM_EXPERTS,
    )


def _constants(learned: Tensor, frozen: Tensor) -> dict[str, int]:
    count = len(learned) + len(frozen)
    return {
        "NUM_LEARNED": len(learned),
        "NUM_FROZEN": len(frozen),
        # `tl.arange` needs a power of two.
        "K_PADDED": triton.next_power_of_2(count),
        "GRAIN": GRAIN,
    }


def forward(
    learned: Tensor,
    frozen: Tensor,
    logits: Tensor,
    tile_start: Tensor,
    tile_site: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """The mixture `[P]`, in the dtype of the learned rows.

    In the dtype of the frozen rows if none are learned.
    """
    rows = learned if len(learned) else frozen
    out = torch.empty(rows.shape[1], dtype=rows.dtype, device=rows.device) if out is None else out
    if len(tile_site):
        arguments = (out, learned, frozen, logits, tile_start, tile_site, rows.shape[1])
        launch(
            "interpolate_forward",
            forward_kernel,
            (len(tile_site),),
            arguments,
            _constants(learned, frozen),
            rows.dtype,
        )
    return out


def backward(
    gradient: Tensor,
    learned: Tensor,
    frozen: Tensor,
    logits: Tensor,
    tile_start: Tensor,
    tile_site: Tensor,
    site_tile: Tensor,
    *,
    write: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the learned rows (empty unless `write`) and of the logits."""
    rows = learned if len(learned) else frozen
    d_learned = torch.empty_like(learned) if write else learned.new_empty(0)
    shares = torch.empty(len(tile_site), logits.shape[1], dtype=torch.float32, device=logits.device)
    d_logits = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    constants = _constants(learned, frozen)
    if len(tile_site):
        arguments = (
            d_learned,
            shares,
            gradient,
            learned,
            frozen,
            logits,
            tile_start,
            tile_site,
            rows.shape[1],
        )
        launch(
            "interpolate_backward",
            backward_kernel,
            (len(tile_site),),
            arguments,
            {**constants, "WRITE": write},
            rows.dtype,
        )
    # This launch runs for an empty arena too: `d_logits` is uninitialised, and it writes the zeros.
    padded = constants["K_PADDED"]
    sizes = {
        "NUM_EXPERTS": logits.shape[1],
        "K_PADDED": padded,
        "BLOCK": max(16, _SHARES // padded),
    }
    launch(
        "interpolate_logits",
        logits_kernel,
        (len(logits),),
        (d_logits, shares, logits, site_tile),
        sizes,
        torch.float32,
    )
    return d_learned, d_logits.to(logits.dtype)
