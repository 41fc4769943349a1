"""y + Σₖ αₖ sₖ (x Aₖᵀ) Bₖᵀ: a mixture of LoRA products in two products for any K."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pidep.kernels.lora_mixture import reference
from pidep.kernels.paths import fusable

__all__ = ["forward_pass", "lora_mixture", "lora_mixture_backward_op", "lora_mixture_op"]


def lora_mixture(
    x: Tensor,  # [..., in]
    a: Tensor,  # [R, in], the experts' A stacked, R = Σ rank_k
    b: Tensor,  # [out, R], the experts' B side by side
    weight: Tensor,  # [R], α_k s_k of the expert that owns the rank
    base: Tensor | None = None,  # [..., out], the frozen layer's output
) -> Tensor:  # [..., out], in x's dtype
    """base plus the mixture of the *products* (π-Tuning, eq. 5 on ΔW = BA).

    Stacking makes it exact.

    On a GPU, one launch runs forward. Backward has one launch for x and α, and one each for A and
    B. Elsewhere two matrix products run.

    Raises:
        ValueError: shapes do not fit together; the message names them.
    """
    _check(x, a, b, weight, base)
    if not fusable(x, a, b, weight):
        return reference.lora_mixture(x, a, b, weight, base)
    # Imported where it runs: the module imports OpenAI Triton.
    from pidep.kernels.low_rank import MAX_RANK

    if len(a) > MAX_RANK or len(a) == 0:
        return reference.lora_mixture(x, a, b, weight, base)
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    added = None if base is None else base.reshape(-1, base.shape[-1]).to(x.dtype).contiguous()
    arguments = (
        flat,
        a.to(x.dtype).contiguous(),
        b.to(x.dtype).contiguous(),
        weight.float(),
        added,
    )
    # As for `interpolate`: the operator is for the compiler, and its dispatch is too slow for eager
    # mode.
    y = (
        lora_mixture_op(*arguments)[0]
        if torch.compiler.is_compiling()
        else _LoraMixture.apply(*arguments)  # type: ignore[no-untyped-call]
    )
    return y.reshape(*x.shape[:-1], b.shape[0])  # type: ignore[no-any-return]


def _check(x: Tensor, a: Tensor, b: Tensor, weight: Tensor, base: Tensor | None) -> None:
    rank = a.shape[0]
    if (
        a.dim() != 2
        or b.dim() != 2
        or x.shape[-1] != a.shape[1]
        or b.shape[1] != rank
        or weight.shape != (rank,)
    ):
        raise ValueError(
            f"lora_mixture: x {tuple(x.shape)}, a {tuple(a.shape)}, b {tuple(b.shape)} and weight "
            f"{tuple(weight.shape)}: "
            "expected [..., in], [R, in], [out, R] and [R]"
        )
    if base is not None and base.shape != (*x.shape[:-1], b.shape[0]):
        raise ValueError(
            f"lora_mixture: base is {tuple(base.shape)}, expected {(*x.shape[:-1], b.shape[0])}"
        )


def forward_pass(
    x: Tensor, a: Tensor, b: Tensor, weight: Tensor, base: Tensor | None
) -> tuple[Tensor, Tensor]:
    from pidep.kernels.low_rank import low_rank

    added = None if base is None else base.unsqueeze(0)
    y, hidden, _ = low_rank(
        x.unsqueeze(0), a.unsqueeze(0), b.t().unsqueeze(0), base=added, weight=weight, keep=True
    )
    return y.squeeze(0), hidden.squeeze(0)


def _backward(
    gradient: Tensor, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from pidep.kernels.low_rank import outer

    # `inner` and `hidden` are [tokens, R], so both factors' gradients need no second pass to the
    # ranks.
    dx, inner, d_weight = _to_the_ranks(gradient, a, b, weight, hidden)
    da = outer(inner, x)
    db = outer(hidden, gradient, weight).t()
    return dx, da.to(a.dtype), db.to(b.dtype).contiguous(), d_weight


def _to_the_ranks(
    gradient: Tensor, a: Tensor, b: Tensor, weight: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, (g B) ∘ w, and dw."""
    from pidep.kernels.low_rank import low_rank

    down, up = b.t().unsqueeze(0), a.unsqueeze(0)
    dx, inner, d_weight = low_rank(
        gradient.unsqueeze(0), down, up, weight=weight, hidden=hidden.unsqueeze(0)
    )
    return dx.squeeze(0), inner.squeeze(0), d_weight


class _LoraMixture(torch.autograd.Function):
    """The eager path."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, base: Tensor | None
    ) -> Tensor:
        y, hidden = forward_pass(x, a, b, weight, base)
        ctx.save_for_backward(x, a, b, weight, hidden)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # `base` is added as it is, so its gradient is y's.
        through = gradient if ctx.needs_input_grad[4] else None
        # Only α is learned, so no pass over the tokens for dA and dB is needed.
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            dx, _, d_weight = _to_the_ranks(gradient.contiguous(), *ctx.saved_tensors[1:])
            return dx, None, None, d_weight, through
        return (*_backward(gradient.contiguous(), *ctx.saved_tensors), through)


@torch.library.custom_op("pidep::lora_mixture", mutates_args=())
def lora_mixture_op(
    x: Tensor, a: Tensor, b: Tensor, weight: Tensor, base: Tensor | None
) -> tuple[Tensor, Tensor]:
    return forward_pass(x, a, b, weight, base)


@torch.library.custom_op("pidep::lora_mixture_backward", mutates_args=())
def lora_mixture_backward_op(
    gradient: Tensor, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _backward(gradient, x, a, b, weight, hidden)


@lora_mixture_op.register_fake
def _(
    x: Tensor, a: Tensor, b: Tensor, weight: Tensor, base: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), len(b)), x.new_empty(len(x), len(a), dtype=torch.float32)


@lora_mixture_backward_op.register_fake
def _(
    gradient: Tensor, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(a), torch.empty_like(b), torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    x, a, b, weight, _ = inputs
    ctx.save_for_backward(x, a, b, weight, output[1])


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (
        *lora_mixture_backward_op(gradient.contiguous(), *ctx.saved_tensors),
        gradient if ctx.needs_input_grad[4] else None,
    )


lora_mixture_op.register_autograd(_differentiate, setup_context=_save)
