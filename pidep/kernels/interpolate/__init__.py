"""φ̄ = Σₖ softmax(α_s)ₖ φₖ over all sites of an arena, with gradients of φ and α (section 3.3).

    index = ArenaIndex.of([size of each site, …])
    mixed = interpolate(learned, frozen, alpha_logits, index)

An arena holds the parameters of K experts as rows `[K, P]`. Learned and frozen rows are two
tensors, so that no gradient is written for the frozen ones. On a GPU, one OpenAI Triton launch runs
forward and one backward; elsewhere plain torch runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pidep.kernels.interpolate import reference
from pidep.kernels.interpolate.index import GRAIN, ArenaIndex, Span, spans_of
from pidep.kernels.paths import fusable

__all__ = [
    "GRAIN",
    "ArenaIndex",
    "Span",
    "interpolate",
    "interpolate_backward_op",
    "interpolate_op",
    "spans_of",
]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def interpolate(
    learned: Tensor,  # [T, P] fp32/bf16/fp16, contiguous
    frozen: Tensor | None,  # [F, P] fp32/bf16/fp16, contiguous; gets no gradient
    alpha_logits: Tensor,  # [S, T + F] fp32
    index: ArenaIndex,
    *,
    out: Tensor | None = None,  # [P], written instead of new memory; without gradients only
) -> Tensor:  # [P], dtype of `learned`, or of `frozen` if T = 0
    """The interpolated parameters. Sums run in fp32 (in float64 for float64).

    Gradients go to `learned` and `alpha_logits`. Equal inputs give equal bits, forward and
    backward: no sum is atomic.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together; the message names them.
    """
    # Zero rows instead of None: every function below can then count and read rows.
    frozen = learned.new_empty(0, learned.shape[1]) if frozen is None else frozen
    _check(learned, frozen, alpha_logits, index)
    arguments = (learned, frozen, alpha_logits, index.tile_start, index.tile_site, index.site_tile)
    if out is not None:
        _check_out(out, learned, frozen, alpha_logits)
        # Autograd does not see a write into memory of the caller, so `_check_out` refuses
        # gradients.
        with torch.no_grad():
            return _forward(*arguments, out)
    mixed: Tensor = (
        interpolate_op(*arguments)
        if torch.compiler.is_compiling()
        else _Interpolate.apply(*arguments)  # type: ignore[no-untyped-call]
    )
    return mixed


def _check(learned: Tensor, frozen: Tensor, logits: Tensor, index: ArenaIndex) -> None:
    size = index.num_elements
    for name, rows in (("learned", learned), ("frozen", frozen)):
        if rows.dim() != 2 or rows.shape[1] != size:
            raise ValueError(
                f"interpolate: {name} is {tuple(rows.shape)}, the index needs [experts, {size}]"
            )
        # The kernels compute an address as row · P + element, without strides.
        if rows.dtype not in _DTYPES or not rows.is_contiguous() or rows.device != logits.device:
            raise ValueError(
                f"interpolate: {name} is {rows.dtype} on "
                f"{rows.device}{'' if rows.is_contiguous() else ', not contiguous'}; "
                f"expected contiguous fp32, bf16 or fp16 on {logits.device}, where the logits are"
            )
    count = len(learned) + len(frozen)
    if count == 0 or logits.shape != (index.num_sites, count):
        raise ValueError(
            f"interpolate: alpha_logits is {tuple(logits.shape)}, expected one row a site and one "
            f"column an expert, ({index.num_sites}, {count}), of at least one expert"
        )
    if index.tile_start.device != logits.device:
        raise ValueError(
            f"interpolate: the index is on {index.tile_start.device}, the logits on "
            f"{logits.device}; move it with index.to(…)"
        )
    # Without this check the caller would get no gradient and no message.
    if frozen.requires_grad:
        raise ValueError(
            "interpolate: frozen experts are not given a gradient; detach them, or pass them as "
            "learned"
        )


def _check_out(out: Tensor, learned: Tensor, frozen: Tensor, logits: Tensor) -> None:
    rows = learned if len(learned) else frozen
    if torch.is_grad_enabled() and (learned.requires_grad or logits.requires_grad):
        raise ValueError(
            "interpolate: out is for use without gradients; leave it out, or use torch.no_grad()"
        )
    if (out.shape, out.dtype, out.device) != (
        rows.shape[1:],
        rows.dtype,
        rows.device,
    ) or not out.is_contiguous():
        raise ValueError(
            f"interpolate: out is {out.dtype} {tuple(out.shape)} on {out.device}, "
            f"expected contiguous {rows.dtype} {tuple(rows.shape[1:])} on {rows.device}"
        )


def _forward(
    learned: Tensor,
    frozen: Tensor,
    logits: Tensor,
    tile_start: Tensor,
    tile_site: Tensor,
    site_tile: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    # Imported where it runs: OpenAI Triton is absent on machines without a GPU.
    if fusable(learned, frozen, logits):
        from pidep.kernels.interpolate import fused as kernels

        return kernels.forward(learned, frozen, logits.contiguous(), tile_start, tile_site, out)
    return reference.forward(learned, frozen, logits, tile_start, site_tile, out)


def _backward(gradient: Tensor, saved: tuple[Tensor, ...], *, write: bool) -> tuple[Tensor, Tensor]:
    learned, frozen, logits, tile_start, tile_site, site_tile = saved
    if fusable(gradient, learned, frozen, logits):
        from pidep.kernels.interpolate import fused as kernels

        return kernels.backward(
            gradient.contiguous(),
            learned,
            frozen,
            logits.contiguous(),
            tile_start,
            tile_site,
            site_tile,
            write=write,
        )
    return reference.backward(
        gradient.contiguous(), learned, frozen, logits, tile_start, site_tile, write=write
    )


class _Interpolate(torch.autograd.Function):
    """The eager path.

    A custom operator's dispatch costs more than the whole pass over a small arena.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> Tensor:
        ctx.save_for_backward(*arguments)
        return _forward(*arguments)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Where α alone is learned, the largest write of the pass is left out.
        d_learned, d_logits = _backward(gradient, ctx.saved_tensors, write=ctx.needs_input_grad[0])
        return d_learned if ctx.needs_input_grad[0] else None, None, d_logits, None, None, None


@torch.library.custom_op("pidep::interpolate", mutates_args=())
def interpolate_op(
    learned: Tensor,
    frozen: Tensor,
    logits: Tensor,
    tile_start: Tensor,
    tile_site: Tensor,
    site_tile: Tensor,
) -> Tensor:
    return _forward(learned, frozen, logits, tile_start, tile_site, site_tile)


@torch.library.custom_op("pidep::interpolate_backward", mutates_args=())
def interpolate_backward_op(
    gradient: Tensor,
    learned: Tensor,
    frozen: Tensor,
    logits: Tensor,
    tile_start: Tensor,
    tile_site: Tensor,
    site_tile: Tensor,
    write: bool,
) -> tuple[Tensor, Tensor]:
    return _backward(
        gradient, (learned, frozen, logits, tile_start, tile_site, site_tile), write=write
    )


@interpolate_op.register_fake
def _(learned: Tensor, frozen: Tensor, *_: Tensor) -> Tensor:
    rows = learned if len(learned) else frozen
    return rows.new_empty(rows.shape[1])


@interpolate_backward_op.register_fake
def _(
    gradient: Tensor, learned: Tensor, frozen: Tensor, logits: Tensor, *_: Any, write: bool = True
) -> tuple[Tensor, Tensor]:
    # An operator has a fixed number of results. An empty tensor stands for the gradient left out.
    return torch.empty_like(learned) if write else learned.new_empty(0), torch.empty_like(logits)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    write = ctx.needs_input_grad[0]
    d_learned, d_logits = interpolate_backward_op(gradient, *ctx.saved_tensors, write)
    return d_learned if write else None, None, d_logits, None, None, None


interpolate_op.register_autograd(_differentiate, setup_context=_save)
