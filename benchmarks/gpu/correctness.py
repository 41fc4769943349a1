"""Every kernel on a real GPU against float64."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu
from pidep.kernels.interpolate import ArenaIndex, interpolate
from pidep.kernels.interpolate.reference import plain
from pidep.kernels.lora_bank import lora_bank
from pidep.kernels.lora_bank import reference as bank_reference
from pidep.kernels.lora_fold import lora_fold
from pidep.kernels.lora_mixture import lora_mixture
from pidep.kernels.lora_mixture import reference as mixture_reference

__all__ = ["TOLERANCE", "checks", "correctness"]

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
"""Largest error relative to the largest float64 value: a few roundings of each dtype."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _error(found: Tensor, want: Tensor) -> float:
    if found.shape != want.shape:
        return float("inf")
    if not want.numel():
        return 0.0
    return float((found.double() - want).abs().max() / want.abs().max().clamp(min=1e-30))


def _doubles(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def check_interpolate(
    dtype: torch.dtype, sizes: Sequence[int], learned: int, frozen: int
) -> dict[str, float]:
    """Forward, dφ and dα against float64, and equal bits twice."""
    index = ArenaIndex.of(sizes, device=gpu.DEVICE)
    rows = [
        torch.randn(count, index.num_elements, device=gpu.DEVICE).to(dtype)
        for count in (learned, frozen)
    ]
    logits = torch.randn(len(sizes), learned + frozen, device=gpu.DEVICE, requires_grad=True)
    gradient = torch.randn(index.num_elements, device=gpu.DEVICE).to(dtype)
    own = rows[0].requires_grad_()
    own64, logits64 = _doubles(own, logits)
    want = plain(own64, rows[1].double(), logits64, sizes)
    want.backward(gradient.double())
    errors, bits = {}, []
    for _ in range(2):
        own.grad = logits.grad = None
        found = interpolate(own, rows[1], logits, index)
        found.backward(gradient)
        bits.append([found.detach(), logits.grad, *([own.grad] if learned else [])])
    errors = {
        "forward": _error(found.detach(), want.detach()),
        "d_alpha": _error(logits.grad, logits64.grad),
    }
    if learned + frozen == 1:  # α is 1 for every logit, so its gradient is 0
        errors["d_alpha"] = float(logits.grad.abs().max()) * 1e-3
    if learned:
        errors["d_learned"] = _error(own.grad, own64.grad)
    errors["differs when run again"] = (
        0.0 if all(torch.equal(a, b) for a, b in zip(*bits, strict=True)) else float("inf")
    )
    return errors


def check_past_int32() -> dict[str, float]:
    """Elements past 2³¹: the last rows of a long arena, against these rows alone."""
    index = ArenaIndex.of([2**29 + 1024], device=gpu.DEVICE)
    rows = torch.empty(5, index.num_elements, dtype=torch.float16, device=gpu.DEVICE).normal_()
    logits = torch.randn(1, 5, device=gpu.DEVICE)
    found = interpolate(rows[:0], rows, logits, index)[-2048:]
    want = (torch.softmax(logits[0].double(), 0)[:, None] * rows[:, -2048:].double()).sum(0)
    return {"past 2^31": _error(found, want)}


def check_mixture(
    dtype: torch.dtype, tokens: int, inputs: int, outputs: int, rank: int
) -> dict[str, float]:
    """Forward and every gradient, against float64."""
    x, a, b, base = (
        torch.randn(*shape, device=gpu.DEVICE).to(dtype).requires_grad_()
        for shape in ((tokens, inputs), (rank, inputs), (outputs, rank), (tokens, outputs))
    )
    weight = torch.rand(rank, device=gpu.DEVICE).requires_grad_()
    gradient = torch.randn(tokens, outputs, device=gpu.DEVICE).to(dtype)
    exact = _doubles(x, a, b, weight, base)
    want = mixture_reference.lora_mixture(*exact)
    want.backward(gradient.double())
    found = lora_mixture(x, a, b, weight, base)
    found.backward(gradient)
    errors = {"forward": _error(found.detach(), want.detach())}
    for name, one, other in zip(
        ("dx", "da", "db", "dweight", "dbase"), (x, a, b, weight, base), exact, strict=True
    ):
        errors[name] = _error(one.grad, other.grad)
    return errors


def check_bank(dtype: torch.dtype) -> dict[str, float]:
    """Rows of one batch, each with its own expert."""
    x, a, b = (
        torch.randn(*shape, device=gpu.DEVICE).to(dtype)
        for shape in ((9, 33, 100), (5, 8, 100), (5, 8, 70))
    )
    base, expert = (
        torch.randn(9, 33, 70, device=gpu.DEVICE).to(dtype),
        torch.randint(5, (9,), device=gpu.DEVICE),
    )
    want = bank_reference.lora_bank(x.double(), a.double(), b.double(), expert, base.double())
    return {"forward": _error(lora_bank(x, a, b, expert, base), want)}


def check_fold(dtype: torch.dtype, outputs: int, inputs: int, rank: int) -> dict[str, float]:
    """At most a hundredth above the error of folding in fp32 and rounding."""
    w, a, b = (
        torch.randn(*shape, device=gpu.DEVICE).to(dtype)
        for shape in ((outputs, inputs), (rank, inputs), (outputs, rank))
    )
    weight = torch.rand(rank, device=gpu.DEVICE)
    want = w.double() + (b.double() * weight.double()) @ a.double()
    rounded = (w.float() + (b.float() * weight) @ a.float()).to(dtype)
    error, best = _error(lora_fold(w, a, b, weight), want), _error(rounded, want)
    return {
        "forward": error,
        "beyond fp32-then-round": 0.0 if error <= 1.01 * best + 1e-7 else float("inf"),
    }


def checks() -> Iterator[tuple[str, torch.dtype, dict[str, float]]]:
    for dtype in DTYPES:
        for sizes in ([1], [5, 1024, 3000], [70000, 1, 0, 2049], [3_000_001]):
            for learned, frozen in ((1, 0), (1, 3), (4, 0), (0, 5), (3, 14), (0, 64)):
                name = f"interpolate, sites {sizes}, {learned} learned + {frozen} frozen"
                yield name, dtype, check_interpolate(dtype, sizes, learned, frozen)
        for shape in ((1, 5, 7, 3), (70, 96, 130, 8), (300, 1024, 768, 32), (2048, 768, 3072, 128)):
            yield (
                f"lora_mixture, tokens, in, out, rank {shape}",
                dtype,
                check_mixture(dtype, *shape),
            )
        yield "lora_bank", dtype, check_bank(dtype)
        for shape in ((7, 5, 3), (300, 500, 32), (1024, 4096, 40)):
            yield f"lora_fold, out, in, rank {shape}", dtype, check_fold(dtype, *shape)
    yield "interpolate", torch.float16, check_past_int32()


def correctness() -> list[dict[str, Any]]:
    """Every case with its errors, and whether they are within bounds."""
    found = []
    for name, dtype, errors in checks():
        shown = {
            key: float(f"{value:.3g}") if math.isfinite(value) else str(value)
            for key, value in errors.items()
        }
        right = all(value <= TOLERANCE[dtype] for value in errors.values())  # NaN fails as well
        found.append({"case": name, "dtype": str(dtype), "errors": shown, "right": right})
        if not right:
            print(f"WRONG: {found[-1]}", file=sys.stderr, flush=True)
    return found
