"""Speed of the kernels beside the alternatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu
from pidep.kernels.interpolate import ArenaIndex, interpolate
from pidep.kernels.lora_bank import lora_bank
from pidep.kernels.lora_bank import reference as bank_reference
from pidep.kernels.lora_fold import lora_fold
from pidep.kernels.lora_mixture import lora_mixture
from pidep.kernels.lora_mixture import reference as mixture_reference

__all__ = ["bench_fold", "bench_interpolate", "bench_layer"]

Work = Callable[[], object]


def timed(work: Work, *, rep: int = 100) -> dict[str, float]:
    """p20, p50 and p80 in ms."""
    import triton

    low, middle, high = triton.testing.do_bench(
        work, warmup=25, rep=rep, quantiles=[0.2, 0.5, 0.8]
    )[0:3]
    return {"p20_ms": low, "p50_ms": middle, "p80_ms": high}


def _eager(rows: Tensor, logits: Tensor) -> Tensor:
    """The naive expression, expert by expert."""
    alpha = torch.softmax(logits, 0)
    total = alpha[0] * rows[0]
    for k in range(1, len(rows)):
        total = total + alpha[k] * rows[k]
    return total


def _weighted(rows: Tensor, logits: Tensor) -> Tensor:
    return (torch.softmax(logits, 0)[:, None] * rows).sum(0)


def bench_interpolate(size: int, count: int, dtype: torch.dtype) -> dict[str, Any]:
    """One site of `size` elements, forward, and forward and backward.

    Beside eager torch, torch.compile, and a copy of as many bytes.
    """
    index = ArenaIndex.of([size], device=gpu.DEVICE)
    size = index.num_elements
    rows = torch.randn(count, size, device=gpu.DEVICE, dtype=dtype).requires_grad_()
    logits = torch.randn(1, count, device=gpu.DEVICE, requires_grad=True)
    gradient = torch.randn(size, device=gpu.DEVICE, dtype=dtype)
    nothing = rows.new_empty(0, size)
    frozen = rows.detach()
    width = rows.element_size()

    def backward_of(function: Callable[[], Tensor]) -> Work:
        out = function()

        def work() -> None:
            rows.grad = logits.grad = None
            out.backward(gradient, retain_graph=True)

        return work

    torch.compiler.reset()  # After eight shapes of one function, torch.compile gives up silently.
    compiled = torch.compile(_weighted, dynamic=False)
    copies = {moved: _copy_ms(width * size * moved) for moved in sorted({count + 1, 2 * count + 1})}
    cases: dict[str, tuple[Callable[[], Work], int]] = {
        "forward": (
            lambda: lambda: interpolate(nothing, frozen, logits.detach(), index),
            count + 1,
        ),
        "backward, learned": (
            lambda: backward_of(lambda: interpolate(rows, None, logits, index)),
            2 * count + 1,
        ),
        "backward, frozen": (
            lambda: backward_of(lambda: interpolate(nothing, frozen, logits, index)),
            count + 1,
        ),
        "eager forward": (lambda: lambda: _eager(frozen, logits[0].detach()), count + 1),
    }
    if size >= 2**24:  # Only where claims are made: every compilation takes seconds.
        cases["compiled forward"] = (
            lambda: lambda: compiled(frozen, logits[0].detach()),
            count + 1,
        )
    if width * size * count < 12 * 2**30:  # autograd of the naive expression keeps K products
        cases["eager backward"] = (
            lambda: backward_of(lambda: _eager(rows, logits[0])),
            2 * count + 1,
        )
        if size >= 2**24:
            cases["compiled backward"] = (
                lambda: backward_of(lambda: compiled(rows, logits[0])),
                2 * count + 1,
            )
    found: dict[str, Any] = {}
    for name, (make, moved) in cases.items():
        try:
            time_of = timed(make())
        except torch.OutOfMemoryError:
            found[name] = {"out_of_memory": True}
        else:
            bytes_moved = width * size * moved
            found[name] = {
                **{key: round(value, 5) for key, value in time_of.items()},
                "gb_per_s": round(bytes_moved / time_of["p50_ms"] / 1e6, 1),
                "share_of_copy": round(copies[moved] / time_of["p50_ms"], 3),
            }
        rows.grad = logits.grad = None
        torch.cuda.empty_cache()
    return {
        "P": size,
        "K": count,
        "dtype": str(dtype),
        "copy_ms": {str(key): round(value, 5) for key, value in copies.items()},
        "times": found,
    }


def _copy_ms(moved: int) -> float:
    """A device-to-device copy that reads and writes `moved` bytes in all."""
    source = torch.empty(moved // 2, dtype=torch.uint8, device=gpu.DEVICE)
    target = torch.empty_like(source)
    return timed(lambda: target.copy_(source))["p50_ms"]


def bench_fold(
    outputs: int, inputs: int, dtype: torch.dtype, *, rank: int = 8, count: int = 4
) -> dict[str, Any]:
    """A fold of four experts, beside one read and one write of W, and beside PEFT's merge.

    PEFT adds W += s B A, one expert after another.
    """
    w = torch.randn(outputs, inputs, device=gpu.DEVICE).to(dtype)
    a, b = (
        torch.randn(rank * count, inputs, device=gpu.DEVICE).to(dtype),
        torch.randn(outputs, rank * count, device=gpu.DEVICE).to(dtype),
    )
    weight, out = torch.rand(rank * count, device=gpu.DEVICE), torch.empty_like(w)

    def merge() -> None:
        for k in range(count):
            part = slice(k * rank, (k + 1) * rank)
            w.add_(b[:, part] @ a[part] * 1e-9)

    times = {
        "copy": timed(lambda: out.copy_(w)),
        "fold": timed(lambda: lora_fold(w, a, b, weight, out=out)),
        "peft's merge, expert by expert": timed(merge),
        "fp32, then round": timed(lambda: out.copy_(w.float() + (b.float() * weight) @ a.float())),
    }
    ratio = times["fold"]["p50_ms"] / times["copy"]["p50_ms"]
    return {
        "shape": [outputs, inputs],
        "dtype": str(dtype),
        "rank": rank * count,
        "times": times,
        "fold_over_copy": round(ratio, 3),
    }


def bench_layer(tokens: int, inputs: int, outputs: int, dtype: torch.dtype) -> dict[str, Any]:
    """A mixture of four LoRAs on a dense layer, and a bank of 32 experts, beside plain torch."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, device=gpu.DEVICE, dtype=dtype, requires_grad=True)

    weight = torch.rand(32, device=gpu.DEVICE, requires_grad=True)
    leaves = (
        leaf(tokens, inputs),
        leaf(32, inputs),
        leaf(outputs, 32),
        weight,
        leaf(tokens, outputs),
    )
    gradient = torch.randn(tokens, outputs, device=gpu.DEVICE, dtype=dtype)

    def both_ways(function: Callable[..., Tensor]) -> Work:
        def work() -> None:
            for one in leaves:
                one.grad = None
            function(*leaves).backward(gradient)

        return work

    rows, experts = (
        leaves[0].detach().view(32, -1, inputs),
        torch.randint(32, (32,), device=gpu.DEVICE),
    )
    bank = (
        leaf(32, 8, inputs).detach(),
        leaf(32, 8, outputs).detach(),
        experts,
        leaves[4].detach().view(32, -1, outputs),
    )
    times = {
        "mixture, fused": timed(both_ways(lora_mixture)),
        "mixture, two torch products": timed(both_ways(mixture_reference.lora_mixture)),
        "mixture, an expert at a time": timed(both_ways(_expert_at_a_time)),
        "bank, fused": timed(lambda: lora_bank(rows, *bank)),
        "bank, gathered": timed(lambda: bank_reference.lora_bank(rows, *bank)),
    }
    return {"tokens": tokens, "in": inputs, "out": outputs, "dtype": str(dtype), "times": times}


def _expert_at_a_time(x: Tensor, a: Tensor, b: Tensor, weight: Tensor, base: Tensor) -> Tensor:
    for first in range(0, len(a), 8):
        part = slice(first, first + 8)
        base = base + ((x @ a[part].t()) * weight[part].to(x.dtype)) @ b[:, part].t()
    return base
