"""Plain torch: the definition of the operation (`plain`), and the CPU path.

The CPU path is as near to the memory bandwidth as torch gets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pidep.kernels.interpolate.index import GRAIN, Span, runs_of

__all__ = ["BLOCK", "HUGE", "backward", "forward", "plain"]

BLOCK = 1 << 20
"""Elements. A block of the result stays in the caches while the experts stream past, and is large
enough to pay for threads.
"""
HUGE = 1 << 25
"""Bytes. Below this size, malloc reuses freed memory and maps no new pages."""
_SMALL = 32
"""Grains. For sites shorter than this on average, one batched product over all grains is faster
than a call per site.
"""


def plain(
    learned: Tensor,  # [T, P]
    frozen: Tensor,  # [F, P]
    alpha_logits: Tensor,  # [S, K]
    site_sizes: Sequence[int],
) -> Tensor:  # [P]
    """Σₖ softmax(α_s)ₖ φₖ, one site at a time (π-Tuning, section 3.3), for autograd and float64."""
    experts = torch.cat([learned, frozen.to(learned.dtype)]) if len(learned) else frozen
    parts, start = [], 0
    for site, size in enumerate(site_sizes):
        stop = start + -(-size // GRAIN) * GRAIN
        parts.append(
            (
                torch.softmax(alpha_logits[site].to(experts.dtype), 0)[:, None]
                * experts[:, start:stop]
            ).sum(0)
        )
        start = stop
    return torch.cat([*parts, experts.new_empty(0)])


def forward(
    learned: Tensor,
    frozen: Tensor,
    logits: Tensor,
    tile_start: Tensor,
    site_tile: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """As the fused forward; sums in fp32 at least."""
    rows = learned if len(learned) else frozen
    alpha, runs = _alpha(logits, rows), runs_of(tile_start, site_tile)
    if _small(runs) and alpha.dtype == rows.dtype == frozen.dtype:
        # A batched product takes one dtype. Mixed dtypes go block by block.
        mixed = _batched(alpha, runs, learned, frozen)
        return mixed if out is None else out.copy_(mixed)
    out = _empty_like(rows, (rows.shape[1],)) if out is None else out
    experts = [*learned, *frozen]
    for weights, block in _blocks(alpha, runs):
        _weighted_sum([expert[block] for expert in experts], weights.tolist(), out[block])
    return out


def backward(
    gradient: Tensor,
    learned: Tensor,
    frozen: Tensor,
    logits: Tensor,
    tile_start: Tensor,
    site_tile: Tensor,
    *,
    write: bool,
) -> tuple[Tensor, Tensor]:
    """As the fused backward."""
    rows = learned if len(learned) else frozen
    alpha, runs = _alpha(logits, rows), runs_of(tile_start, site_tile)
    d_learned = _empty_like(learned, tuple(learned.shape)) if write else learned.new_empty(0)
    if _small(runs) and alpha.dtype == rows.dtype == frozen.dtype:
        d_alpha = _batched_backward(alpha, runs, gradient, learned, frozen, d_learned, write=write)
    else:
        # A site may have many blocks. Their shares are summed in float64, so that late ones are not
        # rounded away.
        d_alpha = torch.zeros_like(alpha, dtype=torch.float64)
        sites = (site for site, run in enumerate(runs) for _ in range(*run, BLOCK))
        for site, (weights, block) in zip(sites, _blocks(alpha, runs), strict=True):
            g = gradient[block].to(alpha.dtype)
            d_alpha[site] += torch.stack(
                [torch.dot(expert[block].to(alpha.dtype), g) for expert in (*learned, *frozen)]
            )
            if write:
                for row, weight in zip(d_learned, weights.tolist(), strict=False):
                    _scaled(g, weight, row[block])
    d_alpha = d_alpha.to(alpha.dtype)
    return d_learned, (alpha * (d_alpha - (alpha * d_alpha).sum(1, keepdim=True))).to(logits.dtype)


def _empty_like(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory for a result.

    NumPy asks for huge pages and torch does not. At 64 MB, torch's page faults take longer than the
    whole pass.
    """
    size = math.prod(shape) * like.element_size()
    if size < HUGE or like.device.type != "cpu":
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    # Aligned to 64 bytes, as torch's own memory is.
    raw = np.empty(size + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return torch.from_numpy(raw[first : first + size]).view(like.dtype).view(shape)


def _scaled(g: Tensor, weight: float, out: Tensor) -> None:
    """out = weight · g."""
    if out.dtype == g.dtype:
        torch.mul(g, weight, out=out)
    else:
        out.copy_(g * weight)


def _alpha(logits: Tensor, rows: Tensor) -> Tensor:
    return torch.softmax(logits.to(torch.promote_types(rows.dtype, torch.float32)), 1)


def _small(runs: Sequence[Span]) -> bool:
    return bool(runs) and runs[-1].stop < _SMALL * GRAIN * len(runs)


def _blocks(alpha: Tensor, runs: Sequence[Span]) -> Iterator[tuple[Tensor, slice]]:
    """For each block: α of its site, and its elements."""
    for weights, (start, stop) in zip(alpha, runs, strict=True):
        for first in range(start, stop, BLOCK):
            yield weights, slice(first, min(first + BLOCK, stop))


def _weighted_sum(parts: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    precise = torch.promote_types(out.dtype, torch.float32)
    # 16-bit experts are summed in fp32 and rounded once, not after every expert.
    total = out if out.dtype == precise else torch.empty_like(out, dtype=precise)
    if parts[0].dtype == precise:
        torch.mul(parts[0], weights[0], out=total)
    else:
        total.copy_(parts[0]).mul_(weights[0])
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        # `alpha=` scales and adds in one pass over memory, without a temporary.
        total.add_(part, alpha=weight)
    if total is not out:
        out.copy_(total)


def _by_grain(alpha: Tensor, runs: Sequence[Span]) -> Tensor:
    """α of each grain's site, `[G, K]`."""
    return alpha[_site_of(runs, alpha.device)]


def _site_of(runs: Sequence[Span], device: torch.device) -> Tensor:
    """Site of each grain, `[G]`."""
    grains = torch.tensor([(stop - start) // GRAIN for start, stop in runs], device=device)
    return torch.arange(len(runs), device=device).repeat_interleave(grains)


def _grains(rows: Tensor) -> Tensor:
    """`[n, P]` as `[G, n, GRAIN]`, without a copy."""
    return rows.view(len(rows), -1, GRAIN).transpose(0, 1)


def _batched(alpha: Tensor, runs: Sequence[Span], learned: Tensor, frozen: Tensor) -> Tensor:
    weights = _by_grain(alpha, runs).unsqueeze(1)
    own, helping = weights[:, :, : len(learned)], weights[:, :, len(learned) :]
    if not len(frozen):
        return torch.bmm(own, _grains(learned)).view(-1)
    total = torch.bmm(helping, _grains(frozen))
    return (torch.baddbmm(total, own, _grains(learned)) if len(learned) else total).view(-1)


def _batched_backward(
    alpha: Tensor,
    runs: Sequence[Span],
    gradient: Tensor,
    learned: Tensor,
    frozen: Tensor,
    d_learned: Tensor,
    *,
    write: bool,
) -> Tensor:
    # A product and a sum, row by row through the same memory. A batched product of these shapes
    # takes five times as long.
    product = torch.empty_like(gradient)
    shares = [
        torch.mul(row, gradient, out=product).view(-1, GRAIN).sum(1) for row in (*learned, *frozen)
    ]
    sites = _site_of(runs, alpha.device)
    if write and len(learned):
        weights = alpha[:, : len(learned)].t()[:, sites].unsqueeze(2)
        torch.mul(weights, gradient.view(1, -1, GRAIN), out=d_learned.view(len(learned), -1, GRAIN))
    return torch.zeros_like(alpha).index_add_(0, sites, torch.stack(shares, 1))
